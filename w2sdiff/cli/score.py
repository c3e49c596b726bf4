"""`w2sdiff score`: any folder of pictures through any scorers, resumable."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from w2sdiff.cli.console import Reporter, hush_libraries
from w2sdiff.cli.interrupt import Interrupt
from w2sdiff.errors import InputError

if TYPE_CHECKING:
    from w2sdiff.bench.folders.listing import Listing
    from w2sdiff.bench.folders.scorefile import Scored
    from w2sdiff.jobs import Event, Ledger, Summary
    from w2sdiff.scorers import Scorer

__all__ = ["score"]


def score(
    folder: Annotated[
        Path, typer.Argument(help="A folder of pictures, or a .csv of path and prompt.")
    ],
    scorer: Annotated[
        list[str],
        typer.Option(
            help="aesthetic, clipscore:model=shapes-clip, ...; may be given again.", metavar="NAME"
        ),
    ],
    prompts: Annotated[
        str | None,
        typer.Option(help="What the pictures are of: a known set or a file.", metavar="SET"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only the first so many prompts of the set.")
    ] = None,
    prompts_folder: Annotated[
        Path | None, typer.Option(help="Where the files of known prompt sets are.")
    ] = None,
    layout: Annotated[
        str,
        typer.Option(help="auto, run, ledger, png, geneval, hpsv2, table, name, order or bare."),
    ] = "auto",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the scores. Default: scores, in FOLDER."),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Write the table of scores here, too.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    batch: Annotated[int, typer.Option(help="Pictures scored together.")] = 32,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch weights and prompts that are not here.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines on stdout.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """Score a folder of pictures: ours, GenEval's layout, HPSv2's, or any with its prompts.

    Running the same command again scores only what has no score yet. Nothing is written but into
    the output folder, and nothing is downloaded without --download.
    """
    reporter = Reporter(quiet=quiet, as_json=as_json)
    with hush_libraries(debug=debug):
        from w2sdiff.bench.folders import read_folder
        from w2sdiff.jobs import Ledger, check_writable
        from w2sdiff.prompts import load_set

        scorers = _scorers(scorer, device, download)
        known = (
            load_set(prompts, limit=limit, folder=prompts_folder, download=download)
            if prompts
            else None
        )
        listing = read_folder(folder, prompts=known, layout=layout)
        _check_prompts(scorers, listing)
        place = out or (folder / "scores" if folder.is_dir() else folder.with_suffix(".scores"))
        for target in (place, *([csv.parent] if csv else [])):
            check_writable(target)
        _announce(reporter, listing, scorers)
        with Ledger(place) as ledger:
            summary, scored = _score(reporter, listing, scorers, ledger, batch)
        files = _write(scored, place, csv)
    _conclude(reporter, scored, summary, files)


def _scorers(texts: Sequence[str], device: str, download: bool) -> list[Scorer]:
    from w2sdiff.generate.settings import Settings
    from w2sdiff.scorers import parse_scorer

    scorers = [parse_scorer(text) for text in texts]
    names = [scorer.name for scorer in scorers]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"the scorer {twice[0]} is asked for twice")
    place = Settings(steps=1, guidance=1.0, device=device).on_device(small=True).device
    return [scorer.to(place).allow_download(download) for scorer in scorers]


def _check_prompts(scorers: Sequence[Scorer], listing: Listing) -> None:
    reading = [scorer.name for scorer in scorers if scorer.needs_prompt]
    if reading and not listing.has_prompts:
        raise InputError(
            f"{reading[0]} needs to know what the pictures are of: --prompts SET, or a table of "
            "path and prompt instead of the folder"
        )


def _announce(reporter: Reporter, listing: Listing, scorers: Sequence[Scorer]) -> None:
    for problem in listing.problems:
        reporter.note(f"left out: {problem}")
    prompts = len({entry.id for entry in listing.entries})
    names = ", ".join(scorer.name for scorer in scorers)
    reporter.note(
        f"{len(listing.entries)} pictures of {prompts} prompts (layout {listing.layout}), {names}"
    )
    reporter.result(
        "",
        "plan",
        layout=listing.layout,
        pictures=len(listing.entries),
        left_out=list(listing.problems),
        scorers=[scorer.to_json() for scorer in scorers],
    )


def _score(
    reporter: Reporter, listing: Listing, scorers: Sequence[Scorer], ledger: Ledger, batch: int
) -> tuple[Summary, Scored]:
    from w2sdiff.bench.folders.score import score_folder

    stopping = "stopping after the batch in hand; Ctrl-C again to stop at once"
    total = len(listing.entries) * len(scorers)
    with reporter.bar(total, "scoring") as bar, Interrupt(lambda: reporter.note(stopping)) as stop:

        def say(event: Event) -> None:
            bar.advance(str(event.item.spec["scorer"]))
            if event.kind == "failed":
                reporter.note(f"no score by {event.item.spec['scorer']}: {event.record.reason}")

        return score_folder(listing, scorers, ledger, batch=batch, on_event=say, stopping=stop)


def _write(scored: Scored, place: Path, table: Path | None) -> list[Path]:
    """Write `scored.json` and the table, with what other scorers said before."""
    from w2sdiff.bench.folders.scorefile import (
        NAME,
        read_scored,
        scores_csv,
        with_earlier,
        write_scored,
    )
    from w2sdiff.jobs import write_whole

    if (place / NAME).is_file():
        scored = with_earlier(scored, read_scored(place))
    place.mkdir(parents=True, exist_ok=True)
    files = [write_scored(scored, place)]
    for path in filter(None, (place / "scores.csv", table)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, scores_csv(scored).encode())
        files.append(path)
    return files


def _conclude(reporter: Reporter, scored: Scored, summary: Summary, files: Sequence[Path]) -> None:
    for scorer in scored.scorers:
        values: dict[str, list[float | None]] = defaultdict(list)
        for entry, scores in zip(scored.listing.entries, scored.scores, strict=True):
            facts = scores.get(scorer.name)
            values[entry.arm].append(facts.score if facts else None)
        for arm, numbers in values.items():
            there = [number for number in numbers if number is not None]
            mean = sum(there) / len(there) if there else None
            without = len(numbers) - len(there)
            what = f"{scorer.name}, {arm}" if arm else scorer.name
            said = "no score" if mean is None else f"{mean:.6g} over {len(there)} pictures"
            reporter.result(
                f"{what}: {said}" + (f", {without} without a score" if without else ""),
                "mean",
                scorer=scorer.name,
                arm=arm,
                mean=mean,
                pictures=len(there),
                without=without,
                recipe=scorer.recipe,
            )
    for path in files:
        reporter.result(str(path), "file", file=str(path))
    counts = {"made": "scored", "found": "there already", "elsewhere": "by another process"}
    counts |= {"failed": "failed", "left": "not reached"}
    parts = [f"{getattr(summary, name)} {word}" for name, word in counts.items()]
    reporter.note(", ".join(part for part in parts if not part.startswith("0 ")))
    reporter.result("", "summary", **{name: getattr(summary, name) for name in counts})
    if summary.left:
        raise typer.Exit(130)
    if summary.failed or scored.listing.problems:
        raise typer.Exit(1)
