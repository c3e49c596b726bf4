"""`w2sdiff prompts list|fetch|show`: the known prompt sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from w2sdiff.cli.console import Reporter
from w2sdiff.errors import InputError

__all__ = ["prompts"]

prompts = typer.Typer(help="Known prompt sets: list, fetch, show.", no_args_is_help=True)

_Folder = Annotated[Path | None, typer.Option("--folder", help="Where to look, before the cache.")]
_Json = Annotated[bool, typer.Option("--json", help="JSON lines on stdout.")]
_Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]


@prompts.command("list")
def list_sets(folder: _Folder = None, as_json: _Json = False, debug: _Debug = False) -> None:
    """List the known prompt sets: name, prompts, licence, and whether they are here."""
    del debug  # read by main()
    from w2sdiff.prompts import BUILT_IN, KNOWN, find_files, load_set

    reporter = Reporter(quiet=False, as_json=as_json)
    for name in BUILT_IN:
        count = load_set(name).count
        _tell(reporter, name, count, "built in", "Apache-2.0", "captions of the embedded world", "")
    for known in KNOWN.values():
        here = find_files(known, folder) is not None
        fetchable = all(file.url for file in known.files)
        place = "here" if here else "to fetch" if fetchable else "by hand"
        _tell(reporter, known.name, known.count, place, known.licence, known.title, known.note)


@prompts.command("fetch")
def fetch(
    names: Annotated[list[str], typer.Argument(help="Names of sets.", metavar="SET...")],
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where to keep them. Default: the cache.")
    ] = None,
    as_json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Fetch known prompt sets, over https; what has not the known hash is not kept."""
    del debug
    from w2sdiff.prompts import KNOWN, fetch_set

    reporter = Reporter(quiet=False, as_json=as_json)
    for name in names:
        for path in fetch_set(name, folder=folder):
            reporter.result(str(path), "file", set=name, file=str(path))
        reporter.note(f"{name}: {KNOWN[name].source}; licence: {KNOWN[name].licence}")


@prompts.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A known set, or a file.", metavar="SET")],
    limit: Annotated[int, typer.Option(help="Only the first so many prompts.")] = 10,
    category: Annotated[str | None, typer.Option(help="Only prompts of this category.")] = None,
    folder: _Folder = None,
    as_json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Show the prompts of a set with their ids and categories."""
    del debug
    from collections import Counter

    from w2sdiff.bench.scoring.pictures import shown
    from w2sdiff.prompts import load_set

    if limit < 1:
        raise InputError(f"expected a limit of at least 1, got {limit}")
    reporter = Reporter(quiet=False, as_json=as_json)
    found = load_set(name, folder=folder)
    counts = Counter(row.columns.get("category", "") for row in found.rows)
    if category is not None and category not in counts:
        raise InputError(f"{name} has no category {category!r} (it has: {', '.join(counts)})")
    rows = [r for r in found.rows if category in (None, r.columns.get("category", ""))]
    reporter.note(f"{found.name}: {found.count} prompts, {found.source}, sha256 {found.sha256}")
    if found.licence:
        reporter.note(f"licence: {found.licence}")
    if counts.keys() != {""}:
        reporter.note(", ".join(f"{shown(word)} {n}" for word, n in counts.items()))
    for row in rows[:limit]:
        group = row.columns.get("category", "")
        reporter.result(
            shown("  ".join(filter(None, (row.id, f"[{group}]" if group else "", row.text)))),
            "prompt",
            id=row.id,
            prompt=row.text,
            columns=dict(row.columns),
        )
    if len(rows) > limit:
        reporter.note(f"... and {len(rows) - limit} more (--limit)")


def _tell(
    reporter: Reporter, name: str, count: int, place: str, licence: str, title: str, note: str
) -> None:
    reporter.result(
        f"{name:26} {count:>6}  {place:9} {licence.split(';')[0]:28} {title}",
        "set",
        name=name,
        count=count,
        place=place,
        licence=licence,
        title=title,
        note=note,
    )
