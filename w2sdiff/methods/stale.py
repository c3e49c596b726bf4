"""`StaleGuidance`: guidance whose unconditional half is computed every few steps only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from w2sdiff.edits.base import BOTH, COND, Context, Edit, Edits, Halves
from w2sdiff.errors import InputError, UnsupportedError
from w2sdiff.forms import is_whole
from w2sdiff.methods.base import METHODS, Eval, Method, Step, Steps, Window, role_evaluations
from w2sdiff.methods.core2 import no_guidance

if TYPE_CHECKING:
    import torch


@METHODS.register
@dataclass(frozen=True)
class StaleGuidance(Method):
    """Plain guidance that makes its unconditional prediction every few steps, and keeps it between.

    The training-free way to save evaluations, and so the rival of a noise model (`Core2`). Dinh et
    al. 2024, arXiv 2408.11194, do the same to the guided steps of a run.

    Args:
        every: the first step and every so many after it compute both halves; 1 is plain guidance.
        base: edits of the network; None: the pipeline as called.

    Cost: 2 evaluations on the steps that refresh, 1 on the others.

    Raises:
        InputError: `every` below 1, or a base with `Guidance` of its own.
        UnsupportedError: while running, if guidance is switched on in the middle of a run.

    Example:
        >>> StaleGuidance(every=2).cost(num_inference_steps=20, guidance_scale=3.0)
        30
    """

    kind = "stale"
    every: int = 2
    base: Edit | Edits | None = None

    def __post_init__(self) -> None:
        """Check the number."""
        self._normalise_roles()
        if not is_whole(self.every) or self.every < 1:
            raise InputError(f"every is a number of steps, at least 1; got {self.every!r}.")
        no_guidance(self.base, "StaleGuidance")

    @property
    def window(self) -> Window:  # type: ignore[override]
        """The steps that refresh."""
        return Window(when=lambda step, _: step % self.every == 0)

    @property
    def reach(self) -> Window:
        """All steps, whichever way they go."""
        return Window(last=True)

    @property
    def roles(self) -> dict[str, Edits | None]:
        """Both halves, the unconditional one kept, as strong; the kept one again as weak."""
        base = Edits.of(self.base)
        fresh, stale = ((base or Edits()) | _Unconditional(fresh=fresh) for fresh in (True, False))
        return {"strong": fresh, "weak": stale, "base": base}

    def steps(self, step: Step) -> Steps:
        """Choose the role."""
        return (yield Eval(step.x, "strong" if step.in_window else "weak", at=step.this)), step.x

    def evaluations(self, in_window: bool, guidance_scale: float) -> int:
        """Both halves in the window, the conditional one outside."""
        return role_evaluations(self.roles["strong" if in_window else "weak"], guidance_scale)


@dataclass(frozen=True)
class _Unconditional(Edit):
    """The unconditional half: computed and kept, or what was kept."""

    kind = "unconditional"
    fresh: bool

    def needs(self, context: Context) -> Halves | None:
        """Both, or the conditional half; without guidance there is nothing to keep."""
        if context.guidance_scale is None:
            return None
        return BOTH if self.fresh else COND

    def halves(
        self, c: torch.Tensor | None, u: torch.Tensor | None, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The pipeline's own mix does the rest."""
        assert c is not None
        if u is not None:
            context.keep_in_call(self.kind, u)
            return c, u
        kept: torch.Tensor | None = context.kept_in_call(self.kind)
        if kept is None:
            raise UnsupportedError(
                "Guidance was switched on at a step that does not compute the unconditional half, "
                "and none was kept; call the pipeline with guidance on from the first step."
            )
        return c, kept
