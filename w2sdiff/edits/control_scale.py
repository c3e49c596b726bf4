"""`ControlScale(scale)`: another strength of the ControlNet for one role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from w2sdiff.edits.base import EDITS, Context, Edit
from w2sdiff.edits.scales import Scales, one_each, scales, scales_of_text
from w2sdiff.errors import InputError, UnsupportedError

# What every ControlNet pipeline of diffusers calls its scale, in its arguments and in its loop.
VARIABLE = "controlnet_conditioning_scale"


@EDITS.register
@dataclass(frozen=True)
class ControlScale(Edit):
    """control-scale=X        ControlNet at this conditioning scale; X+Y: one for each of several.

    The pipeline pair of W2SD (Bai et al. 2025, arXiv 2502.00473, figure 10): the same network
    with and without control. The role's loop reads this number in the place of the call's
    `controlnet_conditioning_scale`, so that everything the pipeline does with it (the steps at
    which control begins and ends, guess mode, several ControlNets) is done with this one.

    Args:
        scale: the conditioning scale, any finite number, or one for each ControlNet; 0 computes the
            ControlNet in vain, see `NoControl`.

    Cost: no evaluation. Evaluations are counted for the denoiser; the ControlNet runs once more for
    every one of them.

    Raises:
        InputError: a scale is not a finite number.
        UnsupportedError: while running, if the pipeline's loop reads no such scale, or another
            number of ControlNets than scales.

    Example:
        >>> from w2sdiff import W2SD
        >>> W2SD(weak=ControlScale(0.2)).weak
        ControlScale(scale=0.2)
    """

    kind = "control-scale"
    scale: Scales

    def __post_init__(self) -> None:
        """Check the scale."""
        object.__setattr__(self, "scale", scales(self.scale, "ControlNet scale"))

    @classmethod
    def from_text(cls, argument: str | None, value: str) -> ControlScale:
        """`control-scale=0.5`, `control-scale=0.5+0`."""
        if argument is not None:
            raise InputError(f"Write control-scale=X; 'control-scale:{argument}' means nothing.")
        return cls(scales_of_text(value, "ControlNet scale"))

    def variables(self, loop: Mapping[str, Any], context: Context) -> dict[str, Any]:
        """The scale in the form in which the loop has it: one number, or a list."""
        if VARIABLE not in loop:
            raise UnsupportedError(
                f"{type(context.pipe).__name__} reads no {VARIABLE} in its loop: "
                "ControlScale needs a pipeline with a ControlNet."
            )
        called = loop[VARIABLE]
        if isinstance(called, list):
            return {VARIABLE: one_each(self.scale, len(called), "ControlNets")}
        return {VARIABLE: one_each(self.scale, 1, "ControlNet")[0]}
