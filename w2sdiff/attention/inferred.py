"""What a published PixArt checkpoint is, read off the names and shapes of its tensors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from w2sdiff.attention.compression import KVCompression
from w2sdiff.attention.names import QK_NORM, depth_of
from w2sdiff.errors import InputError, UnsupportedError

__all__ = [
    "SHOWN",
    "check_depth",
    "compression_of",
    "position_table",
    "positions_of",
    "published_heads",
    "same_positions",
    "sizes_of",
]

HEAD_WIDTH = 72  # of every published model
SCALES = (0.5, 1, 2, 4)  # published interpolation of positions, at 256, 512, 1024 and 2K pixels
SHOWN = 3  # names per complaint


def check_depth(state: Mapping[str, Tensor], name: str) -> None:
    """Refuse a part of a model, and one with layers that diffusers' has no place for.

    Raises:
        InputError: blocks are missing.
        UnsupportedError: it normalises queries and keys.
    """
    depth = depth_of(state)
    there = {int(key.split(".")[1]) for key in state if key.startswith("blocks.")}
    missing = sorted(set(range(depth)) - there)
    if missing:
        listed = ", ".join(map(str, missing[:SHOWN]))
        raise InputError(
            f"{name} has blocks up to {depth - 1}, but no block {listed}: it is not a whole model."
        )
    norms = [key for key in state if QK_NORM.match(key)]
    if norms:
        raise UnsupportedError(
            f"{name} normalises queries and keys over all heads ({norms[0]}, ...), which diffusers'"
            " PixArt has no place for. Train or take a model without qk_norm."
        )


def sizes_of(state: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """What the shapes of the weights say, under the names of diffusers' config.

    Raises:
        InputError: it is no PixArt checkpoint.
    """
    needed = ("x_embedder.proj.weight", "final_layer.linear.weight", "y_embedder.y_proj.fc1.weight")
    absent = [key for key in needed if key not in state]
    if absent or depth_of(state) == 0:
        what = ", ".join(absent) or "blocks.0.*"
        raise InputError(
            f"{name} is no PixArt checkpoint: it has no {what}; its {len(state)} tensors begin "
            f"with {', '.join(list(state)[:SHOWN])}."
        )
    patches, last, caption = (state[key] for key in needed)
    if patches.dim() != 4 or last.dim() != 2 or caption.dim() != 2:
        raise InputError(
            f"{name} is no PixArt checkpoint: {needed[0]} is {list(patches.shape)}, "
            f"{needed[1]} {list(last.shape)}, {needed[2]} {list(caption.shape)}."
        )
    width, channels, patch = patches.shape[:3]
    return {
        "num_layers": depth_of(state),
        "cross_attention_dim": width,
        "in_channels": channels,
        "out_channels": last.shape[0] // patch**2,
        "patch_size": patch,
        "caption_channels": caption.shape[1],
        "use_additional_conditions": "csize_embedder.mlp.0.weight" in state,
    }


def published_heads(width: int, name: str) -> int:
    """Heads of 72 channels.

    Raises:
        InputError: the width is not made of such.
    """
    if width % HEAD_WIDTH:
        raise InputError(
            f"{name} is {width} wide, which is no number of heads of {HEAD_WIDTH} channels as "
            "published; say how many heads it has (heads=), or name a folder that does (like=)."
        )
    return width // HEAD_WIDTH


def positions_of(
    stored: Tensor | None,
    name: str,
    width: int,
    patch: int,
    size: int | None,
    said: Mapping[str, Any],
) -> tuple[int, float]:
    """Latents per side of the training, and the interpolation of positions.

    Args:
        stored: the position embedding in the file, if there is one.
        name: of the file, for messages.
        width: C.
        patch: latents per side of a token.
        size: pixels per side that were asked for.
        said: a config that may say both.

    Raises:
        InputError: an embedding of another shape or size, or at no known interpolation.
    """
    if stored is None:
        sample = size // 8 if size else said.get("sample_size", 128)
        return sample, said.get("interpolation_scale") or max(sample / 64, 0.5)
    side = math.isqrt(stored.shape[1]) if stored.dim() == 3 else 0
    if stored.dim() != 3 or side**2 != stored.shape[1] or stored.shape[2] != width:
        raise InputError(
            f"{name}: pos_embed is {list(stored.shape)}, expected [1, tokens of a square, {width}]."
        )
    if size is not None and size // 8 != side * patch:
        raise InputError(
            f"{name} was trained at {8 * side * patch} pixels: its pos_embed has {side} x {side} "
            f"tokens; you said {size}."
        )
    scales = [*SCALES, *filter(None, [said.get("interpolation_scale")])]
    for scale in scales:
        if same_positions(stored[0], position_table(width, side, scale)):
            return side * patch, scale
    raise InputError(
        f"{name}: pos_embed is not the published one at any interpolation of positions "
        f"({', '.join(map(str, SCALES))}). If it is interpolated otherwise, name a folder whose "
        "config says so (like=)."
    )


def same_positions(stored: Tensor, table: Tensor) -> bool:
    """Whether a position embedding that was stored is a computed one."""
    # Stored in half precision it still is far nearer than another scale's.
    return torch.allclose(stored.double(), table.double(), atol=2e-3)


def position_table(width: int, side: int, scale: float) -> Tensor:
    """The position embedding [side * side, width], at an interpolation of positions."""
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    table: Tensor = get_2d_sincos_pos_embed(
        width, side, base_size=side, interpolation_scale=scale, output_type="pt"
    )
    return table


def compression_of(
    state: Mapping[str, Tensor], name: str, wanted: int | tuple[int, int] | None
) -> KVCompression | None:
    """What the compressed blocks do, by the sizes of their kernels; None where there are none.

    Raises:
        InputError: kernels of another kind, or another ratio than the wanted one.
    """
    ratios: dict[int, tuple[int, int]] = {}
    for key, value in state.items():
        if key.startswith("blocks.") and key.endswith(".attn.sr.weight"):
            if value.dim() != 4 or value.shape[1] != 1:
                raise InputError(
                    f"{name}: {key} is {list(value.shape)}, expected a depthwise kernel "
                    "[channels, 1, R, R]."
                )
            ratios[int(key.split(".")[1])] = (value.shape[2], value.shape[3])
    pair = (wanted, wanted) if isinstance(wanted, int) else wanted
    if pair is not None:
        if not ratios and pair != (1, 1):
            raise InputError(f"{name} has no compressed blocks (blocks.N.attn.sr.*).")
        for index, own in ratios.items():
            if own != pair:
                raise InputError(
                    f"{name}: blocks.{index}.attn.sr.weight compresses {own[0]} x {own[1]}, "
                    f"expected a ratio of {pair[0]} x {pair[1]}."
                )
    if not ratios:
        return None
    common = Counter(ratios.values()).most_common(1)[0][0]
    others = {index: own for index, own in ratios.items() if own != common}
    return KVCompression("conv", common, sorted(ratios), others)
