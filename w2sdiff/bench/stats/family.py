"""Which pairs of arms are compared, and what asking many questions at once costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from w2sdiff.errors import InputError

if TYPE_CHECKING:
    from w2sdiff.bench.results import Results, ScorerFacts

__all__ = ["check_scorers", "family", "holm"]


def family(results: Results, *, all_pairs: bool = False) -> tuple[tuple[str, str], ...]:
    """The pairs (arm, rival) of an analysis, each once.

    Each arm that was asked for against each of its rivals; then the pairs of `results.compare`;
    then each arm that was asked for against the first one, which is what people compare with by
    habit: without it a gain that is there only where nothing is matched could not be told.

    Args:
        results: the run.
        all_pairs: every other pair too, which makes all corrected p larger.

    Raises:
        InputError: a pair names an arm that is not there, or twice the same.
    """
    asked = [arm.name for arm in results.arms if arm.rival_of is None]
    wanted = [(name, rival.name) for name in asked for rival in results.rivals(name)]
    wanted += [_checked(pair, results) for pair in results.compare]
    wanted += [(name, asked[0]) for name in asked[1:]]
    if all_pairs:
        wanted += [(b.name, a.name) for a, b in combinations(results.arms, 2)]
    once: dict[frozenset[str], tuple[str, str]] = {}
    for pair in wanted:
        once.setdefault(frozenset(pair), pair)
    return tuple(once.values())


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number (Holm 1979): the chance of one false alarm stays below.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def check_scorers(scorers: Iterable[ScorerFacts]) -> None:
    """Refuse a table with two recipes under one name.

    Raises:
        InputError: it names both.
    """
    known: dict[str, ScorerFacts] = {}
    for scorer in scorers:
        other = known.setdefault(scorer.name, scorer)
        if other.recipe != scorer.recipe:
            raise InputError(
                f"the scores of {scorer.name!r} come from two recipes, {_recipe(other)} and "
                f"{_recipe(scorer)}{_where(other, scorer)}: they are not comparable; score all "
                "pictures with one"
            )


def _recipe(scorer: ScorerFacts) -> str:
    return scorer.recipe[:12] or "an unknown one"


def _where(one: ScorerFacts, other: ScorerFacts) -> str:
    """In which of their entries two fingerprints differ."""
    names = sorted(
        name
        for name in {*one.fingerprint, *other.fingerprint}
        if one.fingerprint.get(name) != other.fingerprint.get(name)
    )
    return f" (they differ in: {', '.join(names)})" if names else ""


def _checked(pair: tuple[str, str], results: Results) -> tuple[str, str]:
    names = [arm.name for arm in results.arms]
    for name in pair:
        if name not in names:
            raise InputError(f"there is no arm {name!r} to compare (there are: {', '.join(names)})")
    if pair[0] == pair[1]:
        raise InputError(f"expected two different arms to compare, got {pair[0]!r} twice")
    return pair
