"""`W2SD`: weak-to-strong diffusion with reflection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from w2sdiff.edits.base import Edit, Edits
from w2sdiff.errors import InputError
from w2sdiff.forms import is_whole
from w2sdiff.methods.base import METHODS, Eval, Method, Step, Steps, Window, role_evaluations

if TYPE_CHECKING:
    import torch

Inversion = Literal["exact", "reference"]


@METHODS.register
@dataclass(frozen=True)
class W2SD(Method):
    """Reflect: step down with the strong model, back up with the weak one, then take the real step.

    Bai, Sugiyama, Xie 2025, arXiv 2502.00473, Algorithm 1. With first-order moves the reflected
    latents are x' = x + h (strong(x) - weak(x_down)), so to first order a step is one with base +
    times (strong - weak): AutoGuidance at scale 1 + times when base = strong. Compare at equal
    strength and at equal evaluations.

    Args:
        strong: edits of the strong model; None: the pipeline as called.
        weak: edits of the weak model; None: the pipeline as called.
        base: edits of the model that takes the real step; None: the pipeline as called, and so not
            `strong`.
        window: which steps reflect; by default all but the last, as in the paper's quality tables.
        times: reflections per step, at least 1.
        inversion: "exact" undoes a step of equal predictions exactly; "reference" inverts one noise
            level off, as the published code does (its inverse scheduler takes the target timestep,
            and is given the source).
        weak_time: timestep the weak model is told: "this" step's, as in the paper (Eq. 5) and its
            code, or the "next" one's, the level its input really is at.

    Cost: a reflected step adds `times` strong and weak evaluations, each of 1 or 2 branches.

    Raises:
        InputError: `times` below 1, or an unknown word for `inversion` or `weak_time`.
        UnsupportedError: while running, if the scheduler has no first-order path to reflect along.

    Example:
        >>> from w2sdiff import Guidance, Lora
        >>> cond = Guidance(1.0)
        >>> pair = W2SD(strong=cond | Lora("dpo", 0.8), weak=cond | Lora("dpo", -1.5))
        >>> pair.cost(num_inference_steps=50, guidance_scale=5.5)
        198
    """

    kind = "w2sd"
    strong: Edit | Edits | None = None
    weak: Edit | Edits | None = None
    base: Edit | Edits | None = None
    window: Window = Window()
    times: int = 1
    inversion: Inversion = "exact"
    weak_time: Literal["this", "next"] = "this"

    def __post_init__(self) -> None:
        """Check the options."""
        self._normalise_roles()
        if not is_whole(self.times) or self.times < 1:
            raise InputError(
                f"times is the number of reflections per step, at least 1; got {self.times!r}."
            )
        if self.inversion not in ("exact", "reference"):
            raise InputError(f"inversion is 'exact' or 'reference', got {self.inversion!r}.")
        if self.weak_time not in ("this", "next"):
            raise InputError(f"weak_time is 'this' or 'next', got {self.weak_time!r}.")

    def steps(self, step: Step) -> Steps:
        """Algorithm 1 of the paper."""
        x = step.x
        if step.in_window:
            time = step.this if self.weak_time == "this" else step.next
            for _ in range(self.times):
                strong = yield Eval(x, "strong", at=step.this)
                down = step.move(x, strong, at=step.this, to=step.next)
                weak = yield Eval(down, "weak", at=step.next, time=time)
                x = self._up(step, down, weak)
        return (yield Eval(x, "base", at=step.this)), x

    def _up(self, step: Step, down: torch.Tensor, weak: torch.Tensor) -> torch.Tensor:
        if self.inversion == "reference":
            return step.invert_as_published(down, weak)
        return step.move(down, weak, at=step.next, to=step.this)

    def evaluations(self, in_window: bool, guidance_scale: float) -> int:
        """The base role's, and the pair's in the window."""
        strong, weak, base = (
            role_evaluations(role, guidance_scale) for role in self.roles.values()
        )
        return base + (self.times * (strong + weak) if in_window else 0)
