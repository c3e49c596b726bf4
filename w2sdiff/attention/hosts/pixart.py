"""PixArt-α and PixArt-Σ: plain self-attention, perhaps with a mask over image tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from w2sdiff.attention.hosts.base import HOSTS, Processor, heads, normed
from w2sdiff.errors import UnsupportedError


@HOSTS.register
class PixArt(Processor):
    """`PixArtTransformer2DModel`: self-attention without rotation."""

    kind = "PixArtTransformer2DModel"
    stocks = ("AttnProcessor2_0", "AttnProcessor", "FusedAttnProcessor2_0")

    @classmethod
    def layers(cls, denoiser: Any) -> list[list[Any]]:
        """`attn1`; `attn2` attends to the text."""
        return [[block.attn1] for block in denoiser.transformer_blocks]

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend to n compressed tokens."""
        if self.off:
            stock: Tensor = self.stock(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb
            )
            return stock
        self.check_image_only(hidden_states)
        bias, mask = None, None
        if attention_mask is not None:
            if attention_mask.dim() != 3 or attention_mask.shape[1] != 1:
                raise UnsupportedError(
                    "Compressed attention takes a mask over image tokens, [B, N]; this one, "
                    f"{list(attention_mask.shape)}, differs between queries."
                )
            bias = attention_mask.transpose(1, 2)  # [B, 1, N] -> [B, N, 1]
            mask = self.bias(attn, bias).transpose(1, 2)[:, None].to(hidden_states.dtype)
        q, k, v = self.query_key_value(attn, hidden_states, bias=bias)
        q, k, v = (
            normed(attn.norm_q, heads(q, attn)),
            normed(attn.norm_k, heads(k, attn)),
            heads(v, attn),
        )
        if mask is not None:
            mask = mask.expand(-1, attn.heads, q.shape[1], -1)  # kernels want whole shapes
        out: Tensor = attn.to_out[1](attn.to_out[0](self.attend(q, k, v, mask)))
        return out / float(attn.rescale_output_factor)
