"""Wan: video; space is compressed, frames are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from w2sdiff.attention.hosts.base import HOSTS, Plane, Processor, heads
from w2sdiff.errors import UnsupportedError


@HOSTS.register
class Wan(Processor):
    """`WanTransformer3DModel`: norms over all heads, then a three-axis rotary embedding."""

    kind = "WanTransformer3DModel"
    stocks = ("WanAttnProcessor",)

    @classmethod
    def layers(cls, denoiser: Any) -> list[list[Any]]:
        """`attn1`; `attn2` attends to the text."""
        return [[block.attn1] for block in denoiser.blocks]

    @classmethod
    def planes(cls, config: Any, arguments: Mapping[str, Any]) -> tuple[Plane, ...]:
        """[B, C, F, H, W] in patches of (t, h, w)."""
        sizes = arguments["hidden_states"].shape[2:]
        frames, height, width = (
            size // patch for size, patch in zip(sizes, config.patch_size, strict=True)
        )
        return (Plane(frames, height, width),)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        """Attend to n compressed tokens per frame, each at its cell's centre."""
        if self.off:
            stock: Tensor = self.stock(
                attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb
            )
            return stock
        if attention_mask is not None:
            raise UnsupportedError("Compressed attention in Wan takes no attention_mask.")
        self.check_image_only(hidden_states)
        q, k, v = self.query_key_value(attn, hidden_states)
        q, k, v = heads(attn.norm_q(q), attn), heads(attn.norm_k(k), attn), heads(v, attn)
        if rotary_emb is not None:
            cos, sin = rotary_emb  # [1, N, 1, D]
            places = self.rotary(attn, cos[0, :, 0], sin[0, :, 0])
            q = _rotate(q, cos, sin)
            k = _rotate(k, places[0][None, :, None], places[1][None, :, None])
        out: Tensor = attn.to_out[1](attn.to_out[0](self.attend(q, k, v)))
        return out


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # Wan's own rule, which diffusers has inside its processor: neighbouring channels are a pair.
    x1, x2 = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([x1 * cos - x2 * sin, x1 * sin + x2 * cos], -1).flatten(-2).type_as(x)
