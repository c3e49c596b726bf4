"""Stable Diffusion 3 and 3.5: image and text attend together; 3.5 has a second, image-only one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2sdiff.attention.hosts.base import HOSTS, Processor, heads, normed


@HOSTS.register
class SD3(Processor):
    """`SD3Transformer2DModel`: [image, text] in one attention; keys of the text stay whole."""

    kind = "SD3Transformer2DModel"
    stocks = ("JointAttnProcessor2_0", "FusedJointAttnProcessor2_0")

    @classmethod
    def layers(cls, denoiser: Any) -> list[list[Any]]:
        """`attn`, and `attn2` in the dual layers of 3.5."""
        blocks = denoiser.transformer_blocks
        pairs = ((block.attn, getattr(block, "attn2", None)) for block in blocks)
        return [[attn for attn in pair if attn is not None] for pair in pairs]

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Any:
        """Attend to n compressed image tokens and all T text tokens."""
        if self.off:
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask)
        self.check_image_only(hidden_states)
        q, k, v = self.query_key_value(attn, hidden_states)
        q, k, v = (
            normed(attn.norm_q, heads(q, attn)),
            normed(attn.norm_k, heads(k, attn)),
            heads(v, attn),
        )
        if encoder_hidden_states is not None:
            text_q, text_k, text_v = self._text(attn, encoder_hidden_states)
            q, k, v = (
                torch.cat([q, text_q], 1),
                torch.cat([k, text_k], 1),
                torch.cat([v, text_v], 1),
            )
        out = self.attend(q, k, v)
        image, text = out[:, : hidden_states.shape[1]], out[:, hidden_states.shape[1] :]
        image = attn.to_out[1](attn.to_out[0](image))
        if encoder_hidden_states is None:
            return image
        return image, text if attn.context_pre_only else attn.to_add_out(text)

    def _text(self, attn: Any, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (heads(x, attn) for x in added(attn, text))
        return normed(attn.norm_added_q, q), normed(attn.norm_added_k, k), v


def added(attn: Any, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The text's own projections to q, k and v, fused or not."""
    if getattr(attn, "fused_projections", False) and hasattr(attn, "to_added_qkv"):
        q, k, v = attn.to_added_qkv(text).chunk(3, dim=-1)
        return q, k, v
    return attn.add_q_proj(text), attn.add_k_proj(text), attn.add_v_proj(text)
