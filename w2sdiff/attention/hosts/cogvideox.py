"""CogVideoX: text and video in one attention; space is compressed, frames are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from w2sdiff.attention.hosts.base import HOSTS, Plane, Processor, heads, normed
from w2sdiff.errors import UnsupportedError


@HOSTS.register
class CogVideoX(Processor):
    """`CogVideoXTransformer3DModel`: text and video share projections; video is rotated."""

    kind = "CogVideoXTransformer3DModel"
    stocks = ("CogVideoXAttnProcessor2_0", "FusedCogVideoXAttnProcessor2_0")

    @classmethod
    def layers(cls, denoiser: Any) -> list[list[Any]]:
        """`attn1`, the only one."""
        return [[block.attn1] for block in denoiser.transformer_blocks]

    @classmethod
    def planes(cls, config: Any, arguments: Mapping[str, Any]) -> tuple[Plane, ...]:
        """[B, F, C, H, W]; version 1.5 has patches in time too."""
        frames, _, height, width = arguments["hidden_states"].shape[1:]
        frames = -(-frames // (config.patch_size_t or 1))
        return (Plane(frames, height // config.patch_size, width // config.patch_size),)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend to all T text tokens and n compressed ones per frame, at their cells' centres."""
        if self.off:
            stock: tuple[Tensor, Tensor] = self.stock(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
            return stock
        if attention_mask is not None:
            raise UnsupportedError("Compressed attention in CogVideoX takes no attention_mask.")
        self.check_image_only(hidden_states)
        text = encoder_hidden_states.shape[1]
        both = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        q, k, v = self.query_key_value(attn, both, text=text)
        q, k = normed(attn.norm_q, heads(q, attn)), normed(attn.norm_k, heads(k, attn))
        if image_rotary_emb is not None:
            q = _rotate_image(q, image_rotary_emb, text)
            k = _rotate_image(k, self.rotary(attn, *image_rotary_emb), text)
        out = attn.to_out[1](attn.to_out[0](self.attend(q, k, heads(v, attn))))
        return out[:, text:], out[:, :text]


def _rotate_image(x: Tensor, tables: Any, text: int) -> Tensor:
    from diffusers.models.embeddings import apply_rotary_emb

    return torch.cat([x[:, :text], apply_rotary_emb(x[:, text:], tables, sequence_dim=1)], dim=1)
