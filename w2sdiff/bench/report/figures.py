"""Geometry of the drawings inside the page; the templates turn it into SVG.

Everything here is in the units of a `viewBox`, rounded to tenths: the same numbers give the same
page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from w2sdiff.bench.analysis import Analysis, Comparison
from w2sdiff.bench.results import ArmFacts, Results, ScorerFacts

__all__ = [
    "Bar",
    "Point",
    "Scatter",
    "Strip",
    "apart",
    "bar",
    "marker",
    "scatter",
    "strip",
    "ticks",
]

# A rival's marker says what it was made equal in; an arm that was asked for is a filled circle.
_MARKERS = {
    None: "circle",
    "evaluations": "square",
    "strength": "diamond",
    "first order": "up",
    "best of n": "down",
}
STRIP = 120.0  # width of a strip
LEFT, RIGHT, TOP, BOTTOM = 52.0, 346.0, 14.0, 196.0  # the frame of a scatter
_APART = 9.0  # points that would lie on one another are set so far apart


@dataclass(frozen=True)
class Strip:
    """A difference and its interval, 0 in the middle; None where there is none."""

    low: float
    high: float
    middle: float


@dataclass(frozen=True)
class Bar:
    """Wins, ties and losses as parts of 100, and the interval of the win rate."""

    wins: float
    ties: float
    losses: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """An arm in a scatter."""

    arm: str
    family: int
    marker: str
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Scatter:
    """A scorer's means over evaluations: points, and the places and texts of the ticks."""

    scorer: ScorerFacts
    points: tuple[Point, ...]
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]


def marker(arm: ArmFacts) -> str:
    """The shape of an arm's mark."""
    return _MARKERS[arm.match]


def strip(comparison: Comparison, limit: float, sign: int) -> Strip | None:
    """Where the interval of a comparison lies between -limit and limit; `sign` turns it round."""
    found = (*comparison.difference.interval, comparison.difference.mean)
    if not all(map(math.isfinite, found)) or limit <= 0:
        return None
    low, high, middle = (round(STRIP / 2 * (1 + sign * 0.94 * value / limit), 1) for value in found)
    return Strip(low, high, middle)


def bar(comparison: Comparison) -> Bar | None:
    """The shares of a comparison; None where nothing was compared."""
    n = comparison.wins + comparison.ties + comparison.losses
    if n == 0:
        return None
    low, high = comparison.win_interval
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = 0.0, 1.0  # from one prompt nothing is known
    return Bar(
        round(100 * comparison.wins / n, 1),
        round(100 * comparison.ties / n, 1),
        round(100 * comparison.losses / n, 1),
        round(100 * low, 1),
        round(100 * high, 1),
    )


def scatter(
    results: Results, analysis: Analysis, scorer: ScorerFacts, families: dict[str, int]
) -> Scatter | None:
    """Mean score over evaluations per picture; None if no arm has both."""
    cells = {cell.arm: cell for cell in analysis.cells if cell.scorer == scorer.name}
    arms = [
        (arm, cells[arm.name])
        for arm in results.arms
        if arm.evaluations is not None and arm.name in cells and cells[arm.name].prompts
    ]
    if not arms:
        return None
    bounds = [
        bound for _, cell in arms for bound in (cell.mean, *cell.interval) if math.isfinite(bound)
    ]
    least, most = min(bounds), max(bounds)
    gap = (most - least) * 0.06 or abs(most) * 0.05 or 1.0
    up = ticks(least - gap, most + gap, 5)
    # From zero, so that twice the cost lies twice as far.
    dearest = max(arm.evaluations or 0 for arm, _ in arms)
    across = ticks(0, dearest * 1.06 or 1, 5)

    def x_of(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * value / (dearest * 1.12 or 1)

    def y_of(value: float) -> float:
        share = (value - least + gap) / (most - least + 2 * gap)
        return round(BOTTOM - (BOTTOM - TOP) * share, 1)

    points = []
    for (arm, cell), shift in zip(
        arms, apart([arm.evaluations or 0 for arm, _ in arms]), strict=True
    ):
        low, high = cell.interval if all(map(math.isfinite, cell.interval)) else (cell.mean,) * 2
        points.append(
            Point(
                arm.name,
                families[arm.name],
                marker(arm),
                round(x_of(arm.evaluations or 0) + _APART * shift, 1),
                y_of(cell.mean),
                y_of(low),
                y_of(high),
            )
        )
    return Scatter(
        scorer,
        tuple(points),
        tuple((round(x_of(value), 1), text) for value, text in across),
        tuple((y_of(value), text) for value, text in up if TOP <= y_of(value) <= BOTTOM),
    )


def ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """At most so many round values between two bounds, and their texts.

    Example:
        >>> [text for _, text in ticks(0, 87, 5)]
        ['0', '20', '40', '60', '80']
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    places = max(0, -math.floor(math.log10(step)) + (step / power == 2.5))
    first = math.ceil(low / step - 1e-9)
    values = [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]
    return [(value, f"{value:.{places}f}".replace("-", "−")) for value in values]


def apart(values: Sequence[int]) -> list[float]:
    """How far to shift each point, in widths of a mark, so that near ones stand side by side.

    Near are those within a thirtieth of the largest value of the next smaller one.

    Example:
        >>> apart([40, 81, 80])
        [0.0, 0.5, -0.5]
    """
    clusters: list[list[int]] = []
    order = sorted(range(len(values)), key=lambda n: (values[n], n))
    for n in order:
        if clusters and values[n] - values[clusters[-1][-1]] <= max(values) / 30:
            clusters[-1].append(n)
        else:
            clusters.append([n])
    shifts = [0.0] * len(values)
    for cluster in clusters:
        for place, n in enumerate(cluster):
            shifts[n] = place - (len(cluster) - 1) / 2
    return shifts
