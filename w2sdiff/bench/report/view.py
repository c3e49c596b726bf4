"""What the page shows, from `Results` and `Analysis` to plain values for the template."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from statistics import median
from typing import Any

from w2sdiff.bench.analysis import Agreement, Analysis, Comparison
from w2sdiff.bench.report import figures
from w2sdiff.bench.report.numbers import interval, number, percent, places_for, probability, signed
from w2sdiff.bench.results import ArmFacts, Results

__all__ = ["View"]

SIGNS = {
    "better": "▲",
    "worse": "▼",
    "no difference seen": "≈",
    "differs": "◆",
    "nothing to compare": "–",
}
_MATCHES = {
    "evaluations": "plain sampling with as many evaluations",
    "strength": "plain sampling at the measured guidance strength",
    "first order": "the same pair to first order",
    "best of n": "the best of several plain pictures",
}
_COLOURS = 7  # families have colours of their own up to here; the arms that nobody asked for, grey


class View:
    """The sections of the page, each a property."""

    def __init__(self, results: Results, analysis: Analysis) -> None:
        self.results = results
        self.analysis = analysis
        self.arms = {arm.name: arm for arm in results.arms}
        self.scorers = {scorer.name: scorer for scorer in results.scorers}
        asked = [arm.name for arm in results.arms if arm.rival_of is None]
        self.families = {
            arm.name: asked.index(owner) % _COLOURS
            for arm in results.arms
            if (owner := arm.rival_of or arm.name) in asked
        } | {arm.name: _COLOURS for arm in results.arms if (arm.rival_of or arm.name) not in asked}

    @cached_property
    def places(self) -> dict[str, int]:
        """Decimal places of each scorer's numbers."""
        return {name: places_for(self._widths(name)) for name in self.scorers}

    @property
    def facts(self) -> list[str]:
        """The run in a line."""
        results = self.results
        rivals = sum(arm.rival_of is not None for arm in results.arms)
        asked = len(results.arms) - rivals
        parts = [_count(asked, "method")]
        parts += [_count(rivals, "matched rival")] if rivals else []
        parts.append(_count(len(results.prompts), "prompt"))
        parts += [f"{results.replicates} pictures of each"] if results.replicates > 1 else []
        return [*parts, _count(len(results.scorers), "score")]

    @property
    def judgements(self) -> list[dict[str, Any]]:
        """The verdict of every arm that was asked for, and how its comparisons came out."""
        found = []
        for judgement in self.analysis.judgements:
            counts: Counter[str] = Counter(
                comparison.outcome
                for comparison in self.analysis.comparisons
                if comparison.arm == judgement.arm
            )
            tally = [(SIGNS[name], name, counts[name]) for name in SIGNS if counts[name]]
            found.append(
                {
                    "arm": self.arms.get(judgement.arm, ArmFacts(judgement.arm, "")),
                    "family": self.families.get(judgement.arm, _COLOURS),
                    "sentence": judgement.sentence,
                    "marks": judgement.marks,
                    "tally": tally,
                }
            )
        return found

    @property
    def legend(self) -> list[dict[str, Any]]:
        """Every arm with its mark, what it costs, and its scores."""
        return [
            {
                "arm": arm,
                "family": self.families[arm.name],
                "marker": figures.marker(arm),
                "cost": self._cost(index),
                "cells": [self._cell(arm.name, name) for name in self.scorers],
            }
            for index, arm in enumerate(self.results.arms)
        ]

    @property
    def scatters(self) -> list[figures.Scatter]:
        """Quality against evaluations, one drawing per scorer."""
        drawn = (
            figures.scatter(self.results, self.analysis, scorer, self.families)
            for scorer in self.results.scorers
        )
        return [one for one in drawn if one is not None]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of arms that were compared, in order."""
        return list(dict.fromkeys((one.arm, one.rival) for one in self.analysis.comparisons))

    @property
    def comparisons(self) -> list[dict[str, Any]]:
        """One table per pair of arms."""
        limits = {
            name: max(map(abs, self._finite_bounds(name)), default=0.0) for name in self.scorers
        }
        return [
            {
                "arm": arm,
                "rival": rival,
                "family": self.families.get(arm, _COLOURS),
                "terms": self._terms(arm, rival),
                "rows": [self._row(one, limits[one.scorer]) for one in self._of(arm, rival)],
            }
            for arm, rival in self.pairs
        ]

    @property
    def categories(self) -> list[dict[str, Any]]:
        """Differences by category, one table per pair; none where the set has no categories."""
        tables = []
        for arm, rival in self.pairs:
            of = self._of(arm, rival)
            names = list(dict.fromkeys(name for one in of for name in one.categories))
            if len(names) > 1:
                rows = [(name, [self._category(one, name) for one in of]) for name in names]
                heads = [one.scorer for one in of]
                tables.append({"arm": arm, "rival": rival, "heads": heads, "rows": rows})
        return tables

    @property
    def agreement(self) -> list[dict[str, Any]]:
        """Kendall's tau between the scorers, one square per pair of arms."""
        squares: dict[tuple[str, str], dict[tuple[str, str], Agreement]] = {}
        for one in self.analysis.agreement:
            found = squares.setdefault((one.arm, one.rival), {})
            found[one.first, one.second] = found[one.second, one.first] = one
        return [
            {"arm": arm, "rival": rival, "names": names, "cells": _square(names, found)}
            for (arm, rival), found in squares.items()
            if (names := [name for name in self.scorers if any(name in key for key in found)])
        ]

    def _of(self, arm: str, rival: str) -> list[Comparison]:
        return [one for one in self.analysis.comparisons if (one.arm, one.rival) == (arm, rival)]

    def _widths(self, scorer: str) -> Iterable[float]:
        for cell in self.analysis.cells:
            if cell.scorer == scorer:
                yield (cell.interval[1] - cell.interval[0]) / 2
        for one in self.analysis.comparisons:
            if one.scorer == scorer:
                yield (one.difference.interval[1] - one.difference.interval[0]) / 2

    def _finite_bounds(self, scorer: str) -> Iterable[float]:
        for one in self.analysis.comparisons:
            if one.scorer == scorer:
                yield from filter(math.isfinite, (one.difference.mean, *one.difference.interval))

    def _cost(self, index: int) -> dict[str, str]:
        arm = self.results.arms[index]
        samples = [sample for sample in self.results.samples if sample.arm == index]
        seconds = [sample.seconds for sample in samples if sample.seconds is not None]
        peaks = [sample.peak_mb for sample in samples if sample.peak_mb is not None]
        return {
            "evaluations": number(arm.evaluations, 0),
            "steps": number(arm.steps, 0),
            "seconds": number(median(seconds), places_for([median(seconds)])) if seconds else "–",
            "memory": number(max(peaks), 0) if peaks else "–",
            "strength": number(arm.strength, 2),
        }

    def _cell(self, arm: str, scorer: str) -> dict[str, Any]:
        found = [c for c in self.analysis.cells if (c.arm, c.scorer) == (arm, scorer)]
        if not found or not found[0].prompts:
            return {"mean": "–", "interval": "no score", "prompts": 0}
        cell, places = found[0], self.places[scorer]
        bounds = interval(cell.interval, places)
        return {
            "mean": number(cell.mean, places),
            "interval": "no interval" if bounds == "–" else bounds,
            "prompts": cell.prompts,
        }

    def _row(self, one: Comparison, limit: float) -> dict[str, Any]:
        places, scorer = self.places[one.scorer], self.scorers[one.scorer]
        return {
            "scorer": scorer,
            "difference": signed(one.difference.mean, places),
            "interval": interval(one.difference.interval, places),
            "strip": figures.strip(one, limit, -1 if scorer.higher_is_better is False else 1),
            "bar": figures.bar(one),
            "rate": percent(one.win_rate),
            "rate_interval": "–".join(map(percent, one.win_interval)),
            "counts": (one.wins, one.ties, one.losses),
            "p": probability(one.p),
            "p_holm": probability(one.p_holm),
            "detectable": number(one.detectable, places),
            "n": one.difference.n,
            "excluded": one.excluded,
            "outcome": one.outcome,
            "sign": SIGNS[one.outcome],
        }

    def _category(self, one: Comparison, name: str) -> dict[str, Any]:
        found, places = one.categories.get(name), self.places[one.scorer]
        if found is None or not found.n:
            return {"text": "–", "interval": "", "n": 0, "lean": ""}
        low, high = found.interval
        # The sign is read as a gain or a loss only where the scorer knows which is which.
        sign = {True: 1, False: -1, None: 0}[self.scorers[one.scorer].higher_is_better]
        lean = "up" if sign * low > 0 and sign * high > 0 else ""
        lean = lean or ("down" if sign * low < 0 and sign * high < 0 else "")
        return {
            "text": signed(found.mean, places),
            "interval": interval(found.interval, places),
            "n": found.n,
            "lean": lean,
        }

    def _terms(self, arm: str, rival: str) -> dict[str, Any]:
        """In words, what makes the comparison fair, or that it is not."""
        one, other = self.arms[arm], self.arms[rival]
        if one.evaluations is None or other.evaluations is None:
            cost, equal = "cost not known", False
        else:
            equal = other.evaluations == one.evaluations or other.rival_of == arm
            ratio = one.evaluations / max(1, other.evaluations)
            cost = f"{one.evaluations} against {other.evaluations} evaluations a picture"
            cost += "" if equal else f" (×{ratio:.2g})"
        known = other.match if other.rival_of == arm else None
        return {"match": _MATCHES.get(known or "", other.text), "cost": cost, "equal": equal}


def _square(names: list[str], found: Mapping[tuple[str, str], Agreement]) -> list[list[Any]]:
    """Rows of [text, strength 0-4 or None, title]: how strongly a cell is tinted, and its facts."""
    rows: list[list[Any]] = []
    for first in names:
        row: list[Any] = []
        for second in names:
            one = found.get((first, second))
            if one is None or not math.isfinite(one.tau):
                row.append(("·" if first == second else "–", 0, "", ""))
                continue
            strength = min(4, int(abs(one.tau) * 5 + 0.5))
            title = f"tau {one.tau:.3f}, p {probability(one.p)}, {one.n} prompts"
            row.append((signed(one.tau, 2), strength, "up" if one.tau > 0 else "down", title))
        rows.append(row)
    return rows


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"
