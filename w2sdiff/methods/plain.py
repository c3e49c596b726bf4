"""`Plain`: the pipeline's own sampling, through the same driver as everything else."""

from __future__ import annotations

from dataclasses import dataclass

from w2sdiff.edits.base import Edit, Edits
from w2sdiff.methods.base import METHODS, Eval, Method, Step, Steps, role_evaluations


@METHODS.register
@dataclass(frozen=True)
class Plain(Method):
    """One evaluation and one step: what the pipeline does by itself, bit for bit.

    Args:
        base: edits worn at every step; None: the pipeline exactly as called.

    Cost: 1 evaluation a step, 2 with classifier-free guidance.

    Example:
        >>> Plain().cost(num_inference_steps=50, guidance_scale=5.5)
        100
    """

    kind = "plain"
    base: Edit | Edits | None = None

    def __post_init__(self) -> None:
        """Normalise the role."""
        self._normalise_roles()

    def steps(self, step: Step) -> Steps:
        """Evaluate once."""
        return (yield Eval(step.x, "base", at=step.this)), step.x

    def evaluations(self, in_window: bool, guidance_scale: float) -> int:
        """The base role's."""
        del in_window
        return role_evaluations(self.roles["base"], guidance_scale)
