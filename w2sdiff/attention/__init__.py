"""Compressed keys and values in the self-attention of diffusion transformers.

Self-attention over N image tokens costs N². PixArt-Σ (arXiv 2403.04692, section 3.2) lets every
query look at one key and one value per R x R cell instead: N²/R². Here this works on stock
diffusers transformers that are already loaded:

* `KVCompression` says how: the kind, the ratio, the layers; a value;
* `compress(denoiser, compression)` switches it on, `restore(denoiser)` gives the denoiser back;
* `Patch` is the same in two steps, for switching on and off between two calls;
* `KVCompressor` is the module that makes few keys and values of many; `save_adapter` and
  `load_adapter` keep what it has learned;
* `from_published` and `write_published` read and write the checkpoints of the paper's own code.

`B` items, `N` image tokens, `T` text tokens, `n` tokens after compression, `C` channels.
"""

from w2sdiff.attention.adapter import (
    adapter_compression,
    find_adapter,
    load_adapter,
    save_adapter,
)
from w2sdiff.attention.compression import KVCompression, Schedule
from w2sdiff.attention.hosts import HOSTS
from w2sdiff.attention.kinds import KINDS, KVCompressor
from w2sdiff.attention.patch import Patch, compress, grids, restore
from w2sdiff.attention.published import Converted, from_published, write_published

__all__ = [
    "HOSTS",
    "KINDS",
    "Converted",
    "KVCompression",
    "KVCompressor",
    "Patch",
    "Schedule",
    "adapter_compression",
    "compress",
    "find_adapter",
    "from_published",
    "grids",
    "load_adapter",
    "restore",
    "save_adapter",
    "write_published",
]
