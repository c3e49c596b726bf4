"""What the PixArt-Σ repository calls its weights, and what diffusers calls the same.

The two networks are one. They differ in names, and in that the published one keeps the projections
of one source in one matrix: queries, keys and values of self-attention, keys and values of
cross-attention. Two published tensors have no place in a diffusers transformer (`UNPLACED`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from w2sdiff.attention.hosts.base import SLOT

__all__ = ["QK_NORM", "UNPLACED", "depth_of", "to_diffusers", "to_published"]

# The position embedding, which diffusers computes anew, and the embedding of the empty caption,
# which training uses for captions it drops.
UNPLACED = ("pos_embed", "y_embedder.y_embedding")
QK_NORM = re.compile(r"blocks\.\d+\.attn\.[qk]_norm\.")

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_EMBEDDERS = "adaln_single.emb"
# Published layer -> its parts in diffusers; each has a weight and a bias.
_LAYERS: dict[str, tuple[str, ...]] = {
    "x_embedder.proj": ("pos_embed.proj",),
    "t_embedder.mlp.0": (f"{_EMBEDDERS}.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": (f"{_EMBEDDERS}.timestep_embedder.linear_2",),
    "csize_embedder.mlp.0": (f"{_EMBEDDERS}.resolution_embedder.linear_1",),
    "csize_embedder.mlp.2": (f"{_EMBEDDERS}.resolution_embedder.linear_2",),
    "ar_embedder.mlp.0": (f"{_EMBEDDERS}.aspect_ratio_embedder.linear_1",),
    "ar_embedder.mlp.2": (f"{_EMBEDDERS}.aspect_ratio_embedder.linear_2",),
    "t_block.1": ("adaln_single.linear",),
    "y_embedder.y_proj.fc1": ("caption_projection.linear_1",),
    "y_embedder.y_proj.fc2": ("caption_projection.linear_2",),
    "final_layer.linear": ("proj_out",),
}
_BLOCK_LAYERS: dict[str, tuple[str, ...]] = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "attn.sr": (f"attn1.{SLOT}.sr",),
    "attn.norm": (f"attn1.{SLOT}.norm",),
    "cross_attn.q_linear": ("attn2.to_q",),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
    "cross_attn.proj": ("attn2.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
}
_TABLE = "scale_shift_table"


def depth_of(names: Mapping[str, object]) -> int:
    """Number of blocks that published names speak of: the last one's number and one."""
    found = [int(match[1]) for match in map(_BLOCK.match, names) if match]
    return max(found, default=-1) + 1


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights under diffusers' names; names that are not published ones are left out.

    Bit for bit: matrices are cut, no number is changed.

    Example:
        >>> sorted(to_diffusers({"blocks.0.cross_attn.kv_linear.bias": torch.zeros(4)}))
        ['transformer_blocks.0.attn2.to_k.bias', 'transformer_blocks.0.attn2.to_v.bias']
    """
    found: dict[str, Tensor] = {}
    for published, parts in _pairs(depth_of(state)):
        if published in state:
            pieces = state[published].chunk(len(parts))
            found |= {part: piece.clone() for part, piece in zip(parts, pieces, strict=True)}
    return found


def to_published(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The inverse of `to_diffusers`, for a network of `depth` blocks."""
    return {
        published: torch.cat([state[part] for part in parts])
        for published, parts in _pairs(depth)
        if all(part in state for part in parts)
    }


def _pairs(depth: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every published tensor and its parts in diffusers."""
    for layer, parts in _LAYERS.items():
        for kind in ("weight", "bias"):
            yield f"{layer}.{kind}", tuple(f"{part}.{kind}" for part in parts)
    yield f"final_layer.{_TABLE}", (_TABLE,)
    for index in range(depth):
        theirs, ours = f"blocks.{index}", f"transformer_blocks.{index}"
        yield f"{theirs}.{_TABLE}", (f"{ours}.{_TABLE}",)
        for layer, parts in _BLOCK_LAYERS.items():
            for kind in ("weight", "bias"):
                yield (
                    f"{theirs}.{layer}.{kind}",
                    tuple(f"{ours}.{part}.{kind}" for part in parts),
                )
