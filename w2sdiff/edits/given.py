"""What the network was given at a request, as a noise model reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from w2sdiff.core2.noise_model import Given

if TYPE_CHECKING:
    from torch import Tensor

    from w2sdiff.edits.base import Inputs, Request

# Where diffusers' denoisers take their token embeddings, their mask and their pooled embedding.
_TEXT = ("encoder_hidden_states",)
_MASK = ("encoder_attention_mask", "encoder_hidden_states_mask", "text_embedding_mask")
_POOLED = ("pooled_projections",)  # SDXL's is in added_cond_kwargs


def given_of(request: Request, channels: int, *, reference: bool = False) -> Given:
    """Read a request.

    Args:
        request: the evaluation in hand.
        channels: of the prediction; a network may take more (masks, images) and predict more (a
            variance).
        reference: see `Given`.
    """
    conditional, unconditional = request.branch("c"), request.branch("u")
    assert conditional is not None
    levels = request.levels()
    x = conditional.sample
    return Given(
        x=x if x.ndim < 4 or x.shape[1] == channels else x[:, :channels],
        alpha=float(levels.alpha[request.at]),
        sigma=float(levels.sigma[request.at]),
        text=_tensor(conditional, _TEXT),
        mask=_mask(conditional),
        negative=_tensor(unconditional, _TEXT),
        pooled=_pooled(conditional),
        negative_pooled=_pooled(unconditional),
        positions=_positions(conditional),
        step=request.step,
        num_steps=request.num_steps,
        reference=reference,
    )


def predicted_channels(request: Request, c: Tensor) -> int:
    """Channels of a prediction, without the variance that a network may append to it.

    Args:
        request: the evaluation in hand.
        c: [B, C, ...] what the network says.
    """
    conditional = request.branch("c")
    assert conditional is not None
    if c.ndim < 4:
        return c.shape[-1]
    given = conditional.sample.shape[1]
    return given if c.shape[1] == 2 * given else c.shape[1]


def _tensor(inputs: Inputs | None, names: tuple[str, ...]) -> Tensor | None:
    import torch

    found: list[Any] = [] if inputs is None else [inputs.kwargs.get(name) for name in names]
    return next((value for value in found if torch.is_tensor(value)), None)


def _mask(inputs: Inputs) -> Tensor | None:
    mask = _tensor(inputs, _MASK)
    return None if mask is None or mask.ndim != 2 else mask


def _pooled(inputs: Inputs | None) -> Tensor | None:
    found = _tensor(inputs, _POOLED)
    if found is not None or inputs is None:
        return found
    added = inputs.kwargs.get("added_cond_kwargs") or {}
    pooled: Tensor | None = added.get("text_embeds")
    return pooled


def _positions(inputs: Inputs) -> Tensor | None:
    """Row and column of each token where the latents are packed: [N, 2] (FLUX)."""
    ids = _tensor(inputs, ("img_ids",))
    if ids is None or inputs.sample.ndim != 3:
        return None
    ids = ids[0] if ids.ndim == 3 else ids
    return ids[: inputs.sample.shape[1], -2:]
