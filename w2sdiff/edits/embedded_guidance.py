"""`EmbeddedGuidance(scale)`: another scale told to a guidance-distilled network for one role."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from w2sdiff.edits.base import EDITS, Context, Edit
from w2sdiff.edits.guidance import embedded_scale, number
from w2sdiff.edits.no_control import controlnets
from w2sdiff.edits.swap import Answer, swap
from w2sdiff.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    import torch


@EDITS.register
@dataclass(frozen=True)
class EmbeddedGuidance(Edit):
    """embedded-guidance=W    the scale that a guidance-distilled network is told (FLUX.1-dev).

    Guidance distillation (Meng et al. 2023, arXiv 2210.03142) makes the scale an input of the
    network: `guidance` of FLUX, HunyuanVideo and SANA-Sprint, `timestep_cond` of latent consistency
    models. Where it is a network's only guidance, `Guidance` means the same; where a pipeline also
    mixes two branches (FLUX with `true_cfg_scale`), `Guidance` is that mix and this is the input.

    Args:
        scale: any finite number.

    Cost: no evaluation.

    Raises:
        InputError: the scale is not a finite number.
        UnsupportedError: while running, if the network takes no scale.

    Example:
        >>> from w2sdiff import W2SD
        >>> W2SD(weak=EmbeddedGuidance(1.5)).weak
        EmbeddedGuidance(scale=1.5)
    """

    kind = "embedded-guidance"
    scale: float

    def __post_init__(self) -> None:
        """Check the scale."""
        object.__setattr__(self, "scale", number(self.scale, "embedded guidance scale"))

    @classmethod
    def from_text(cls, argument: str | None, value: str) -> EmbeddedGuidance:
        """`embedded-guidance=1.5`."""
        if argument is not None:
            raise InputError(
                f"Write embedded-guidance=W; 'embedded-guidance:{argument}' means nothing."
            )
        return cls(number(value, "embedded guidance scale"))

    def networks(self, context: Context) -> list[Any]:
        """The ControlNet."""
        return controlnets(context.pipe)

    def enter(self, context: Context) -> Callable[[], None] | None:
        """Tell a guidance-distilled ControlNet the same (FLUX)."""
        return swap(controlnets(context.pipe), _telling(self.scale), in_this_thread=True)

    def inputs(self, kwargs: dict[str, Any], context: Context) -> dict[str, Any]:
        """Rewrite the scale, in the form in which the network takes it."""
        guidance, condition = kwargs.get("guidance"), kwargs.get("timestep_cond")
        if guidance is not None:
            return {**kwargs, "guidance": embedded_scale(guidance, self.scale, context)}
        if condition is not None and hasattr(context.pipe, "get_guidance_scale_embedding"):
            return {**kwargs, "timestep_cond": self._embedding(condition, context.pipe)}
        raise UnsupportedError(
            "EmbeddedGuidance needs a network that is told its guidance scale, and "
            f"{type(context.pipe).__name__} tells its network none. Use Guidance."
        )

    def _embedding(self, called: torch.Tensor, pipe: Any) -> torch.Tensor:
        """As diffusers 0.42 makes it of a scale, for latent consistency models."""
        import torch

        # In float32, as diffusers (0.42) has it: 1000 times this goes into a sine.
        w = torch.tensor([self.scale - 1] * len(called), dtype=torch.float32)
        made: torch.Tensor = pipe.get_guidance_scale_embedding(w, embedding_dim=called.shape[-1])
        return made.to(called)


@cache
def _telling(scale: float) -> Answer:
    """A call of a ControlNet that takes a scale gets this one."""

    def answer(call: Answer, controlnet: Any, *args: Any, **kwargs: Any) -> Any:
        del controlnet
        if kwargs.get("guidance") is not None:
            kwargs["guidance"] = kwargs["guidance"].new_full(kwargs["guidance"].shape, scale)
        return call(*args, **kwargs)

    return answer
