"""Where an arm stands against its rivals: outcomes, and which evaluations count as equal.

An outcome is "better" or "worse" only if two things agree: the 95% interval of the difference
excludes 0, and p after Holm's correction is below 0.05. All else is "no difference seen".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from w2sdiff.bench.analysis import Comparison, Difference, Outcome

if TYPE_CHECKING:
    from w2sdiff.bench.results import ArmFacts, Results, ScorerFacts

__all__ = ["ALPHA", "SLACK", "Case", "Cost", "count", "listed", "outcome_of"]

ALPHA = 0.05
SLACK = 0.05  # the part by which evaluations may differ and still count as equal

Cost = Literal["equal", "fewer", "more", "unknown"]


def outcome_of(difference: Difference, p_holm: float, higher_is_better: bool | None) -> Outcome:
    """The word for a difference, arm minus rival.

    Args:
        difference: with its interval; NaN ends (of fewer than two prompts) exclude nothing.
        p_holm: corrected for the number of comparisons.
        higher_is_better: None for a statistic that is neither good nor bad.

    Example:
        >>> outcome_of(Difference(50, 0.2, (0.1, 0.3)), 0.001, True)
        'better'
        >>> outcome_of(Difference(50, 0.2, (0.1, 0.3)), 0.2, True)
        'no difference seen'
    """
    if not difference.n:
        return "nothing to compare"
    low, high = difference.interval
    if not ((low > 0 or high < 0) and p_holm < ALPHA):
        return "no difference seen"
    if higher_is_better is None:
        return "differs"
    return "better" if (difference.mean > 0) == higher_is_better else "worse"


@dataclass(frozen=True)
class Case:
    """An arm and the comparisons in which it is the one that is judged."""

    results: Results
    arm: ArmFacts
    comparisons: tuple[Comparison, ...]

    def cost(self, comparison: Comparison) -> Cost:
        """The evaluations of the rival, next to those of the arm.

        Equal is what differs by 5% or less, and a rival that was made for the arm and differs by
        no more than one of its own steps, for steps are whole.
        """
        own, rival = self.arm.evaluations, self.rival(comparison)
        made_for_it = rival.rival_of == self.arm.name
        if own is None or rival.evaluations is None:
            return "equal" if made_for_it else "unknown"
        step = rival.evaluations / rival.steps if made_for_it and rival.steps else 0.0
        if abs(rival.evaluations - own) <= max(SLACK * own, step):
            return "equal"
        return "fewer" if rival.evaluations < own else "more"

    def rival(self, comparison: Comparison) -> ArmFacts:
        """The arm on the other side."""
        return self.results.arms[self.results.arm(comparison.rival)]

    def against(self, cost: Cost) -> list[Comparison]:
        """The comparisons with rivals of such evaluations."""
        return [one for one in self.comparisons if self.cost(one) == cost]

    @property
    def scope(self) -> list[Comparison]:
        """What the sentence is about: rivals of equal evaluations; without any, all there are."""
        return self.against("equal") or list(self.comparisons)

    def scorers(self, *, judged: bool) -> list[ScorerFacts]:
        """Scorers that say good or bad, or those that do not."""
        scorers = self.results.scorers
        return [one for one in scorers if (one.higher_is_better is not None) == judged]


def count(comparisons: Iterable[Comparison], outcome: Outcome) -> int:
    """How many came out so."""
    return sum(one.outcome == outcome for one in comparisons)


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
