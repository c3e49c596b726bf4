"""`w2sdiff compare`: is one arm better than another, by how much, how sure?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from w2sdiff.cli.console import Reporter
from w2sdiff.errors import InputError

if TYPE_CHECKING:
    from w2sdiff.bench.analysis import Analysis, Comparison
    from w2sdiff.bench.results import Results

__all__ = ["compare"]

_FOLDER = "A run of `bench`, or a folder that `score` has scored; FOLDER:ARM if it has several."


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help=_FOLDER)],
    second: Annotated[str, typer.Argument(metavar="B", help="What A is compared with; the same.")],
    scorer: Annotated[
        list[str] | None,
        typer.Option(help="Only this score; may be given again. Default: all that both have."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a report and tables to this folder.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines on stdout.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """Compare two arms, or two scored folders, prompt by prompt.

    Pictures are paired by prompt id and replicate. Scores of different recipes are never compared.

    Examples: w2sdiff compare runs/shapes:w2sd runs/shapes:plain; w2sdiff compare ours theirs
    """
    del debug
    from w2sdiff.bench.compare import other_noise, read_sides, side_by_side
    from w2sdiff.bench.stats.analyse import analyse
    from w2sdiff.jobs import check_writable

    reporter = Reporter(quiet=quiet, as_json=as_json)
    if out is not None:
        check_writable(out)
    results = side_by_side(*read_sides(first, second), scorer or ())
    analysis = analyse(results)
    if not any(one.difference.n for one in analysis.comparisons):
        raise InputError(
            "nothing to compare: no prompt has a score on both sides (pictures are paired by "
            "prompt id and replicate)"
        )
    differ, known = other_noise(results)
    if differ:
        reporter.note(f"{differ} of {known} pairs of pictures began with different noise")
    _tell(reporter, analysis)
    if out is not None:
        _write(reporter, results, analysis, out)


def _tell(reporter: Reporter, analysis: Analysis) -> None:
    from w2sdiff.bench.tables.summary import plain_json

    reporter.result(_table(analysis), "comparisons", comparisons=plain_json(analysis.comparisons))
    judgement = next(one for one in analysis.judgements if one.arm == analysis.comparisons[0].arm)
    text = "\n".join([judgement.sentence, *(f"  {mark}" for mark in judgement.marks)])
    reporter.result(text, "judgement", **plain_json(judgement))


def _table(analysis: Analysis) -> str:
    """The comparisons in columns as wide as they need to be."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    arm, rival = analysis.comparisons[0].arm, analysis.comparisons[0].rival
    heads = ("score", "prompts", arm, rival, "difference (95%)", "p (Holm)", "won-tied-lost")
    for head in (*heads, "win rate", "would be seen", "outcome"):
        table.add_column(Text(head), overflow="fold")
    for one in analysis.comparisons:
        table.add_row(*(Text(cell) for cell in _row(one, analysis)))
    console = Console(width=200, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _row(one: Comparison, analysis: Analysis) -> list[str]:
    low, high = one.difference.interval
    return [
        one.scorer,
        str(one.difference.n),
        *(_number(analysis.cell(arm, one.scorer).mean) for arm in (one.arm, one.rival)),
        f"{_number(one.difference.mean, '+')} ({_number(low)} to {_number(high)})",
        _number(one.p_holm),
        f"{one.wins}-{one.ties}-{one.losses}",
        f"{_number(one.win_rate)} ({' to '.join(map(_number, one.win_interval))})",
        _number(one.detectable),
        one.outcome,
    ]


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3g}" if math.isfinite(value) else "-"


def _write(reporter: Reporter, results: Results, analysis: Analysis, out: Path) -> None:
    from w2sdiff.bench.report import write_report
    from w2sdiff.bench.tables.summary import write_summary

    files = write_summary(results, analysis, out)
    total = len(results.samples)
    with reporter.bar(total, "pictures") as bar:
        files += write_report(
            results, analysis, out, on_progress=lambda _done, _total: bar.advance("pictures")
        )
    for path in files:
        reporter.result(str(path), "file", file=str(path))
