"""Scores, through the ledger: each (picture, prompt, recipe) is scored once, whoever asks again.

    pictures -> Batches (lazy tasks) -> ScoreWork (reads ahead, scores, names what is bad)

A score belongs to the bytes of a picture, never to its name or place: a renamed folder, another
arm with the same picture, or a second run finds it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from w2sdiff.bench.scoring.batches import Batch, Batches, item_of
from w2sdiff.bench.scoring.pictures import Picture, Unit, hashed
from w2sdiff.bench.scoring.work import ScoreWork
from w2sdiff.errors import InputError
from w2sdiff.jobs import Event, Ledger, Summary, run_local
from w2sdiff.scorers import Scorer

__all__ = [
    "Batch",
    "Batches",
    "Picture",
    "ScoreFacts",
    "ScoreWork",
    "hashed",
    "read_groups",
    "read_scores",
    "score_groups",
    "score_pictures",
]


@dataclass(frozen=True)
class ScoreFacts:
    """What the ledger knows of one score.

    Attributes:
        score: None if there is none; then `reason` says why.
        tokens: of the prompt, before it is cut; None if the scorer does not count them.
        truncated: whether the scorer read only the beginning of the prompt.
        reason: why there is no score: "not a number", "... is not an image", ...
    """

    score: float | None
    tokens: int | None = None
    truncated: bool = False
    reason: str | None = None


def score_pictures(
    pictures: Sequence[Picture],
    scorers: Sequence[Scorer],
    ledger: Ledger,
    *,
    batch: int = 32,
    on_event: Callable[[Event], None] = lambda _: None,
    on_batch: Callable[[Scorer, int], None] = lambda _scorer, _pictures: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Summary:
    """Score pictures that have no score yet, one scorer after the other, each freed after use.

    A picture that cannot be read, a score that is no number, a scorer that refuses a picture: each
    is a failed record with the reason, and every other picture has its score. A picture that is
    there twice, with one prompt, is scored and counted once.

    Args:
        pictures: what to score; pictures without a sha256 are read to find it.
        scorers: none of them `per_prompt`.
        ledger: where scores are kept.
        batch: pictures per call of a scorer; halved when memory runs out.
        on_event: told about each score that was found, made, or failed.
        on_batch: told after each call how many pictures went through which scorer.
        stopping: asked before each batch; once it says yes, the run ends.

    Returns:
        The counts, over all scorers.

    Raises:
        InputError: the weights of a scorer are not here (said before anything is scored), a prompt
            that no text encoder should see, or a folder that cannot be written.
    """
    for scorer in scorers:
        if scorer.per_prompt:
            raise InputError(f"the scorer {scorer.name} scores groups of pictures: score_groups()")
    units: list[Unit] = [(picture,) for picture in hashed(pictures)]
    return _score(units, scorers, ledger, batch, on_event, on_batch, stopping)


def score_groups(
    groups: Sequence[Sequence[Picture]],
    scorers: Sequence[Scorer],
    ledger: Ledger,
    *,
    batch: int = 8,
    on_event: Callable[[Event], None] = lambda _: None,
    on_batch: Callable[[Scorer, int], None] = lambda _scorer, _pictures: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Summary:
    """As `score_pictures`, for scorers `per_prompt`: one score for all pictures of a prompt.

    Args:
        groups: the pictures of one prompt (and one arm) each. Groups of fewer than two pictures
            have no such score and are passed over.
        scorers: all of them `per_prompt`.
        ledger: where scores are kept.
        batch: groups per task.
        on_event: as above.
        on_batch: as above.
        stopping: as above.

    Returns:
        The counts, in groups.

    Raises:
        InputError: as above.
    """
    for scorer in scorers:
        if not scorer.per_prompt:
            raise InputError(f"the scorer {scorer.name} scores single pictures: score_pictures()")
    units = [tuple(hashed(group)) for group in groups if len(group) > 1]
    return _score(units, scorers, ledger, batch, on_event, on_batch, stopping)


def read_scores(
    ledger: Ledger, pictures: Sequence[Picture], scorers: Sequence[Scorer]
) -> dict[tuple[int, str], ScoreFacts]:
    """What the ledger knows, by index of the picture and name of the scorer.

    What was not tried yet is absent.
    """
    units: list[Unit] = [(picture,) for picture in hashed(pictures)]
    return dict(_read(ledger, units, scorers))


def read_groups(
    ledger: Ledger, groups: Sequence[Sequence[Picture]], scorers: Sequence[Scorer]
) -> dict[tuple[int, str], ScoreFacts]:
    """As `read_scores`, by index of the group, for scorers `per_prompt`."""
    return dict(_read(ledger, [tuple(hashed(group)) for group in groups], scorers))


def _score(
    units: Sequence[Unit],
    scorers: Sequence[Scorer],
    ledger: Ledger,
    batch: int,
    on_event: Callable[[Event], None],
    on_batch: Callable[[Scorer, int], None],
    stopping: Callable[[], bool],
) -> Summary:
    total = Summary()
    plans = [Batches(units, scorer, batch=batch) for scorer in scorers]  # weights missing: said now
    for plan in plans:

        def tell(pictures: int, scorer: Scorer = plan.scorer) -> None:
            on_batch(scorer, pictures)

        with ScoreWork(plan, ledger, on_batch=tell) as work:
            summary = run_local(ledger, plan, work, on_event=on_event, stopping=stopping)
        for name, count in asdict(summary).items():
            setattr(total, name, getattr(total, name) + count)
    return total


def _read(
    ledger: Ledger, units: Sequence[Unit], scorers: Sequence[Scorer]
) -> Iterator[tuple[tuple[int, str], ScoreFacts]]:
    for scorer in scorers:
        recipe = scorer.recipe()
        for index, unit in enumerate(units):
            record = ledger.get(item_of(unit, scorer, recipe).key)
            if record is not None:
                facts = record.facts
                score = facts.get("score") if record.status == "done" else None
                yield (
                    (index, scorer.name),
                    ScoreFacts(
                        score,
                        facts.get("tokens"),
                        bool(facts.get("truncated", False)),
                        record.reason,
                    ),
                )
