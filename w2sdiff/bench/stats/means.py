"""Means per prompt and per arm, of the pictures that count."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from w2sdiff.bench.analysis import Cell
from w2sdiff.bench.stats.resample import bootstrap_intervals

if TYPE_CHECKING:
    from w2sdiff.bench.results import Results

__all__ = ["cells_of", "mean_of", "mean_of_last", "picture_counts", "usable"]

Row: TypeAlias = NDArray[np.float64]


def usable(results: Results) -> dict[str, Row]:
    """Scorer -> scores [arms, prompts, replicates]; NaN where missing, failed or flagged.

    A flag that begins with a scorer's name and a colon says why there is no such score; the others
    stand. Any other flag is about the picture, and takes it out of every figure.
    """
    about_scores = tuple(f"{scorer.name}: " for scorer in results.scorers)
    flagged = np.zeros((len(results.arms), len(results.prompts), results.replicates), dtype=bool)
    for sample in results.samples:
        odd = any(not flag.startswith(about_scores) for flag in sample.flags)
        flagged[sample.arm, sample.prompt, sample.replicate] = odd
    return {
        name: np.where(np.isfinite(values) & ~flagged, values, np.nan)
        for name, values in results.values.items()
    }


def mean_of_last(values: Row) -> Row:
    """The mean over the last axis of those that are numbers; NaN where none is."""
    count = np.isfinite(values).sum(axis=-1)
    total = np.where(np.isfinite(values), values, 0.0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def mean_of(row: Row) -> float:
    """The mean, rounded once, whatever the order; NaN of nothing."""
    return math.fsum(row) / len(row) if len(row) else math.nan


def cells_of(
    results: Results, values: Mapping[str, Row], draws: int, seed: int
) -> tuple[Cell, ...]:
    """The mean of each arm by each scorer, with its bootstrap interval, and what does not count.

    `failed` counts pictures that could not be made; `missing` those without a score for any other
    reason (not made yet, not scored, no number).
    """
    counts: Counter[tuple[int, str, str]] = Counter()
    for sample in results.samples:
        for scorer in results.scorers:
            at = sample.arm, scorer.name
            failed = sample.status == "failed"
            counts[*at, "failed"] += failed
            counts[*at, "missing"] += not failed and scorer.name not in sample.scores
            counts[*at, "flagged"] += bool(sample.flags)
            counts[*at, "truncated"] += scorer.name in sample.truncated
    places = [(arm, scorer.name) for arm in range(len(results.arms)) for scorer in results.scorers]
    means = {place: mean_of_last(values[place[1]][place[0]]) for place in places}
    rows = [means[place][np.isfinite(means[place])] for place in places]
    intervals = bootstrap_intervals(rows, draws=draws, seed=seed)
    return tuple(
        Cell(
            arm=results.arms[arm].name,
            scorer=scorer,
            mean=mean_of(row),
            interval=interval,
            prompts=len(row),
            missing=counts[arm, scorer, "missing"],
            failed=counts[arm, scorer, "failed"],
            flagged=counts[arm, scorer, "flagged"],
            truncated=counts[arm, scorer, "truncated"],
        )
        for (arm, scorer), row, interval in zip(places, rows, intervals, strict=True)
    )


def picture_counts(results: Results, arm: int) -> dict[str, int]:
    """How many pictures of an arm are done, failed, missing; and how many are flagged."""
    own = [sample for sample in results.samples if sample.arm == arm]
    states = Counter(sample.status for sample in own)
    counts = {state: states[state] for state in ("done", "failed", "missing")}
    return counts | {"flagged": sum(bool(sample.flags) for sample in own)}
