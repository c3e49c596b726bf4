"""`w2sdiff bench`: an experiment from its file to the verdict, resumable."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from w2sdiff.cli.console import Reporter, hush_libraries
from w2sdiff.cli.interrupt import Interrupt
from w2sdiff.errors import InputError

if TYPE_CHECKING:
    from w2sdiff.bench.plan.experiment import Experiment
    from w2sdiff.bench.plan.missing import Missing
    from w2sdiff.bench.plan.words import Words
    from w2sdiff.bench.run.forecast import Forecast
    from w2sdiff.bench.run.watch import Watch
    from w2sdiff.bench.run.whole import Outcome
    from w2sdiff.jobs.accelerate import Process

__all__ = ["EPILOG", "bench"]

_EPILOG = """
An experiment file says what to compare: arms (a method and its settings each), prompts, scorers.
Every arm is also given rivals of equal evaluations: plain sampling with more steps, plain guidance
at the arm's measured strength, what it is to first order, and the best of several pictures.

Several processes may run the same command on the same folder at once, under `accelerate launch` or
simply in several terminals; each takes the next batch. Running it again makes only what is not
there yet. Ctrl-C finishes the batch in hand; a second one stops at once. Exit codes: 0 all is
there, 1 something failed, 2 wrong input.
"""
EPILOG = "\n\n".join(" ".join(part.split()) for part in _EPILOG.split("\n\n"))

_PART, _MACHINE, _OUTPUT = "Which part", "Machine", "Output"


def _option(panel: str, text: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar)


def bench(
    experiment: Annotated[
        Path, typer.Argument(help="A .yaml or .json file.", metavar="EXPERIMENT")
    ],
    limit: Annotated[int | None, _option(_PART, "Only so many prompts, from the first.")] = None,
    shard: Annotated[
        str | None, _option(_PART, "Draw and score one part of n: 1/4.", metavar="I/N")
    ] = None,
    no_rivals: Annotated[
        bool, _option(_PART, "No rivals of equal evaluations.", "--no-rivals")
    ] = False,
    device: Annotated[
        str | None, _option(_MACHINE, "auto, cpu, cuda, cuda:1, mps. Default: the file's.")
    ] = None,
    batch: Annotated[
        int | None, _option(_MACHINE, "Pictures made together. Default: the file's.")
    ] = None,
    engine: Annotated[
        str, _option(_MACHINE, "local: this process; ray: actors of a cluster.")
    ] = "local",
    workers: Annotated[int | None, _option(_MACHINE, "How many actors of ray.")] = None,
    download: Annotated[
        bool, _option(_MACHINE, "Fetch models, weights and prompts.", "--download")
    ] = False,
    out: Annotated[
        Path | None,
        _option(_OUTPUT, "Run folder. Default: runs/<name of the file>.", "--out", "-o"),
    ] = None,
    no_report: Annotated[
        bool, _option(_OUTPUT, "Tables, but no pages and plots.", "--no-report")
    ] = False,
    dry_run: Annotated[
        bool,
        _option(_OUTPUT, "Only say what it would make and cost, and what is missing.", "--dry-run"),
    ] = False,
    quiet: Annotated[bool, _option(_OUTPUT, "Say nothing but errors.", "--quiet", "-q")] = False,
    as_json: Annotated[bool, _option(_OUTPUT, "JSON lines on stdout.", "--json")] = False,
    debug: Annotated[bool, _option(_OUTPUT, "Show where an error came from.", "--debug")] = False,
) -> None:
    """Run an experiment: draw, score, compare at equal evaluations, report."""
    if engine not in ("local", "ray"):
        raise InputError(f"expected the engine local or ray, got {engine!r}")
    if engine == "local" and workers is not None:
        raise InputError(
            "--workers counts the actors of --engine ray; several processes of this machine are "
            "started with `accelerate launch`"
        )
    from w2sdiff.jobs.accelerate import process

    this = process()
    reporter = Reporter(quiet=quiet or not this.is_main, as_json=as_json and this.is_main)
    with hush_libraries(debug=debug):
        from w2sdiff.bench.plan.drawings import Shard
        from w2sdiff.bench.plan.experiment import Experiment
        from w2sdiff.bench.plan.missing import missing_of
        from w2sdiff.bench.plan.words import read_words
        from w2sdiff.bench.run.forecast import forecast
        from w2sdiff.bench.run.whole import run_experiment
        from w2sdiff.prompts import load_set

        words = read_words(experiment)
        lacks = missing_of(words) if dry_run and not download else ()
        if any(one.kind != "scorer" for one in lacks):  # drawing is planned without scorers
            _tell_outline(reporter, words)
            raise _told_missing(reporter, words, lacks)
        read = Experiment.read(experiment, device=_device(device, this), download=download)
        changes = {"limit": limit, "batch": batch, "rivals": False if no_rivals else None}
        given = {name: value for name, value in changes.items() if value is not None}
        read = dataclasses.replace(read, **given)  # type: ignore[arg-type]
        prompts = load_set(read.prompts, limit=read.limit, download=download)
        part = Shard.parse(shard) if shard else None
        run = out or Path("runs") / experiment.stem
        for note in read.notes:
            reporter.note(note)
        if dry_run:
            _tell_forecast(reporter, forecast(read, prompts, run, shard=part), run)
            if lacks:
                raise _told_missing(reporter, words, lacks)
            return
        stopping = "stopping after the batch in hand; Ctrl-C again to stop at once"
        with Interrupt(lambda: reporter.note(stopping)) as stop, ExitStack() as bars:
            outcome = run_experiment(
                read,
                prompts,
                run,
                shard=part,
                engine="ray" if engine == "ray" else "local",
                workers=workers or 1,
                download=download,
                conclude=this.is_main,
                report=not no_report,
                watch=_watch(reporter, read, run, stop, bars),
            )
    _conclude(reporter, outcome, run)


def _device(given: str | None, this: Process) -> str | None:
    return this.device if given is None and this.count > 1 else given


def _watch(
    reporter: Reporter, experiment: Experiment, run: Path, stop: Interrupt, bars: ExitStack
) -> Watch:
    """What a run tells, shown: a bar per phase, a line per remark and per failure."""
    from w2sdiff.bench.run.watch import Watch
    from w2sdiff.jobs import Event

    class Shown(Watch):
        def __init__(self) -> None:
            self._phase = ""
            self._bar: Any = None
            self._said: set[str] = set()

        def phase(self, name: str, total: int) -> None:
            bars.close()
            self._phase = name
            self._bar = bars.enter_context(reporter.bar(total, name))

        def event(self, event: Event) -> None:
            facts = event.record.facts
            self._bar.advance(str(facts.get("arm", self._phase)))
            if event.kind == "failed":
                self.note(f"{self._phase} failed: {_place(facts)}{event.record.reason}")
            for remark in facts.get("notes", ()):
                self.note(f"{facts['arm']}: {remark}")
            if self._phase == "drawing":
                reporter.result(
                    "",
                    "picture",
                    status=event.kind,
                    files=[str(run / "images" / name) for name in event.record.files],
                    reason=event.record.reason,
                    **{name: facts.get(name) for name in ("arm", "prompt_id", "seconds")},
                )

        def step(self, done: int, total: int) -> None:
            if self._phase == "drawing":
                self._bar.step(done, total, experiment.batch)

        def note(self, text: str) -> None:
            if text not in self._said:
                self._said.add(text)
                reporter.note(text)

        def stopping(self) -> bool:
            return stop()

    return Shown()


def _place(facts: Any) -> str:
    if "arm" not in facts:
        return ""
    return f"{facts['arm']}, prompt {str(facts.get('prompt_id'))[:60]!r}: "


def _tell_outline(reporter: Reporter, words: Words) -> None:
    """What an arm costs, as far as the file alone says it."""
    from w2sdiff.bench.plan.missing import evaluations_of

    for arm in words.arms:
        evaluations = evaluations_of(arm)
        reporter.result(
            f"{evaluations or '?':>6} evaluations a picture  {arm.name}",
            "arm",
            name=arm.name,
            evaluations=evaluations,
            rival_of=None,
            match=None,
        )
    reporter.note("rivals, pictures and time can be planned once everything is here")


def _told_missing(reporter: Reporter, words: Words, lacks: tuple[Missing, ...]) -> InputError:
    """Say each of them; return the error that ends the command."""
    for one in lacks:
        of_some = 0 < len(one.arms) < len(words.arms)
        arms = f" (for {', '.join(one.arms)})" if of_some else ""
        reporter.result(
            f"missing: {one.kind} {one.name}{arms}: {one.reason}",
            "missing",
            **dataclasses.asdict(one),
        )
    names = ", ".join(f"{one.kind} {one.name}" for one in lacks)
    return InputError(f"{words.path} needs what is not here: {names}")


def _tell_forecast(reporter: Reporter, cost: Forecast, run: Path) -> None:
    for arm in cost.arms:
        reporter.result(
            f"{arm.evaluations:6d} evaluations a picture  {arm.name}",
            "arm",
            name=arm.name,
            evaluations=arm.evaluations,
            rival_of=arm.rival_of,
            match=arm.match,
        )
    for name in cost.unmeasured:
        reporter.note(
            f"{name}: its strength is measured first, on a few pictures; then it may get one rival "
            "more, of at most as many evaluations"
        )
    there = f", {cost.there} of them there already" if cost.there else ""
    time = ""
    if cost.seconds is not None:
        time = f"; drawing takes about {_duration(cost.seconds)} (an estimate, scoring not counted)"
    reporter.result(
        f"{cost.pictures} pictures{there}, {cost.evaluations} evaluations in all{time}",
        "forecast",
        unmeasured=list(cost.unmeasured),
        pictures=cost.pictures,
        there=cost.there,
        evaluations=cost.evaluations,
        left=cost.left,
        seconds=None if cost.seconds is None else round(cost.seconds, 1),
        out=str(run),
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _conclude(reporter: Reporter, outcome: Outcome, run: Path) -> None:
    for judgement in outcome.analysis.judgements if outcome.analysis else ():
        marks = "".join(f"\n  {mark}" for mark in judgement.marks)
        reporter.result(
            judgement.sentence + marks,
            "judgement",
            arm=judgement.arm,
            sentence=judgement.sentence,
            marks=list(judgement.marks),
        )
    for file in outcome.files:
        reporter.result("", "file", file=str(file))
    reporter.note(
        f"pictures: {_counts(outcome.drawn)}; scores: {_counts(outcome.scored)}; in {run}"
    )
    pages = [file for file in outcome.files if file.suffix == ".html"]
    if pages:
        reporter.note(f"the report: {pages[0]}")
    counts = {"pictures": outcome.drawn, "scores": outcome.scored}
    reporter.result("", "summary", **{k: dataclasses.asdict(v) for k, v in counts.items()})
    if outcome.stopped:
        raise typer.Exit(130)
    if not outcome.complete:
        raise typer.Exit(1)


def _counts(summary: Any) -> str:
    words = {
        "made": "made",
        "found": "there already",
        "elsewhere": "made by another process",
        "failed": "failed",
        "left": "not reached",
    }
    counts = dataclasses.asdict(summary)
    parts = [f"{counts[name]} {word}" for name, word in words.items() if counts[name]]
    return ", ".join(parts) or "none"
