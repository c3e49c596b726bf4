"""`Recorded`: a method that also says, of every step, what a noise model learns from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from w2sdiff.core2.noise_model import Given
from w2sdiff.edits.base import BOTH, COND, Context, Edit, Edits, Halves, Request
from w2sdiff.edits.given import given_of, predicted_channels
from w2sdiff.errors import UnsupportedError
from w2sdiff.methods import Eval, Method, Plain, Step, Steps, real_role

if TYPE_CHECKING:
    import torch

__all__ = ["Recorded", "Take"]


@dataclass(frozen=True)
class Take:
    """One step of a batch.

    Attributes:
        c: [B, C, ...] the conditional prediction at the step's latents.
        target: same shape, the prediction that takes these latents where the method takes them.
        given: what else a noise model may look at.
        prediction: what the network predicts.
        guidance_scale: of the pipeline at this step.
    """

    c: torch.Tensor
    target: torch.Tensor
    given: Given
    prediction: str
    guidance_scale: float


class Recorded(Method):
    """Another method, recorded; the pictures stay what they are, bit for bit.

    Plain guidance is recorded for nothing: both halves pass by anyway. Of any other method the
    conditional prediction is asked for, one evaluation more per step.

    Args:
        method: what is recorded.
        steps: numbers of the steps to record; None: all.

    Example:
        >>> from w2sdiff import Guidance
        >>> list(Recorded(Plain()).roles)
        ['strong', 'weak', 'base']
    """

    kind = "recorded"

    def __init__(self, method: Method, steps: Collection[int] | None = None) -> None:
        self.method = method
        self.window = method.window
        self.wanted = steps
        self._watch = _Watch()
        self._takes: list[Take] = []
        self._done: list[list[Take]] = []
        base = real_role(method)
        # Guidance, of whatever kind, is what maps the halves; what is left is the network itself.
        network = Edits(tuple(edit for edit in base if not edit.maps_halves))
        self._plain = isinstance(method, Plain) and base == network
        if self._plain:
            self._roles = {**method.roles, "base": base | self._watch}
        else:
            conditional = _Watch(conditional=True, seen=self._watch.seen)
            self._roles = {**method.roles, "conditional": network | conditional}

    @property
    def roles(self) -> dict[str, Edits | None]:
        """The method's, and the conditional one."""
        return self._roles

    def steps(self, step: Step) -> Steps:
        """What the method does; then the conditional prediction, if it has not passed by."""
        conversation = self.method.steps(step)
        self._watch.seen.clear()
        request = next(conversation)
        while True:
            try:
                request = conversation.send((yield request))
            except StopIteration as finished:
                prediction, x = finished.value
                break
        if not self._plain:
            yield Eval(step.x, "conditional", at=step.this)
        self._record(step, prediction, x)
        return prediction, x

    def evaluations(self, in_window: bool, guidance_scale: float) -> int:
        """The method's, and one more for the conditional prediction that does not pass by."""
        more = 0 if self._plain else 1
        return self.method.evaluations(in_window, guidance_scale) + more

    def take(self) -> list[list[Take]]:
        """The recorded steps of each call since the last `take`; calls that failed are left out."""
        done, self._done = self._done, []
        return done

    def _record(self, step: Step, prediction: torch.Tensor, x: torch.Tensor) -> None:
        [(c, request, scale)] = self._watch.seen
        if request.step == 0:
            self._takes = []
        if self.wanted is None or request.step in self.wanted:
            levels = step.levels()
            channels = predicted_channels(request, c)
            self._takes.append(
                Take(
                    c=_first(c, channels),
                    target=levels.effective(step.x, _first(prediction, channels), x, at=step.this),
                    given=given_of(request, channels),
                    prediction=levels.prediction,
                    guidance_scale=scale,
                )
            )
        if request.step == request.num_steps - 1:
            self._done.append(self._takes)
            self._takes = []


@dataclass(frozen=True, eq=False)
class _Watch(Edit):
    """Changes nothing; sees the conditional half go by."""

    kind = "watch"
    conditional: bool = False
    seen: list[tuple[torch.Tensor, Request, float]] = field(default_factory=list)

    def inputs(self, kwargs: dict, context: Context) -> dict:  # type: ignore[type-arg]
        """Refuse where there is no guidance to learn."""
        if context.guidance_scale is None:
            raise UnsupportedError(
                "A noise model learns classifier-free guidance, which is off at this step. Call "
                "the pipeline with a guidance scale above 1 "
                "(FLUX: true_cfg_scale and a negative_prompt)."
            )
        return kwargs

    def needs(self, context: Context) -> Halves:
        """What the pipeline needs anyway, or the conditional half alone."""
        del context
        return COND if self.conditional else BOTH

    def halves(
        self, c: torch.Tensor | None, u: torch.Tensor | None, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hand both on."""
        assert c is not None
        assert context.request is not None
        assert context.guidance_scale is not None
        self.seen[:] = [(c, context.request, context.guidance_scale)]
        return c, c if u is None else u


def _first(prediction: torch.Tensor, channels: int) -> torch.Tensor:
    return prediction if prediction.ndim < 4 else prediction[:, :channels]
