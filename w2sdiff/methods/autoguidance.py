"""`AutoGuidance`: extrapolate from a weak model through a strong one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from w2sdiff.edits.base import Edit, Edits
from w2sdiff.edits.guidance import number
from w2sdiff.methods.base import METHODS, Eval, Method, Step, Steps, Window, role_evaluations


@METHODS.register
@dataclass(frozen=True)
class AutoGuidance(Method):
    """Step with weak + scale (strong - weak), both at the same x and under the same conditions.

    Karras et al. 2024, arXiv 2406.02507, Eq. 2. With a base: base + (scale - 1) (strong - weak),
    which keeps classifier-free guidance in the base and adds the pair's difference to it.

    Args:
        strong: edits of the strong model; None: the pipeline as called.
        weak: edits of the weak model; None: the pipeline as called.
        scale: 0 weak, 1 strong, 2 one difference beyond; any finite number, default 2.
        base: edits of the base model; None: the two-model form; `Edits()`: the pipeline as called.
        window: which steps are guided, by default all; the others step with base, or with strong.

    Cost: one strong and one weak evaluation a step, and one of the base if there is one; at scale 1
    only strong (or base) runs.

    Raises:
        InputError: the scale is not a finite number.

    Example:
        >>> from w2sdiff import Guidance
        >>> method = AutoGuidance(strong=Guidance(1.0), weak=Guidance(0.0), scale=3.0)
        >>> method.cost(num_inference_steps=50, guidance_scale=5.5)
        100
    """

    kind = "autoguidance"
    strong: Edit | Edits | None = None
    weak: Edit | Edits | None = None
    scale: float = 2.0
    base: Edit | Edits | None = None
    window: Window = Window(last=True)

    def __post_init__(self) -> None:
        """Check the scale."""
        self._normalise_roles()
        object.__setattr__(self, "scale", number(self.scale, "AutoGuidance scale"))

    def steps(self, step: Step) -> Steps:
        """Equation 2 of the paper, or its form with a base."""
        x = step.x
        if not step.in_window or self.scale == 1:
            return (yield Eval(x, "strong" if self.base is None else "base", at=step.this)), x
        strong: Any = yield Eval(x, "strong", at=step.this)
        weak: Any = yield Eval(x, "weak", at=step.this)
        if self.base is None:
            return weak.lerp(strong, self.scale), x
        base: Any = yield Eval(x, "base", at=step.this)
        return base + (self.scale - 1) * (strong - weak), x

    def evaluations(self, in_window: bool, guidance_scale: float) -> int:
        """The pair's in the window; strong's or base's alone outside."""
        strong, weak, base = (
            role_evaluations(role, guidance_scale) for role in self.roles.values()
        )
        alone = strong if self.base is None else base
        if not in_window or self.scale == 1:
            return alone
        return strong + weak + (0 if self.base is None else base)
