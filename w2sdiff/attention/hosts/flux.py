"""FLUX: double blocks (text beside image) and single blocks (text before image), all rotated."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from w2sdiff.attention.hosts.base import HOSTS, Plane, Processor, heads, normed
from w2sdiff.attention.hosts.sd3 import added
from w2sdiff.errors import UnsupportedError


@HOSTS.register
class Flux(Processor):
    """`FluxTransformer2DModel`: layers are numbered through double and then single blocks."""

    kind = "FluxTransformer2DModel"
    stocks = ("FluxAttnProcessor",)
    one = 1.0

    @classmethod
    def layers(cls, denoiser: Any) -> list[list[Any]]:
        """`attn` of all blocks."""
        blocks = (*denoiser.transformer_blocks, *denoiser.single_transformer_blocks)
        return [[block.attn] for block in blocks]

    @classmethod
    def planes(cls, config: Any, arguments: Mapping[str, Any]) -> tuple[Plane, ...]:
        """From the position ids: FLUX gets its image as a flat sequence of patches."""
        del config
        return _grids.of(arguments["img_ids"])

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        """Attend to all T text tokens and n compressed image tokens, each at its cell's centre."""
        if self.off:
            return self.stock(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
        from diffusers.models.embeddings import apply_rotary_emb

        if attention_mask is not None:
            raise UnsupportedError("Compressed attention in FLUX takes no attention_mask.")
        single = encoder_hidden_states is None
        before = self.text_before(hidden_states) if single else 0
        if not single:
            self.check_image_only(hidden_states)
        q, k, v = self.query_key_value(attn, hidden_states, text=before)
        q, k, v = (
            normed(attn.norm_q, heads(q, attn)),
            normed(attn.norm_k, heads(k, attn)),
            heads(v, attn),
        )
        text = before
        if encoder_hidden_states is not None:
            text = encoder_hidden_states.shape[1]
            text_q, text_k, text_v = (heads(x, attn) for x in added(attn, encoder_hidden_states))
            q = torch.cat([normed(attn.norm_added_q, text_q), q], dim=1)
            k = torch.cat([normed(attn.norm_added_k, text_k), k], dim=1)
            v = torch.cat([text_v, v], dim=1)
        if image_rotary_emb is not None:
            q = apply_rotary_emb(q, image_rotary_emb, sequence_dim=1)
            cos, sin = image_rotary_emb
            k = apply_rotary_emb(k, self.rotary(attn, cos, sin, text), sequence_dim=1)
        out = self.attend(q, k, v)
        if single:
            return out
        image = attn.to_out[1](attn.to_out[0](out[:, text:].contiguous()))
        return image, attn.to_add_out(out[:, :text].contiguous())


class _Grids:
    """The grids that position ids describe; ids of the last call are remembered.

    Reading ids waits for the device, and a pipeline gives the same tensor at every step.
    """

    def __init__(self) -> None:
        self._ids: weakref.ref[Tensor] | None = None
        self._version = -1
        self._planes: tuple[Plane, ...] = ()

    def of(self, ids: Tensor) -> tuple[Plane, ...]:
        """One plane per image: Kontext appends a reference image, whose first id is another."""
        version = -1 if ids.is_inference() else ids._version
        if self._ids is None or self._ids() is not ids or self._version != version or version < 0:
            self._planes = _read(ids)
            self._ids, self._version = weakref.ref(ids), version
        return self._planes


_grids = _Grids()


def _read(ids: Tensor) -> tuple[Plane, ...]:
    table = (
        (ids[0] if ids.dim() == 3 else ids).detach().cpu().double()
    )  # [N, 3]: image, row, column
    lengths = torch.unique_consecutive(table[:, 0], return_counts=True)[1].tolist()
    planes = []
    for part in torch.split(table, lengths):
        # Counted by row starts, not by distinct rows: half precision ids repeat from 256 on.
        height = int((part[:, 2] == part[0, 2]).sum())
        width = len(part) // height
        rows, columns = part[::width, 1][:height], part[:width, 2]
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)
        if len(grid) != len(part) or not torch.equal(grid, part[:, 1:]):
            raise UnsupportedError(
                f"The {len(part)} position ids in img_ids are not the rows of a grid, so there are "
                "no cells to compress."
            )
        planes.append(Plane(1, height, width))
    return tuple(planes)
