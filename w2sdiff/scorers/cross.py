"""The cross-attention transformer that MPS puts between CLIP's two towers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from w2sdiff.scorers.tensors import count_layers, part

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["cross_transformer"]


def cross_transformer(
    tensors: Mapping[str, Tensor], pixels: Tensor, words: Tensor, keep: Tensor
) -> Tensor:
    """Patch features [n, p, d] after they have looked at the word features [n, w, d].

    Every layer is x + cross(x, words), then x + self(x); each of the two computes attention and a
    gated feed-forward side by side from one layer norm (as PaLM does, Chowdhery et al. 2022), with
    many heads for the queries and a single one for keys and values. Positions enter the
    self-attention by rotation, over the patches in order, [CLS] first.

    Args:
        tensors: the published ones, `layers.*`; the layer norms have a weight and no bias.
        pixels: [n, p, d].
        words: [n, w, d].
        keep: [n, w], true where a word may be looked at.

    Raises:
        InputError: a tensor is not there.
    """
    for number in range(count_layers(tensors, r"layers\.(\d+)\.")):
        layer = part(tensors, f"layers.{number}.")
        pixels = pixels + _cross(part(layer, "0.fn."), pixels, words, keep)
        pixels = pixels + _self(part(layer, "1.fn."), pixels)
    return pixels


def _cross(t: Mapping[str, Tensor], x: Tensor, words: Tensor, keep: Tensor) -> Tensor:
    from torch.nn.functional import linear

    x = _norm(t, x)
    key, value = linear(words, t["to_kv.weight"]).chunk(2, dim=-1)
    query = _heads(linear(x, t["to_q.weight"]), key.shape[-1])
    seen = _attend(query, key, value, keep)
    gated = _gate(linear(x, t["ff.0.weight"]))
    return linear(seen, t["to_out.weight"]) + linear(gated, t["ff.2.weight"])


def _self(t: Mapping[str, Tensor], x: Tensor) -> Tensor:
    from torch import split
    from torch.nn.functional import linear

    # One matrix makes queries of all heads, one key, one value, and both halves of the gate.
    queries, width = t["attn_out.weight"].shape[1], t["ff_out.1.weight"].shape[1]
    fused = t["fused_attn_ff_proj.weight"]
    head = (fused.shape[0] - queries - 2 * width) // 2
    query, key, value, hidden = split(
        linear(_norm(t, x), fused), [queries, head, head, 2 * width], dim=-1
    )
    seen = _attend(_rotate(_heads(query, head)), _rotate(key), value)
    return linear(seen, t["attn_out.weight"]) + linear(_gate(hidden), t["ff_out.1.weight"])


def _norm(t: Mapping[str, Tensor], x: Tensor) -> Tensor:
    from torch.nn.functional import layer_norm

    return layer_norm(x, x.shape[-1:], t["norm.weight"])


def _gate(x: Tensor) -> Tensor:
    from torch.nn.functional import silu

    value, gate = x.chunk(2, dim=-1)
    return silu(gate) * value


def _heads(x: Tensor, width: int) -> Tensor:
    """[n, p, h*c] to [n, h, p, c]."""
    return x.reshape(*x.shape[:2], -1, width).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None = None) -> Tensor:
    """Attention of many query heads [n, h, p, c] to one key and value head [n, w, c]."""
    weights = query @ key[:, None].mT / key.shape[-1] ** 0.5
    if keep is not None:
        weights = weights.masked_fill(~keep[:, None, None], -float("inf"))
    seen: Tensor = weights.softmax(-1) @ value[:, None]
    return seen.transpose(1, 2).flatten(2)


def _rotate(x: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021) on [..., p, c], base 10,000, halves paired."""
    import torch

    half = x.shape[-1] // 2
    rate = 10000 ** (-torch.arange(half, device=x.device) / half)
    angle = torch.arange(x.shape[-2], device=x.device)[:, None] * rate
    first, second = x[..., :half], x[..., half:]
    return torch.cat(
        (first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()), -1
    )
