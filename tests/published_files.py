"""Checkpoints with the PixArt repository's names, built here from nothing."""

from __future__ import annotations

import torch
from torch import Tensor


def published(
    *,
    depth: int = 2,
    width: int = 24,
    side: int = 4,
    scale: float = 1,
    caption: int = 16,
    patch: int = 2,
    micro: bool = False,
    ratios: dict[int, tuple[int, int]] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A state dict of random numbers; `ratios` are those of compressed blocks, by number."""
    draw = _Draw(seed)
    state = {}

    def linear(name: str, rows: int, columns: int) -> None:
        state[f"{name}.weight"] = draw(rows, columns) * columns**-0.5
        state[f"{name}.bias"] = draw(rows) * 0.1

    state["pos_embed"] = positions(width, side, scale)
    state["x_embedder.proj.weight"] = draw(width, 4, patch, patch) * (4 * patch**2) ** -0.5
    state["x_embedder.proj.bias"] = draw(width) * 0.1
    linear("t_embedder.mlp.0", width, 256)
    linear("t_embedder.mlp.2", width, width)
    if micro:
        for name in ("csize_embedder", "ar_embedder"):
            linear(f"{name}.mlp.0", width // 3, 256)
            linear(f"{name}.mlp.2", width // 3, width // 3)
    linear("t_block.1", 6 * width, width)
    state["y_embedder.y_embedding"] = draw(7, caption)
    linear("y_embedder.y_proj.fc1", width, caption)
    linear("y_embedder.y_proj.fc2", width, width)
    for n in range(depth):
        block = f"blocks.{n}"
        state[f"{block}.scale_shift_table"] = draw(6, width) * width**-0.5
        linear(f"{block}.attn.qkv", 3 * width, width)
        linear(f"{block}.attn.proj", width, width)
        if ratios and n in ratios:
            state[f"{block}.attn.sr.weight"] = draw(width, 1, *ratios[n]) * 0.3
            state[f"{block}.attn.sr.bias"] = draw(width) * 0.1
            state[f"{block}.attn.norm.weight"] = 1 + 0.2 * draw(width)
            state[f"{block}.attn.norm.bias"] = draw(width) * 0.1
        linear(f"{block}.cross_attn.q_linear", width, width)
        linear(f"{block}.cross_attn.kv_linear", 2 * width, width)
        linear(f"{block}.cross_attn.proj", width, width)
        linear(f"{block}.mlp.fc1", 4 * width, width)
        linear(f"{block}.mlp.fc2", width, 4 * width)
    linear("final_layer.linear", patch**2 * 8, width)
    state["final_layer.scale_shift_table"] = draw(2, width) * width**-0.5
    return state


def positions(width: int, side: int, scale: float) -> Tensor:
    """The paper's sine and cosine embedding [1, side², width], in double precision and plainly:
    half of the channels for the column, half for the row.
    """
    quarter = width // 4
    speed = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    at = torch.arange(side, dtype=torch.float64) / scale
    axis = torch.cat([(at[:, None] * speed).sin(), (at[:, None] * speed).cos()], dim=1)
    column = axis[None].expand(side, side, -1)
    row = axis[:, None].expand(side, side, -1)
    return torch.cat([column, row], dim=-1).reshape(1, side * side, width).float()


class _Draw:
    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator)
