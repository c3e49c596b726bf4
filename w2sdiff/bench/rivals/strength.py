"""Effective guidance scale: how strongly a method really guides, measured while it draws.

GA-Eval (arXiv 2602.22570) projects the update that a method makes on the difference of the
conditional and the unconditional prediction: the coordinate is the scale of plain guidance that
would have gone as far in that direction. Scores that rise with guidance rise with that number,
whatever the method is called; so a method is compared with plain guidance at the same number.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from w2sdiff.edits import Edits, Guidance
from w2sdiff.errors import UnsupportedError
from w2sdiff.generate import Shot, Studio, cfg_scale
from w2sdiff.methods import Eval, Method, Step, Steps, real_role, unguided

if TYPE_CHECKING:
    import torch

__all__ = ["Measured", "Strength", "effective_scale"]


@dataclass(frozen=True)
class Strength:
    """How strongly a method guides, as a mean over steps and then over pictures.

    Attributes:
        scale: projection of the update on conditional - unconditional alone: GA-Eval's effective
            scale; None where the pipeline does no guidance.
        se: its standard error over the pictures; None for one picture.
        guidance: the first of the update's least-squares coordinates on both differences,
            conditional - unconditional and strong - weak; equal to `scale` without a pair.
        pair: the second: how often strong - weak was added; to first order `times` for `W2SD`,
            scale - 1 for `AutoGuidance`; None without a pair of more than guidance.
        pair_se: its standard error.
        steps: denoising steps per picture.
        items: pictures it was measured on.
    """

    scale: float | None
    se: float | None
    guidance: float | None
    pair: float | None
    pair_se: float | None
    steps: int
    items: int

    def to_json(self) -> dict[str, Any]:
        """Plain data; `Strength(**data)` is the inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]], steps: int) -> Strength:
        """The means over pictures.

        Args:
            rows: (scale, guidance, pair) of each picture; a NaN is a number that does not exist.
            steps: denoising steps per picture.

        Example:
            >>> Strength.of([(5.0, 5.0, math.nan), (7.0, 7.0, math.nan)], steps=50)
            Strength(scale=6.0, se=1.0, guidance=6.0, pair=None, pair_se=None, steps=50, items=2)
        """
        columns = [_mean([row[i] for row in rows]) for i in range(3)]
        (scale, se), (guidance, _), (pair, pair_se) = columns
        return cls(scale, se, guidance, pair, pair_se, steps, len(rows))


def effective_scale(studio: Studio, method: Method, shots: Sequence[Shot]) -> Strength:
    """Measure how strongly a method guides on some pictures.

    They are drawn one at a time, so that no batch decides a bit of the result, and are thrown away.
    A step costs up to four evaluations more than the method's own, six where the pair is guided.

    Args:
        studio: the model and settings to draw with.
        method: any method; for plain sampling at scale s the answer is s, and without guidance
            there is none.
        shots: what to draw, at least one.

    Raises:
        InputError: the pipeline refuses the call.
        UnsupportedError: the scheduler has no first-order steps, it is not known how the pipeline
            does its guidance, or no picture gave a number.

    Example:
        >>> from w2sdiff import Plain
        >>> from w2sdiff.generate import Settings, find_model
        >>> settings = Settings(steps=4, guidance=3.0, device="cpu", dtype="float32")
        >>> with Studio(find_model("shapes-unet"), settings) as studio:
        ...     strength = effective_scale(studio, Plain(), [Shot("a red circle", seed=0)])
        >>> round(strength.scale, 3)
        3.0
    """
    measured = Measured(method, guided=cfg_scale(studio.model, studio.settings) > 1)
    if measured.asks == ("reference",):
        return Strength.of([], 0)  # plain sampling without guidance has no strength
    rows, steps, reason = [], 0, "there were none"
    for shot in shots:
        [drawn] = studio.draw(measured, [shot])
        numbers, steps = measured.take()
        reason = drawn.reason or "no step has a first-order move with a direction"
        # Out of memory leaves no row, a picture that is not a number leaves rows that are none.
        rows += [row for row in numbers if not all(map(math.isnan, row))]
    if not rows:
        raise UnsupportedError(
            f"the strength of {method.kind} cannot be measured: of {len(shots)} pictures none "
            f"gave a number ({reason})"
        )
    return Strength.of(rows, steps)


