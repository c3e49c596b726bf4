"""`write_vote_page`: two pictures side by side, nothing said of who made which."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from w2sdiff.bench.report.html import render
from w2sdiff.bench.report.poll import KEY_FILE, make_poll, read_key
from w2sdiff.bench.report.thumbnails import thumbnail
from w2sdiff.bench.results import Results, Sample
from w2sdiff.jobs import check_writable, write_whole

__all__ = ["write_vote_page"]

_EDGE, _QUALITY = 768, 92  # a hundred pairs of large pictures make some 25 MB
_TEXT = 2000


def write_vote_page(
    results: Results, arm: str, rival: str, folder: Path, *, count: int = 100, seed: int = 0
) -> list[Path]:
    """Write `vote.html`, a blind vote between two arms, and `vote-key.json`, which undoes it.

    Pairs come in a random order, left and right at random. The page holds no name of an arm, a
    file or the run, and its pictures are written anew, so their files tell nothing either. It
    saves votes to a file; `read_votes` reads them from `folder / "votes"` with the key. Keys of
    earlier polls are kept.

    Args:
        results: what was made.
        arm: the one.
        rival: the other.
        folder: where to write; made if it is not there.
        count: pairs at most, one per prompt.
        seed: decides order and sides; the same one gives the same page.

    Returns:
        The page and the key.

    Raises:
        InputError: see `make_poll`; or a picture cannot be read, or the folder not written.
    """
    poll, samples = make_poll(results, arm, rival, count, seed)
    polls = read_key(folder) | {poll.id: poll}
    texts = [results.prompts[ours.prompt].text[:_TEXT] for ours, _ in samples]
    pictures = (
        [_picture(results, one) for one in (shown if pair.arm_left else shown[::-1])]
        for pair, shown in zip(poll.pairs, samples, strict=True)
    )
    page = render(
        "vote.html",
        ("base.css", "vote.css"),
        ("vote.js",),
        poll={"poll": poll.id, "prompts": texts},
        blocks=pictures,
    )
    key = {
        name: {
            "arm": one.arm,
            "rival": one.rival,
            "pairs": [dataclasses.asdict(pair) for pair in one.pairs],
        }
        for name, one in polls.items()
    }
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / KEY_FILE, json.dumps({"polls": key}, indent=1).encode())
    write_whole(folder / "vote.html", page)
    return [folder / "vote.html", folder / KEY_FILE]


def _picture(results: Results, sample: Sample) -> str:
    assert sample.image is not None  # `make_poll` takes no other
    return thumbnail(results.folder / sample.image, _EDGE, quality=_QUALITY).url
