"""What is to be said of an arm, in one sentence: the same words for wins and for losses.

The sentence is about rivals of equal evaluations where there are any, else about whatever it was
compared with; it gives the smallest difference of those that were seen, and what size would have
been seen where none was. `w2sdiff.bench.stats.marks` has the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from w2sdiff.bench.analysis import Comparison, Judgement
from w2sdiff.bench.stats.marks import RULES
from w2sdiff.bench.stats.standing import Case, count, listed

if TYPE_CHECKING:
    from w2sdiff.bench.results import Results

__all__ = ["judge"]


def judge(results: Results, comparisons: Sequence[Comparison]) -> tuple[Judgement, ...]:
    """A sentence and its marks for each arm that was asked for, in table order."""
    asked = [arm for arm in results.arms if arm.rival_of is None]
    cases = [
        Case(results, arm, tuple(c for c in comparisons if c.arm == arm.name)) for arm in asked
    ]
    return tuple(
        Judgement(case.arm.name, _sentence(case), tuple(m for rule in RULES for m in rule(case)))
        for case in cases
    )


def _sentence(case: Case) -> str:
    if not case.comparisons:
        is_rival = len(case.results.arms) > 1
        return f"{case.arm.name}: " + (
            "what the other arms are compared with." if is_rival else "nothing to compare it with."
        )
    clauses: dict[str, list[str]] = {}
    for scorer in case.scorers(judged=True):
        own = [one for one in case.scope if one.scorer == scorer.name]
        clauses.setdefault(_standing(case, own), []).append(scorer.name + _figures(own))
    first = sorted(clauses, key=lambda words: ("better" not in words, "worse" not in words))
    said = [f"{words} by {listed(clauses[words])}" for words in first]
    return f"{case.arm.name}: {'; '.join(said) or 'no score says good or bad'}."


def _standing(case: Case, own: Sequence[Comparison]) -> str:
    """How the arm stands against its rivals by one scorer."""
    able = [one for one in own if one.outcome != "nothing to compare"]
    if not able:
        return "nothing to compare"
    better, worse = count(able, "better"), count(able, "worse")
    if not better and not worse:
        return f"no difference seen from {_who(case, able, 'any')}"
    if len(able) in (better, worse):
        return f"{'better' if better else 'worse'} than {_who(case, able, 'every')}"
    parts = [f"{word} than {n}" for word, n in (("better", better), ("worse", worse)) if n]
    return f"{' and '.join(parts)} of {len(able)} {_kind(case, able)}s{_of(case, able)}"


def _who(case: Case, able: Sequence[Comparison], article: str) -> str:
    if len(able) > 1:
        return f"{article} {_kind(case, able)}{_of(case, able)}"
    cost = _of(case, able)
    return f"{able[0].rival},{cost}," if cost else able[0].rival


def _kind(case: Case, able: Sequence[Comparison]) -> str:
    return "rival" if case.cost(able[0]) == "equal" else "other arm"


def _of(case: Case, able: Sequence[Comparison]) -> str:
    """What their evaluations are, where they have that in common."""
    costs = {case.cost(one) for one in able}
    return f" of {costs.pop()} evaluations" if len(costs) == 1 and "unknown" not in costs else ""


def _figures(own: Sequence[Comparison]) -> str:
    """The rival that comes closest, of those that differ; else what would have been seen."""
    closest = []
    for outcome in ("better", "worse"):
        if found := [one.difference for one in own if one.outcome == outcome]:
            nearest = min(found, key=lambda difference: abs(difference.mean))
            low, high = nearest.interval
            closest.append(f"{nearest.mean:+.3g}, 95% interval {low:.3g} to {high:.3g}")
    if closest:
        return f" ({'; '.join(closest)})"
    seen = [one.detectable for one in own if one.outcome == "no difference seen"]
    if not seen:
        return ""
    if not all(map(math.isfinite, seen)):
        return " (too few prompts to see any)"
    return f" (one of {max(seen):.3g} would likely have been seen)"
