"""`w2sdiff report`: the pages and tables of a run, and the blind vote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from w2sdiff.cli.console import Reporter
from w2sdiff.errors import InputError

if TYPE_CHECKING:
    from w2sdiff.bench.analysis import Analysis
    from w2sdiff.bench.results import Results

__all__ = ["report"]


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(help="A run of `bench`; or folders of `score`, one per arm.", metavar="RUN"),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the pages. Default: that of the run."),
    ] = None,
    votes: Annotated[
        list[Path] | None,
        typer.Option(help="A file of votes, besides those in votes/ of the folder of the pages."),
    ] = None,
    vote_page: Annotated[
        tuple[str, str] | None,
        typer.Option(help="Also write vote.html: a blind vote between two.", metavar="ARM RIVAL"),
    ] = None,
    pairs: Annotated[int, typer.Option(help="Pairs on the vote page, at most.")] = 100,
    pictures: Annotated[
        int | None,
        typer.Option(help="Prompts whose pictures lie inside the page. Default: what fits."),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    html: Annotated[bool, typer.Option("--html/--no-html", help="Pages, or only tables.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines on stdout.")] = False,
    debug: Annotated[bool, typer.Option(help="Show where an error came from.")] = False,
) -> None:
    """Say whether it is better, by how much, how sure and at what cost.

    Reads what `bench` or `score` left behind, and needs no model and no weights. Writes index.html,
    summary.md, summary.csv, summary.json and the drawings as PNG files.
    """
    del debug  # `main` looks for it
    reporter = Reporter(quiet=quiet, as_json=as_json)
    if out is None and len(folders) > 1:
        raise InputError("several folders: say with --out where the pages are to go")
    where = out or folders[0]

    from w2sdiff.bench.report import write_vote_page
    from w2sdiff.bench.stats.analyse import analyse
    from w2sdiff.bench.tables.summary import write_summary
    from w2sdiff.jobs import check_writable

    results = _read(folders)
    check_writable(where)
    results, refused = _with_votes(reporter, results, where, votes or [])
    analysis = analyse(results)
    written = write_summary(results, analysis, where)
    if html:
        written = [*_pages(reporter, results, analysis, where, pictures), *written]
    if vote_page:
        written += write_vote_page(results, *vote_page, where, count=pairs)
    for judgement in analysis.judgements:
        text = "\n  ".join([judgement.sentence, *judgement.marks])
        reporter.result(
            text,
            "verdict",
            arm=judgement.arm,
            sentence=judgement.sentence,
            marks=list(judgement.marks),
        )
    for path in written:
        reporter.result(str(path), "file", file=str(path))
    absent = sum(sample.status != "done" for sample in results.samples)
    if absent:
        reporter.note(f"{absent} of {len(results.samples)} pictures are missing or failed")
    if show and html:
        import webbrowser

        webbrowser.open((where / "index.html").resolve().as_uri())
    if absent or refused:
        raise typer.Exit(1)


def _read(folders: list[Path]) -> Results:
    from w2sdiff.bench.folders.scored import folder_results
    from w2sdiff.bench.run.collect import read_results
    from w2sdiff.bench.run.manifest import FILE

    if len(folders) == 1 and (folders[0] / FILE).is_file():
        return read_results(folders[0])
    return folder_results(folders)


def _with_votes(
    reporter: Reporter, results: Results, where: Path, files: list[Path]
) -> tuple[Results, int]:
    """The results with the votes there are, and how many files were refused."""
    from w2sdiff.bench.report import fold_votes, read_votes

    votes = read_votes(where, files)
    for path, reason in votes.refused:
        reporter.note(f"votes left out: {path}: {reason}")
    folded = fold_votes(results, votes)
    if votes.votes:
        counts = folded.provenance.get("votes", {"counted": 0})
        reporter.note(f"votes: {counts['counted']} of {len(votes.votes)} count")
    return folded, len(votes.refused)


def _pages(
    reporter: Reporter, results: Results, analysis: Analysis, where: Path, pictures: int | None
) -> list[Path]:
    from w2sdiff.bench.report import write_report
    from w2sdiff.bench.report.gallery import shown

    total = shown(results, pictures) * results.replicates * len(results.arms)
    with reporter.bar(total, "pictures") as bar:
        return write_report(
            results,
            analysis,
            where,
            pictures=pictures,
            on_progress=lambda _done, _total: bar.advance("pictures"),
        )
