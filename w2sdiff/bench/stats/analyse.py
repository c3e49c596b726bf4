"""From `Results` to `Analysis`: how much better, and how sure. The unit is the prompt.

Pictures of one prompt are not independent of each other, prompts are. So replicates are averaged
within their prompt first, over those that both arms of a pair have, and everything after that
counts prompts. Pictures that are missing, failed or flagged take no part; they are counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, groupby
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from w2sdiff.bench.analysis import Agreement, Analysis, Comparison, Difference
from w2sdiff.bench.stats.family import check_scorers, family, holm
from w2sdiff.bench.stats.means import cells_of, mean_of, mean_of_last, usable
from w2sdiff.bench.stats.resample import bootstrap_intervals, sign_flip_p, smallest_p
from w2sdiff.bench.stats.standing import ALPHA, outcome_of
from w2sdiff.bench.stats.verdict import judge

if TYPE_CHECKING:
    from w2sdiff.bench.results import Results, ScorerFacts

__all__ = ["analyse"]

Row: TypeAlias = NDArray[np.float64]

POWER = 0.8
_FLIPS_EACH = 40  # sign vectors per comparison, at least: else no p could survive the correction
_NOTHING = (math.nan, math.nan)


def analyse(
    results: Results, *, draws: int = 10_000, seed: int = 0, all_pairs: bool = False
) -> Analysis:
    """Compare the arms of a run, by every scorer, and judge them.

    Per pair and scorer: mean difference with its percentile bootstrap interval, sign-flip
    permutation p (as drawn and after Holm's correction over all comparisons), wins, ties and losses
    beyond the scorer's margin, the share of wins with its interval (Wilson's where nothing is tied,
    else bootstrap), and the smallest difference that would have been seen. The same scores give the
    same analysis, to the last digit shown, on every machine.

    Args:
        results: of a run, of scored folders, or made up.
        draws: resamples of an interval, and random sign vectors of a test (40 per comparison if
            that is more: with fewer, the smallest p there is would not survive the correction).
        seed: of the resamples.
        all_pairs: compare every two arms, not only those of `family`.

    Raises:
        InputError: two scorers of one name have different recipes, or a pair to compare names an
            arm that is not there.
    """
    check_scorers(results.scorers)
    values = usable(results)
    questions = [
        _Question.of(values[scorer.name], results, arm, rival, scorer)
        for arm, rival in family(results, all_pairs=all_pairs)
        for scorer in results.scorers
    ]
    comparisons = _comparisons(questions, len(results.prompts), draws, seed)
    return Analysis(
        cells=cells_of(results, values, draws, seed),
        comparisons=comparisons,
        judgements=judge(results, comparisons),
        agreement=_agreement(questions),
        draws=draws,
        seed=seed,
    )


@dataclass(frozen=True, eq=False)
class _Question:
    """One pair and scorer: the differences per prompt, NaN where a side has none."""

    arm: str
    rival: str
    scorer: ScorerFacts
    differences: Row
    seen: Row  # those that are numbers
    categories: Mapping[str, Row]

    @classmethod
    def of(
        cls, values: Row, results: Results, arm: str, rival: str, scorer: ScorerFacts
    ) -> _Question:
        differences = mean_of_last(values[results.arm(arm)] - values[results.arm(rival)])
        usable = np.isfinite(differences)
        names = np.array([prompt.category for prompt in results.prompts], dtype=object)
        categories = {
            name: differences[usable & (names == name)]
            for name in dict.fromkeys(names[usable])
            if name
        }
        return cls(arm, rival, scorer, differences, differences[usable], categories)

    @property
    def points(self) -> Row:
        """1 for a win, 1/2 for a tie, 0 for a loss."""
        beyond = np.where(np.abs(self.seen) <= self.scorer.tie, 0.0, np.sign(self.seen))
        return np.asarray((1 + self.direction * beyond) / 2)

    @property
    def direction(self) -> int:
        """-1 where less is better."""
        return -1 if self.scorer.higher_is_better is False else 1


def _comparisons(
    questions: Sequence[_Question], prompts: int, draws: int, seed: int
) -> tuple[Comparison, ...]:
    asked = [question for question in questions if len(question.seen)]
    flips = max(draws, _FLIPS_EACH * len(asked))
    p_values = sign_flip_p([question.seen for question in asked], draws=flips, seed=seed)
    corrected = dict(zip(map(id, asked), zip(p_values, holm(p_values), strict=True), strict=True))
    differences = _differences(questions, draws, seed)
    win_intervals = _win_intervals([question.points for question in questions], draws, seed)
    found = []
    for question, (whole, categories), win_interval in zip(
        questions, differences, win_intervals, strict=True
    ):
        p, p_holm = corrected.get(id(question), (1.0, 1.0))
        points = Counter(question.points.tolist())
        found.append(
            Comparison(
                arm=question.arm,
                rival=question.rival,
                scorer=question.scorer.name,
                difference=whole,
                p=p,
                p_holm=p_holm,
                wins=points[1.0],
                ties=points[0.5],
                losses=points[0.0],
                win_rate=(points[1.0] + points[0.5] / 2) / whole.n if whole.n else math.nan,
                win_interval=win_interval,
                detectable=_detectable(question.seen, len(asked), flips),
                excluded=prompts - whole.n,
                outcome=outcome_of(whole, p_holm, question.scorer.higher_is_better),
                categories=categories,
            )
        )
    return tuple(found)


def _differences(
    questions: Sequence[_Question], draws: int, seed: int
) -> list[tuple[Difference, dict[str, Difference]]]:
    """Of all prompts and of each category; all intervals at once, for they share resamples."""
    rows = [row for one in questions for row in (one.seen, *one.categories.values())]
    intervals = iter(bootstrap_intervals(rows, draws=draws, seed=seed))

    def next_of(row: Row) -> Difference:
        return Difference(len(row), mean_of(row), next(intervals))

    return [
        (next_of(one.seen), {name: next_of(row) for name, row in one.categories.items()})
        for one in questions
    ]


def _win_intervals(points: Sequence[Row], draws: int, seed: int) -> list[tuple[float, float]]:
    from scipy.stats import binomtest

    resampled = bootstrap_intervals(points, draws=draws, seed=seed)
    found = []
    for row, interval in zip(points, resampled, strict=True):
        if not len(row) or (row == 0.5).any():
            found.append(interval)
            continue
        wilson = binomtest(int(row.sum()), len(row)).proportion_ci(method="wilson")
        found.append((float(wilson.low), float(wilson.high)))
    return found


def _detectable(row: Row, questions: int, flips: int) -> float:
    """The true difference that would come out as one with probability `POWER`.

    (t(1 - α/2m) + t(0.8)) standard errors, by Student's law with n - 1 degrees, m the number of
    comparisons: 2.8 for a single one and many prompts. That is what Holm's method asks of the
    smallest p, so it is enough whatever the others say. Infinite where the prompts are so few that
    no p could pass.
    """
    from scipy.stats import t

    if len(row) < 2:
        return math.nan
    if smallest_p(len(row), flips) * questions >= ALPHA:
        return math.inf
    mean, freedom = mean_of(row), len(row) - 1
    error = math.sqrt(math.fsum((row - mean) ** 2) / freedom / len(row))
    return float(t.ppf([1 - ALPHA / 2 / questions, POWER], freedom).sum() * error)


def _agreement(questions: Sequence[_Question]) -> tuple[Agreement, ...]:
    """Of every two scorers on the same pair; turned so that more is better."""
    from scipy.stats import kendalltau

    found = []
    by_pair = groupby(questions, key=lambda question: (question.arm, question.rival))
    for one, other in chain.from_iterable(combinations(group, 2) for _, group in by_pair):
        x, y = one.direction * one.differences, other.direction * other.differences
        both = np.isfinite(x) & np.isfinite(y)
        x, y = x[both], y[both]
        # A side without any order, such as one score for all, agrees with nothing.
        tau, p = kendalltau(x, y) if len(set(x)) > 1 < len(set(y)) else _NOTHING
        names = one.scorer.name, other.scorer.name
        found.append(Agreement(one.arm, one.rival, *names, float(tau), float(p), len(x)))
    return tuple(found)
