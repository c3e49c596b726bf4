"""`Guidance(scale)`: another classifier-free guidance scale for one role."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from w2sdiff.edits.base import BOTH, COND, EDITS, UNCOND, Context, Edit, Halves
from w2sdiff.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    import torch

NEAR_ONE = 0.01  # scales of a pipeline this close to 1 are not divided by


@EDITS.register
@dataclass(frozen=True)
class Guidance(Edit):
    """guidance=W            classifier-free guidance at scale W (1: conditional, 0: unconditional).

    The pipeline goes on mixing with its own scale s. To obtain scale w the conditional prediction c
    stays and the unconditional one becomes u' = c + r (u - c), r = (1 - w)/(1 - s): then u' + s (c
    - u') = u + w (c - u). Since c does not change, whatever the pipeline does with it afterwards
    (guidance rescale, norms, learned sigma) is what it would be at w. Networks with an embedded
    scale (FLUX without true CFG) get w as that input.

    Args:
        scale: w, any finite number; negative values are allowed.

    Perturbed-attention and skip-layer guidance are added to the mix as before, by the pipeline: at
    any w the prediction is u + w (c - u) + k (c - p), p without the attention or the layers.

    Cost: 1 evaluation at w = 1 and (where c has no other use, such as a rescale) at w = 0,
    otherwise 2; 1 for embedded guidance; one more for such a p.

    Raises:
        InputError: the scale is not a finite number.
        UnsupportedError: while running, if the pipeline runs without guidance and w is not 1.

    Example:
        >>> Guidance(1.0) | Guidance.from_text(None, "1")
        Traceback (most recent call last):
            ...
        w2sdiff.errors.InputError: Two edits of the kind 'guidance' in one role; keep one: ...
    """

    kind = "guidance"
    scale: float

    def __post_init__(self) -> None:
        """Check the scale."""
        object.__setattr__(self, "scale", number(self.scale, "guidance scale"))

    @classmethod
    def from_text(cls, argument: str | None, value: str) -> Guidance:
        """`guidance=1.5`."""
        if argument is not None:
            raise InputError(f"Write guidance=W; 'guidance:{argument}' means nothing.")
        return cls(number(value, "guidance scale"))

    def needs(self, context: Context) -> Halves | None:
        """Only the half that is really mixed in."""
        if context.embedded or context.guidance_scale is None:
            return None
        if self.scale == 1:
            return COND
        if self.scale == 0 and not context.rescales:
            return UNCOND
        return BOTH

    def inputs(self, kwargs: dict[str, Any], context: Context) -> dict[str, Any]:
        """Rewrite an embedded scale; complain where there is no guidance to change."""
        if context.guidance_scale is not None:
            return kwargs
        if context.embedded:
            return {**kwargs, "guidance": embedded_scale(kwargs["guidance"], self.scale, context)}
        if self.scale == 1:
            return kwargs  # without guidance the pipeline already is its conditional branch
        raise UnsupportedError(
            f"Guidance({self.scale:g}) needs a pipeline that runs with guidance on, "
            "but it is off at this step. "
            "Call the pipeline with a guidance scale above 1 "
            "(FLUX: true_cfg_scale and a negative_prompt), "
            "or use a pair that does not touch guidance."
        )

    def halves(
        self, c: torch.Tensor | None, u: torch.Tensor | None, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the pair whose mix at the pipeline's scale is the mix at ours."""
        if u is None:
            assert c is not None
            return c, c
        if c is None:
            return u, u
        s = context.guidance_scale
        if s is None or s == self.scale:
            return c, u
        if abs(1 - s) < NEAR_ONE and not context.rescales:
            # CogVideoX's dynamic guidance comes down to 1, where u hardly counts and u' would have
            # to be huge: both halves are the mix, which is then the mix at any scale.
            mix = u + self.scale * (c - u)
            return mix, mix
        r = (1 - self.scale) / (1 - s)
        return c, c + r * (u - c)


def embedded_scale(called: torch.Tensor, scale: float, context: Context) -> torch.Tensor:
    """`scale` as the input of a guidance-distilled network, in the place of `called`.

    Hunyuan's pipelines multiply it by 1000 beforehand, SANA-Sprint's by a number of the network's
    configuration (diffusers 0.42); all others hand it over as it is.
    """
    import torch

    denoiser = context.pipe.__dict__[context.denoisers[0]]
    network = getattr(denoiser, "_orig_mod", denoiser)
    factor = network.config.get("guidance_embeds_scale", 1.0)
    if type(network).__name__.startswith(("HunyuanVideo", "HunyuanImage")):
        factor = 1000.0
    return torch.full_like(called, scale * factor)


def number(value: object, what: str) -> float:
    """`value` as a finite float, or an InputError that names `what`."""
    try:
        result = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"The {what} must be a number, got {value!r}.") from None
    if not math.isfinite(result):
        raise InputError(f"The {what} must be finite, got {value!r}.")
    return result
