"""`Analysis`: what the statistics say of `Results`. Tables, pages and plots show it as it stands.

Every number here is a deterministic function of the scores: no clock, no machine, no order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Agreement", "Analysis", "Cell", "Comparison", "Difference", "Judgement", "Outcome"]

Outcome = Literal["better", "worse", "no difference seen", "differs", "nothing to compare"]
"""Of an arm against a rival, by the interval and the corrected p together; "differs" is for a
statistic that is neither good nor bad."""


@dataclass(frozen=True)
class Cell:
    """One arm, one scorer: the mean over prompts and its 95% interval.

    `prompts` counts those with a score; `missing`, `failed`, `flagged` and `truncated` count
    pictures. The first three of them take no part in any figure.
    """

    arm: str
    scorer: str
    mean: float
    interval: tuple[float, float]
    prompts: int
    missing: int = 0
    failed: int = 0
    flagged: int = 0
    truncated: int = 0


@dataclass(frozen=True)
class Difference:
    """A paired mean difference, arm minus rival, and its 95% interval, over n prompts.

    The ends of the interval are NaN for fewer than two prompts, the mean too for none.
    """

    n: int
    mean: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """An arm against a rival by one scorer, paired by prompt.

    Attributes:
        difference: mean of the per-prompt differences (over replicates first), arm minus rival.
        p: of the two-sided sign-flip permutation test.
        p_holm: the same, corrected by Holm's method over all comparisons of the analysis.
        wins: prompts where the arm is better by more than the scorer's tie margin.
        ties: prompts within the margin.
        losses: prompts where the rival is better.
        win_rate: (wins + ties / 2) / n.
        win_interval: its 95% interval.
        detectable: the smallest true difference that would be seen four times out of five, Holm's
            correction included; infinite where the prompts are too few to see any, NaN for one.
        excluded: prompts left out because one of the two has no score.
        categories: the difference in each category of the prompt set.
        outcome: in the same words for wins and losses.
    """

    arm: str
    rival: str
    scorer: str
    difference: Difference
    p: float
    p_holm: float
    wins: int
    ties: int
    losses: int
    win_rate: float
    win_interval: tuple[float, float]
    detectable: float
    excluded: int
    outcome: Outcome
    categories: Mapping[str, Difference] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """What is to be said of one arm that was asked for.

    Attributes:
        arm: its name.
        sentence: the verdict in one sentence, with the figures that carry it.
        marks: warnings in words: "gains only in scores that rise with guidance strength alone",
            "gains only where it is not matched", "fewer than 20 prompts", ...
    """

    arm: str
    sentence: str
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau between two scorers over the per-prompt differences of a pair of arms."""

    arm: str
    rival: str
    first: str
    second: str
    tau: float
    p: float
    n: int


@dataclass(frozen=True)
class Analysis:
    """The whole of it; `comparisons` is the family of Holm's correction."""

    cells: tuple[Cell, ...]
    comparisons: tuple[Comparison, ...]
    judgements: tuple[Judgement, ...]
    agreement: tuple[Agreement, ...]
    draws: int
    seed: int

    def cell(self, arm: str, scorer: str) -> Cell:
        """The cell of an arm and a scorer."""
        return next(cell for cell in self.cells if (cell.arm, cell.scorer) == (arm, scorer))
