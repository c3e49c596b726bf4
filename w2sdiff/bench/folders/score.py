"""A listing of pictures through scorers of both kinds, into one value."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from w2sdiff.bench.folders.listing import Listing
from w2sdiff.bench.folders.scorefile import Scored, facts_of
from w2sdiff.bench.scoring.score import (
    Picture,
    ScoreFacts,
    hashed,
    read_groups,
    read_scores,
    score_groups,
    score_pictures,
)
from w2sdiff.jobs import Event, Ledger, Summary
from w2sdiff.scorers import Scorer

__all__ = ["score_folder"]


def score_folder(
    listing: Listing,
    scorers: Sequence[Scorer],
    ledger: Ledger,
    *,
    batch: int = 32,
    on_event: Callable[[Event], None] = lambda _: None,
    stopping: Callable[[], bool] = lambda: False,
) -> tuple[Summary, Scored]:
    """Score every picture of a listing; scorers of sets score those of one arm and prompt together.

    Args:
        listing: from `read_folder`.
        scorers: of both kinds.
        ledger: where scores are kept.
        batch: pictures per call of a scorer.
        on_event: told about each score that was found, made, or failed.
        stopping: asked before each batch.

    Returns:
        The counts, and everything that is known now.

    Raises:
        InputError: as `score_pictures`.
    """
    pictures = hashed(Picture(e.path, e.sha256, e.prompt) for e in listing.entries)
    entries = tuple(
        replace(entry, sha256=picture.sha256)
        for entry, picture in zip(listing.entries, pictures, strict=True)
    )
    listing = replace(listing, entries=entries)
    single = [scorer for scorer in scorers if not scorer.per_prompt]
    together = [scorer for scorer in scorers if scorer.per_prompt]
    members = _groups(listing)
    groups = [[pictures[place] for place in group] for group in members]

    one = score_pictures(
        pictures, single, ledger, batch=batch, on_event=on_event, stopping=stopping
    )
    two = score_groups(groups, together, ledger, on_event=on_event, stopping=stopping)
    found: list[dict[str, ScoreFacts]] = [{} for _ in pictures]
    for (place, name), facts in read_scores(ledger, pictures, single).items():
        found[place][name] = facts
    for (number, name), facts in read_groups(ledger, groups, together).items():
        for place in members[number]:
            found[place][name] = facts
    summary = Summary(**{name: count + asdict(two)[name] for name, count in asdict(one).items()})
    return summary, Scored(listing, tuple(map(facts_of, scorers)), tuple(found))


def _groups(listing: Listing) -> list[list[int]]:
    """The numbers of the pictures of each arm and prompt that has two or more."""
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, entry in enumerate(listing.entries):
        found[entry.arm, entry.id].append(place)
    return [group for group in found.values() if len(group) > 1]
