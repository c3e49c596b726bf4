"""`w2sdiff verify`: do the scorers installed here give the known results?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from w2sdiff.cli.console import Reporter, hush_libraries
from w2sdiff.errors import InputError

__all__ = ["verify"]


def verify(
    data: Annotated[
        Path | None,
        typer.Option(help="A folder with LAION's aesthetic heads (.pth or .jsonl).", metavar="DIR"),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing but what failed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines on stdout.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """Check the installed scorers against golden values; nothing is downloaded.

    Exit codes: 0 nothing failed (what is not installed is no failure), 1 something failed.
    """
    from w2sdiff.scorers.verify import verify as run

    if data is not None and not data.is_dir():
        raise InputError(f"--data {data}: there is no such folder")
    reporter = Reporter(quiet=quiet, as_json=as_json)
    counts = {"ok": 0, "failed": 0, "not installed": 0}
    with hush_libraries(debug=debug):
        for check in run(data):
            counts[check.status] += 1
            line = f"{check.status:<13}  {check.name}: {check.detail}"
            reporter.result(
                line, "check", name=check.name, status=check.status, detail=check.detail
            )
            if quiet and check.status == "failed":
                typer.echo(f"w2sdiff: {line}", err=True)
    reporter.note(", ".join(f"{number} {status}" for status, number in counts.items()))
    if counts["failed"]:
        raise typer.Exit(1)
