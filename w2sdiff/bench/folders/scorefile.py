"""A scored folder, written down: the pictures, their scores, and what gave them.

`scored.json` is all that `compare` and `report` need: no weights, no scorer, no prompt file.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from w2sdiff.bench.folders.listing import Entry, Listing
from w2sdiff.bench.results import ScorerFacts
from w2sdiff.bench.scoring.score import ScoreFacts
from w2sdiff.bench.tables.csvsafe import safe_cell
from w2sdiff.errors import InputError
from w2sdiff.jobs import write_whole
from w2sdiff.scorers import Scorer

__all__ = [
    "NAME",
    "Scored",
    "facts_of",
    "find_scored",
    "read_scored",
    "scores_csv",
    "with_earlier",
    "write_scored",
]

NAME = "scored.json"
SCHEMA = 1
_MAX_BYTES = 2**30


@dataclass(frozen=True)
class Scored:
    """The pictures of a folder with their scores.

    Attributes:
        listing: the pictures.
        scorers: in the order they were asked for.
        scores: by number of the picture, by name of the scorer; what was not tried is absent.
    """

    listing: Listing
    scorers: tuple[ScorerFacts, ...]
    scores: tuple[Mapping[str, ScoreFacts], ...]


def facts_of(scorer: Scorer) -> ScorerFacts:
    """What a table must know of a scorer."""
    return ScorerFacts(
        name=scorer.name,
        group=scorer.group,
        higher_is_better=scorer.higher_is_better,
        expected=scorer.expected,
        needs_prompt=scorer.needs_prompt,
        max_tokens=scorer.max_tokens,
        tie=scorer.tie,
        recipe=scorer.recipe(),
        fingerprint=scorer.fingerprint(),
    )


def write_scored(scored: Scored, folder: Path) -> Path:
    """Write `scored.json` into a folder; equal scores give equal bytes.

    Raises:
        InputError: the folder cannot be written.
    """
    path = folder / NAME
    data = {
        "schema": SCHEMA,
        "layout": scored.listing.layout,
        "problems": list(scored.listing.problems),
        "scorers": [asdict(scorer) for scorer in scored.scorers],
        "pictures": [
            {
                **asdict(replace(entry, path=Path())),
                "path": Path(os.path.relpath(entry.path.absolute(), folder.absolute())).as_posix(),
                "scores": {name: asdict(facts) for name, facts in scores.items()},
            }
            for entry, scores in zip(scored.listing.entries, scored.scores, strict=True)
        ],
    }
    write_whole(path, json.dumps(data, indent=1, sort_keys=True, default=str).encode())
    return path


def with_earlier(scored: Scored, earlier: Scored) -> Scored:
    """The same, and the scores that scorers of an earlier time gave to exactly these pictures."""
    if _pictures(scored) != _pictures(earlier):
        return scored
    names = {scorer.name for scorer in scored.scorers}
    kept = tuple(scorer for scorer in earlier.scorers if scorer.name not in names)
    scores = tuple(
        {**{scorer.name: old[scorer.name] for scorer in kept if scorer.name in old}, **new}
        for old, new in zip(earlier.scores, scored.scores, strict=True)
    )
    return Scored(scored.listing, (*kept, *scored.scorers), scores)


def find_scored(folder: Path) -> Path | None:
    """The `scored.json` here, or in `scores/` here; None if there is none."""
    places = (folder / NAME, folder / "scores" / NAME)
    return next((path for path in places if path.is_file()), None)


def read_scored(folder: Path) -> Scored:
    """Read what `write_scored` wrote; paths are those of the files as seen from here.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = find_scored(folder)
    if path is None:
        raise InputError(f"{folder} has no scores: run `w2sdiff score {folder} --scorer ...` first")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path} has more than {_MAX_BYTES} bytes")
        data = json.loads(path.read_bytes())
        if data["schema"] != SCHEMA:
            raise InputError(f"{path} was written by another version of w2sdiff; score again")
        entries = [_entry(picture, path.parent) for picture in data["pictures"]]
        scores = [
            {str(name): ScoreFacts(**facts) for name, facts in picture["scores"].items()}
            for picture in data["pictures"]
        ]
        for facts in (facts for picture in scores for facts in picture.values()):
            _check_score(facts.score)
        scorers = tuple(
            ScorerFacts(**{**scorer, "expected": tuple(scorer["expected"])})
            for scorer in data["scorers"]
        )
        listing = Listing(str(data["layout"]), tuple(entries), tuple(map(str, data["problems"])))
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); score again") from error
    return Scored(listing, scorers, tuple(scores))


def scores_csv(scored: Scored) -> str:
    """A table for a spreadsheet: a row per picture, a column per scorer.

    What users wrote can be no formula there (see `safe_cell`).
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    names = [scorer.name for scorer in scored.scorers]
    columns = ("arm", "id", "replicate", "category", "prompt", "path", "sha256")
    writer.writerow([*columns, *map(safe_cell, names), "truncated", "problems"])
    for entry, scores in zip(scored.listing.entries, scored.scores, strict=True):
        found = [scores.get(name, ScoreFacts(None)) for name in names]
        cut = [name for name, facts in zip(names, found, strict=True) if facts.truncated]
        reasons = sorted({facts.reason for facts in found if facts.reason})
        words = (entry.arm, entry.id, entry.category, entry.prompt, str(entry.path))
        arm, name, category, prompt, path = map(safe_cell, words)
        writer.writerow(
            [
                *(arm, name, entry.replicate, category, prompt, path, entry.sha256),
                *("" if facts.score is None else repr(facts.score) for facts in found),
                safe_cell("; ".join(cut)),
                safe_cell("; ".join(reasons)),
            ]
        )
    return out.getvalue()


def _pictures(scored: Scored) -> list[tuple[str | None, str, str, str]]:
    return [(e.sha256, e.prompt, e.id, e.arm) for e in scored.listing.entries]


def _check_score(score: object) -> None:
    if score is None:
        return
    if not isinstance(score, int | float) or not math.isfinite(score):
        raise ValueError(f"a score is {score!r}")


def _entry(picture: Mapping[str, Any], base: Path) -> Entry:
    words = ("id", "prompt", "category", "arm")
    for name in (*words, "path", "sha256"):
        if not isinstance(picture[name], str):
            raise TypeError(f"{name} is {picture[name]!r}")
    return Entry(
        path=Path(os.path.normpath(base / picture["path"])),
        replicate=int(picture["replicate"]),
        sha256=picture["sha256"],
        **{name: picture[name] for name in words},
    )
