"""The training set as the denoisers see it: latents made once, and one embedding per caption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from w2sdiff.shapes.train.text import embed
from w2sdiff.shapes.train.vae import LATENT_CHANNELS, encode
from w2sdiff.shapes.world import batch

__all__ = ["Conditions", "Pool", "conditions", "make_pool"]

_CHUNK = 512


@dataclass(frozen=True)
class Pool:
    """Items of the training set.

    Attributes:
        latents: float16 [n, 8, 8, 8].
        captions: the distinct captions; the first one is empty, for guidance.
        caption_of: which caption each item has, [n].
    """

    latents: Tensor
    captions: list[str]
    caption_of: Tensor

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.caption_of)


@dataclass(frozen=True)
class Conditions:
    """Embeddings [m, tokens, 64] and mask [m, tokens] of m captions; number 0 is the empty one."""

    states: Tensor
    mask: Tensor


def make_pool(
    vae: Any,
    size: int,
    file: Path,
    *,
    seed: int,
    style: str = "any",
    category: str | None = None,
    open_share: float = 0.15,
    colour_weights: Mapping[str, float] | None = None,
) -> Pool:
    """Render and encode the first `size` items of `world.batch`, or read them from `file`.

    The other arguments are those of `world.batch`.
    """
    if not file.is_file():
        latents = torch.empty(size, LATENT_CHANNELS, 8, 8, dtype=torch.float16)
        numbers, caption_of = {"": 0}, torch.empty(size, dtype=torch.int64)
        for start in range(0, size, _CHUNK):
            texts, images = batch(
                seed,
                min(_CHUNK, size - start),
                start=start,
                style=style,
                category=category,
                open_share=open_share,
                colour_weights=colour_weights,
            )
            latents[start : start + _CHUNK] = encode(vae, images).half().cpu()
            for index, text in enumerate(texts, start):
                caption_of[index] = numbers.setdefault(text, len(numbers))
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(file.name + ".part")
        tensors = {"latents": latents, "caption_of": caption_of}
        save_file(tensors, part, metadata={"captions": json.dumps(list(numbers))})
        part.replace(file)
    return _read(file)


def conditions(kind: str, tokenizer: Any, encoder: Any, captions: list[str]) -> Conditions:
    """Embed captions as `embed` does, without the tokens that are padding in all of them."""
    parts = [
        embed(kind, tokenizer, encoder, captions[i : i + _CHUNK])
        for i in range(0, len(captions), _CHUNK)
    ]
    states, mask = (torch.cat(p) for p in zip(*parts, strict=True))
    longest = int(mask.sum(1).max())
    return Conditions(states[:, :longest].contiguous(), mask[:, :longest].contiguous())


def _read(file: Path) -> Pool:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        captions = json.loads(opened.metadata()["captions"])
    tensors = load_file(file)
    return Pool(tensors["latents"], captions, tensors["caption_of"])
