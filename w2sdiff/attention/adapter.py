"""Trained compressors as a small file beside the transformer they were trained in.

One safetensors file: the tensors under the names they have in the transformer's state
(`transformer_blocks.14.attn1.kv.sr.weight`, ...), and in the metadata, under `w2sdiff_kv`, JSON
with the transformer's class, its number of layers, its width and the compression.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from w2sdiff.attention.compression import KVCompression
from w2sdiff.attention.hosts.base import SLOT
from w2sdiff.attention.patch import Patch, patch_of
from w2sdiff.errors import InputError, UnsupportedError

FILE = "kv_adapter.safetensors"  # its name in a transformer's folder
KEY = "w2sdiff_kv"


def save_adapter(denoiser: Any, path: str | Path) -> Path:
    """Write the compressors of a compressed transformer, and nothing else of it.

    Args:
        denoiser: a compressed transformer, or its `Patch`.
        path: a file that ends in .safetensors, or a folder, where it is called `FILE`.

    Raises:
        InputError: the transformer is not compressed.
    """
    from safetensors.torch import save_file

    patch = _patch(denoiser)
    file = adapter_file(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{name}.{SLOT}.{key}": value.detach().cpu().contiguous()
        for name, compressor in patch.compressors.items()
        for key, value in compressor.state_dict().items()
    }
    about = {**_facts(patch), "compression": patch.compression.to_json()}
    save_file(tensors, file, metadata={KEY: json.dumps(about)})
    return file


def load_adapter(denoiser: Any, path: str | Path) -> None:
    """Read compressors into a transformer that is compressed in the same way.

    Args:
        denoiser: a compressed transformer, or its `Patch`.
        path: as for `save_adapter`.

    Raises:
        InputError: no such file, it is no adapter, or the transformer is not compressed.
        UnsupportedError: made for another transformer, or for another compression.

    Example:
        >>> from diffusers import PixArtTransformer2DModel
        >>> from w2sdiff.attention import compress, restore
        >>> transformer = PixArtTransformer2DModel(num_layers=2, num_attention_heads=2,
        ...     attention_head_dim=8, cross_attention_dim=16, sample_size=8)
        >>> _ = compress(transformer, KVCompression("conv", ratio=2))
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = save_adapter(transformer, folder)
        ...     compression = adapter_compression(file)
        ...     load_adapter(transformer, file)
        >>> compression.layers
        'deep'
    """
    from safetensors.torch import load_file

    patch = _patch(denoiser)
    file = adapter_file(path)
    about = _about(file)
    for key, ours in _facts(patch).items():
        if about.get(key) != ours:
            raise UnsupportedError(
                f"{file} was made for another network: its {key} is {about.get(key)}, "
                f"this one's is {ours}."
            )
    theirs = KVCompression.from_json(about["compression"])
    if _work(theirs, patch.depth) != _work(patch.compression, patch.depth):
        raise UnsupportedError(
            f"{file} was made for another compression: {theirs}; this is {patch.compression}."
        )
    tensors = load_file(file)
    for name, compressor in patch.compressors.items():
        prefix = f"{name}.{SLOT}."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            compressor.load_state_dict(own)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UnsupportedError(f"{file} does not fit {name}: {reason}") from None


def adapter_compression(path: str | Path) -> KVCompression:
    """The compression an adapter was made for: what to give to `compress` before `load_adapter`.

    Raises:
        InputError: no such file, or it is no adapter.
    """
    return KVCompression.from_json(_about(adapter_file(path))["compression"])


def find_adapter(denoiser: Any) -> Path | None:
    """The adapter that travels with a transformer: the one in the folder it was loaded from.

    Files of a folder on this machine only: what the hub's client downloads of a pipeline are the
    files that diffusers knows, and an adapter is none of them.
    """
    network = getattr(denoiser, "_orig_mod", denoiser)
    folder = getattr(network, "config", {}).get("_name_or_path")
    file = Path(folder) / FILE if folder else None
    return file if file is not None and file.is_file() else None


def adapter_file(path: str | Path) -> Path:
    """The file itself, where a folder is given."""
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / FILE


def _patch(denoiser: Any) -> Patch:
    patch = denoiser if isinstance(denoiser, Patch) else patch_of(denoiser)
    if patch is None:
        raise InputError(
            f"{type(denoiser).__name__} is not compressed; compress(denoiser, ...) it first."
        )
    return patch


def _work(compression: KVCompression, depth: int) -> tuple[str, dict[int, Any]]:
    """What a compression does in a network of so many layers: "deep" may be written 14-27."""
    layers = {index: compression.ratio_of(index) for index in compression.layers_of(depth)}
    return compression.kind, {index: ratio for index, ratio in layers.items() if ratio != 1}


def _facts(patch: Patch) -> dict[str, Any]:
    widths = sorted({compressor.channels for compressor in patch.compressors.values()})
    return {"host": patch.host.kind, "layers": patch.depth, "channels": widths}


def _about(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get(KEY)
    except FileNotFoundError:
        raise InputError(f"No adapter of compressed keys and values at {file}.") from None
    except SafetensorError as error:
        raise InputError(f"{file} is not a safetensors file: {error}.") from None
    if text is None:
        raise InputError(f"{file} is not an adapter of compressed keys and values (no {KEY!r}).")
    try:
        about: dict[str, Any] = json.loads(text)
        KVCompression.from_json(about["compression"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file} is a damaged adapter: {KEY!r} in it does not say which compression it is "
            f"({type(error).__name__}: {error})."
        ) from None
    return about
