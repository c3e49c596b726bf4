"""`NoControl()`: one role without the ControlNet, which is not computed either."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from w2sdiff.edits.base import EDITS, Context, Edit
from w2sdiff.edits.swap import swap
from w2sdiff.errors import InputError, UnsupportedError

# What diffusers' denoisers call the residuals they are given; None is their default.
RESIDUALS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "block_controlnet_hidden_states",
    "controlnet_block_samples",
    "controlnet_single_block_samples",
)


@EDITS.register
@dataclass(frozen=True)
class NoControl(Edit):
    """no-control=1           without the ControlNet, which is not computed.

    The pipeline pair of W2SD (Bai et al. 2025, arXiv 2502.00473, figure 10). The same prediction
    as `ControlScale(0)`, for less: the ControlNet is not called and the denoiser gets no residuals.

    Cost: no evaluation of the denoiser, and the ControlNet's is saved (it is not among those that
    are counted).

    Raises:
        UnsupportedError: while running, if the pipeline has no ControlNet.

    Example:
        >>> from w2sdiff import W2SD
        >>> W2SD(weak=NoControl()).weak
        NoControl()
    """

    kind = "no-control"

    @classmethod
    def from_text(cls, argument: str | None, value: str) -> NoControl:
        """`no-control=1`; the grammar wants a value everywhere."""
        if argument is not None or value != "1":
            raise InputError("Write no-control=1; for a part of the control, control-scale=X.")
        return cls()

    def networks(self, context: Context) -> list[Any]:
        """The ControlNet."""
        return controlnets(context.pipe)

    def enter(self, context: Context) -> Callable[[], None] | None:
        """Silence the ControlNet; the returned function lets it speak again."""
        controlnet = context.pipe.__dict__.get("controlnet")
        if controlnet is not None:
            return swap([controlnet], _nothing, in_this_thread=True)
        if any(_is_xs(context.pipe.__dict__[name]) for name in context.denoisers):
            return None
        raise UnsupportedError(
            f"{type(context.pipe).__name__} has no ControlNet, so NoControl would change nothing."
        )

    def inputs(self, kwargs: dict[str, Any], context: Context) -> dict[str, Any]:
        """Without residuals; a ControlNet-XS, which sits inside the network, is switched off."""
        del context
        without: dict[str, Any] = {name: None for name in RESIDUALS if name in kwargs}
        if "apply_control" in kwargs:
            without["apply_control"] = False
        return {**kwargs, **without}


def controlnets(pipe: Any) -> list[Any]:
    """The module that stands for the pipeline's ControlNets, if it has any."""
    found = pipe.__dict__.get("controlnet")
    return [] if found is None else [found]


def _is_xs(denoiser: Any) -> bool:
    return "ControlNetXS" in type(getattr(denoiser, "_orig_mod", denoiser)).__name__


def _nothing(call: Any, controlnet: Any, *args: Any, **kwargs: Any) -> Any:
    """What no pipeline stumbles over before `inputs` drops it: no blocks, and a middle of zeros.

    In guess mode pipelines put zeros before both for the unconditional half.
    """
    del call, controlnet, args, kwargs
    import torch

    return (), torch.zeros(1, 1, 1, 1)
