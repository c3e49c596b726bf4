"""HunyuanDiT: queries and keys are normalised and rotated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from w2sdiff.attention.hosts.base import HOSTS, Processor, heads, normed
from w2sdiff.errors import UnsupportedError


@HOSTS.register
class Hunyuan(Processor):
    """`HunyuanDiT2DModel`: LayerNorm per head, then a two-axis rotary embedding."""

    kind = "HunyuanDiT2DModel"
    stocks = ("HunyuanAttnProcessor2_0", "FusedHunyuanAttnProcessor2_0")

    @classmethod
    def layers(cls, denoiser: Any) -> list[list[Any]]:
        """`attn1`; `attn2` attends to the text."""
        return [[block.attn1] for block in denoiser.blocks]

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Tensor:
        """Attend to n compressed tokens, each at its cell's centre."""
        if self.off:
            stock: Tensor = self.stock(
                *(attn, hidden_states, encoder_hidden_states, attention_mask, temb),
                image_rotary_emb=image_rotary_emb,
            )
            return stock
        from diffusers.models.embeddings import apply_rotary_emb

        if attention_mask is not None:
            raise UnsupportedError("Compressed attention in HunyuanDiT takes no attention_mask.")
        self.check_image_only(hidden_states)
        q, k, v = self.query_key_value(attn, hidden_states)
        q, k = normed(attn.norm_q, heads(q, attn)), normed(attn.norm_k, heads(k, attn))
        if image_rotary_emb is not None:
            q = apply_rotary_emb(q, image_rotary_emb, sequence_dim=1)
            k = apply_rotary_emb(k, self.rotary(attn, *image_rotary_emb), sequence_dim=1)
        out: Tensor = attn.to_out[1](attn.to_out[0](self.attend(q, k, heads(v, attn))))
        return out / float(attn.rescale_output_factor)
