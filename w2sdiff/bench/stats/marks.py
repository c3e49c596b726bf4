"""What a verdict's sentence does not say: one rule for each mark, all of them in `RULES`.

gained_by_strength_only   all gains are by scores that rise with guidance strength alone
gained_by_cost_only       gains against arms of fewer evaluations, none against equal ones
unmatched_strength        gains against equal evaluations, none against equal strength
lost_to_cheaper           worse even than an arm of fewer evaluations
unmatched                 no rival of equal evaluations
statistics_moved          a statistic rose or fell with it (saturation, clipping, diversity)
thin_evidence             prompts left out; fewer than 20; too few for any p to pass
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

from w2sdiff.bench.analysis import Comparison, Outcome
from w2sdiff.bench.stats.standing import SLACK, Case, count, listed

__all__ = ["RULES"]

FEW = 20


def gained_by_strength_only(case: Case) -> Iterator[str]:
    """More guidance alone would have raised these scores too (GA-Eval, arXiv 2602.22570)."""
    gains = {one.scorer for one in case.scope if one.outcome == "better"}
    rising = {one.name for one in case.results.scorers if one.group == "rises with guidance"}
    if gains and gains <= rising:
        others = [one for one in case.scorers(judged=True) if one.name not in rising]
        start = "gains only in" if others else "judged only by"
        yield f"{start} scores that rise with guidance strength alone ({listed(sorted(gains))})"


def gained_by_cost_only(case: Case) -> Iterator[str]:
    """What more evaluations buy is no merit of the method."""
    gains = _outcomes(case.against("fewer"), "better")
    equal = case.against("equal")
    if gains and equal and not count(equal, "better"):
        yield f"gains only where it is not matched in evaluations ({gains})"


def unmatched_strength(case: Case) -> Iterator[str]:
    """More steps do not make guidance stronger; most methods do."""
    equal = case.against("equal")
    strong = [one for one in equal if case.rival(one).match in ("strength", "first order")]
    if strong and count(equal, "better") and not count(strong, "better"):
        yield f"gains only where it is not matched in strength ({_outcomes(equal, 'better')})"


def lost_to_cheaper(case: Case) -> Iterator[str]:
    """It costs more and is worse."""
    if losses := _outcomes(case.against("fewer"), "worse"):
        yield f"worse even than an arm of fewer evaluations ({losses})"


def unmatched(case: Case) -> Iterator[str]:
    """A gain may be one of compute."""
    own = case.arm.evaluations
    if equal := case.against("equal"):
        counts = {case.rival(one).evaluations for one in equal}
        if far := sorted(n for n in counts if n and own and abs(n - own) > SLACK * own):
            numbers = listed([str(n) for n in far])
            yield f"rivals of {numbers} evaluations, not {own}: the nearest that whole steps allow"
    elif case.against("unknown"):
        yield "evaluations are not known: one of the two may have cost more"
    elif case.comparisons:
        yield "no rival of equal evaluations"


def statistics_moved(case: Case) -> Iterator[str]:
    """Saturated, clipped or less diverse pictures are what strong guidance makes."""
    for scorer in case.scorers(judged=False):
        own = [one for one in case.scope if one.scorer == scorer.name]
        moved = [one.difference.mean for one in own if one.outcome == "differs"]
        for word, sign in (("rose", 1), ("fell", -1)):
            if sizes := [abs(mean) for mean in moved if mean * sign > 0]:
                yield (
                    f"{scorer.name} {word} (against {len(sizes)} of {len(own)}, "
                    f"by {min(sizes):.3g} or more)"
                )


def thin_evidence(case: Case) -> Iterator[str]:
    """How many prompts the words rest on."""
    total = len(case.results.prompts)
    worst: dict[int, list[str]] = {}
    for scorer in case.results.scorers:
        if left_out := max((c.excluded for c in case.scope if c.scorer == scorer.name), default=0):
            worst.setdefault(left_out, []).append(scorer.name)
    for left_out, names in worst.items():
        whose = "" if len(names) == len(case.results.scorers) else f" by {listed(names)}"
        yield f"{left_out} of {total} prompts left out for want of a score{whose}"
    able = [one for one in case.scope if one.difference.n]
    if any(one.difference.n < FEW for one in able):
        yield f"fewer than {FEW} prompts"
    if any(one.detectable == math.inf for one in able):
        yield "too few prompts for any difference to pass the test"


RULES: tuple[Callable[[Case], Iterator[str]], ...] = (
    gained_by_strength_only,
    gained_by_cost_only,
    unmatched_strength,
    lost_to_cheaper,
    unmatched,
    statistics_moved,
    thin_evidence,
)


def _outcomes(comparisons: Iterable[Comparison], outcome: Outcome) -> str:
    """`rival by scorer` for all of this outcome."""
    return listed([f"{one.rival} by {one.scorer}" for one in comparisons if one.outcome == outcome])