class Measured(Method):
    """Another method, measured: the pictures stay what they are, bit for bit.

    At each step it lets the method do what it does, and then asks for the conditional and the
    unconditional prediction at the step's own latents, and for strong and weak where these differ
    in more than guidance. With y the first-order step from what the method handed over, and r, c,
    s, w the steps from the predictions, it finds the coordinates of y - r on c - u and s - w, where
    r = u. Where there is no guidance r is the base model's step, and s - w the only direction.

    Args:
        method: what is measured.
        guided: whether the pipeline is called with classifier-free guidance.

    Example:
        >>> from w2sdiff import AutoGuidance
        >>> Measured(AutoGuidance(weak=Guidance(1.0)), guided=True).asks
        ('conditional', 'unconditional')
    """

    kind = "measured"

    def __init__(self, method: Method, *, guided: bool) -> None:
        self.method = method
        self.window = method.window
        base = real_role(method)
        rest = unguided(base)
        self._roles = {
            **method.roles,
            "conditional": rest | Guidance(1.0),
            "unconditional": rest | Guidance(0.0),
            "reference": base,
        }
        self.asks: tuple[str, ...] = ("conditional", "unconditional") if guided else ("reference",)
        if not guided:
            del self._roles["conditional"], self._roles["unconditional"]
        if _has_pair(method, guided):
            self.asks += ("strong", "weak")
        self._guided = guided
        self._steps: list[torch.Tensor] = []

    @property
    def roles(self) -> dict[str, Edits | None]:
        """The method's, and those it is measured against."""
        return self._roles

    def steps(self, step: Step) -> Steps:
        """What the method does, then the questions."""
        conversation = self.method.steps(step)
        request = next(conversation)
        while True:
            try:
                request = conversation.send((yield request))
            except StopIteration as finished:
                prediction, x = finished.value
                break
        moved = {"y": (x, prediction)}
        for role in self.asks:
            moved[role] = (step.x, (yield Eval(step.x, role, at=step.this)))
        self._steps.append(self._coordinates(step, moved))
        return prediction, x

    def take(self) -> tuple[list[list[float]], int]:
        """(scale, guidance, pair) of each item since the last `take`, and the number of steps."""
        import torch

        steps, self._steps = self._steps, []
        if not steps:
            return [], 0
        return torch.stack(steps).nanmean(0).tolist(), len(steps)

    def _coordinates(
        self, step: Step, moved: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    ) -> torch.Tensor:
        """(scale, guidance, pair) of one step. Shape: [B, 3], float64, NaN where there is none."""
        import torch

        numbers = torch.full((len(step.x), 3), math.nan, dtype=torch.float64)
        step.levels()  # outside of the net below: a scheduler without moves is an error
        try:
            to = {name: _moved(step, x, prediction) for name, (x, prediction) in moved.items()}
        except UnsupportedError:
            return numbers  # pure noise of which a network predicts the noise: nothing is known
        update = to["y"] - to["unconditional" if self._guided else "reference"]
        directions = []
        if self._guided:
            directions.append(to["conditional"] - to["unconditional"])
            numbers[:, :2] = _on(update, directions)
        if "strong" in to:
            directions.append(to["strong"] - to["weak"])
            numbers[:, -len(directions) :] = _on(update, directions)
        return numbers


def _has_pair(method: Method, guided: bool) -> bool:
    """Whether strong and weak differ in more than the guidance that is measured anyway."""
    if not (hasattr(method, "strong") and hasattr(method, "weak")):
        return False
    strong, weak = ((method.roles[role] or Edits()) for role in ("strong", "weak"))
    return unguided(strong) != unguided(weak) or (not guided and strong != weak)


def _moved(step: Step, x: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
    """The first-order step, one row per item in float64: the differences of these are small."""
    x, prediction = (tensor.detach().cpu().double() for tensor in (x, prediction))
    return step.move(x, prediction, at=step.this, to=step.next).flatten(1)


def _on(update: torch.Tensor, directions: Sequence[torch.Tensor]) -> torch.Tensor:
    """Least-squares coordinates [B, k] of each row of update [B, M]; NaN where they have none."""
    import torch

    span = torch.stack(list(directions), -1)
    length = span.norm(dim=1)
    unit = span / length[:, None]
    gram, seen = unit.mT @ unit, (unit.mT @ update[..., None])[..., 0]
    degenerate = torch.linalg.det(gram).nan_to_num() < 1e-9  # parallel, or one of them nothing
    gram[degenerate] = torch.eye(len(directions), dtype=gram.dtype)
    found: torch.Tensor = torch.linalg.solve(gram, seen) / length
    found[degenerate] = math.nan
    return found


def _mean(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and standard error of the numbers among the values."""
    numbers = [value for value in values if not math.isnan(value)]
    if not numbers:
        return None, None
    error = statistics.stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else None
    return statistics.fmean(numbers), error
