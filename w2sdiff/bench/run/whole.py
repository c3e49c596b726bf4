"""A whole run: measure, make rivals, draw, choose, score, compare, report. Resumes anywhere.

Everything that takes long goes through a ledger, so that any number of processes may run the same
command on the same folder, and any of them may be killed at any moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from w2sdiff.bench.analysis import Analysis
from w2sdiff.bench.plan.design import Design
from w2sdiff.bench.plan.drawings import Drawings, Shard
from w2sdiff.bench.plan.experiment import Experiment
from w2sdiff.bench.results import Results
from w2sdiff.bench.run.collect import (
    IMAGES,
    SCORES,
    candidates_of,
    counted,
    groups_of,
    picture_of,
    read_results,
)
from w2sdiff.bench.run.drawing import DrawWork, drawing_job
from w2sdiff.bench.run.manifest import FILE, Manifest
from w2sdiff.bench.run.measure import measured_strengths, with_rivals
from w2sdiff.bench.run.timing import write_timing
from w2sdiff.bench.run.watch import Watch
from w2sdiff.bench.scoring.score import score_groups, score_pictures
from w2sdiff.bench.stats.analyse import analyse
from w2sdiff.bench.tables.summary import write_summary
from w2sdiff.jobs import Ledger, Summary, check_writable, run_local, run_ray
from w2sdiff.prompts import PromptSet
from w2sdiff.scorers import Scorer, parse_scorer

__all__ = ["STRENGTH", "Engine", "Outcome", "run_experiment"]

STRENGTH = "strength"
Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        drawn: counts of pictures.
        scored: counts of scores.
        stopped: whether it was asked to stop before its end.
        results: all that is in the folder; None if it was stopped, or is not to report.
        analysis: of these results.
        files: that were written besides pictures and records.
    """

    drawn: Summary
    scored: Summary
    stopped: bool = False
    results: Results | None = None
    analysis: Analysis | None = None
    files: tuple[Path, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every picture and every score is there."""
        return not self.stopped and self.drawn.complete and self.scored.complete


def run_experiment(
    experiment: Experiment,
    prompts: PromptSet,
    run: Path,
    *,
    shard: Shard | None = None,
    engine: Engine = "local",
    workers: int = 1,
    scoring_batch: int = 32,
    download: bool = False,
    conclude: bool = True,
    report: bool = True,
    watch: Watch | None = None,
) -> Outcome:
    """Run an experiment in a folder, or what is left of it.

    Args:
        experiment: what to find out, without rivals.
        prompts: its prompt set, cut to its limit.
        run: the folder; made if it is not there.
        shard: draw only this part, and leave the comparison to a run without one.
        engine: "local" draws in this process, "ray" in actors of a cluster.
        workers: how many actors.
        scoring_batch: pictures per call of a scorer; decides no score.
        download: whether weights of scorers may be fetched.
        conclude: whether to compare and report at the end; of several processes, one does.
        report: whether the pages are written, besides the tables.
        watch: told what goes on, and asked whether to stop.

    Returns:
        How it ended; the same command again makes what is left.

    Raises:
        InputError: something is wrong for every picture, weights are not here, or the folder
            cannot be written.
    """
    watch = watch or Watch()
    check_writable(run)
    design = Design.of(
        prompts,
        replicates=experiment.replicates,
        seeds=experiment.seeds,
        batch=experiment.batch,
    )
    scorers = _ready(experiment.scorers, experiment, download)
    names = [experiment.select] if experiment.select is not None else []
    choosers = _ready([parse_scorer(name) for name in names], experiment, download)
    for scorer in (*scorers, *choosers):
        scorer.recipe()  # weights that are not here are said before hours of drawing
    work = DrawWork(watch.step)
    strengths: dict[str, float] = {}
    if experiment.rivals:
        strengths = measured_strengths(experiment, design, run / STRENGTH, work, watch)
        if watch.stopping():
            return Outcome(Summary(), Summary(), stopped=True)
        experiment = with_rivals(experiment, strengths, watch)
    if all(arm.candidates == 1 for arm in experiment.arms):
        choosers = []
    manifest = Manifest.of(experiment, design, prompts, strengths, choosers)

    with Ledger(run / IMAGES) as images, Ledger(run / SCORES) as scores:
        with images.hold(FILE) as held:
            if held:  # or else another process is writing the same
                manifest.save(run)
        drawn = _draw(experiment, design, images, work, shard, engine, workers, watch)
        work.close()
        scored = Summary()
        if not watch.stopping():
            scored = _score(manifest, images, scores, scorers, choosers, scoring_batch, watch)
        if watch.stopping():
            return Outcome(drawn, scored, stopped=True)
        if shard is not None or not conclude:
            return Outcome(drawn, scored)
        watch.phase("reporting", 0)
        results = _with_votes(read_results(run))
        analysis = analyse(results)
        with images.hold("report") as held:
            files = _write(results, analysis, run, report=report) if held else ()
    return Outcome(drawn, scored, results=results, analysis=analysis, files=files)


def _ready(scorers: Sequence[Scorer], experiment: Experiment, download: bool) -> list[Scorer]:
    device = experiment.arms[0].settings.device
    return [scorer.to(device).allow_download(download) for scorer in scorers]


def _draw(
    experiment: Experiment,
    design: Design,
    images: Ledger,
    work: DrawWork,
    shard: Shard | None,
    engine: Engine,
    workers: int,
    watch: Watch,
) -> Summary:
    drawings = Drawings(experiment.arms, design, shard)
    watch.phase("drawing", drawings.pictures)
    if engine == "local":
        return run_local(images, drawings, work, on_event=watch.event, stopping=watch.stopping)
    work.close()  # the actors load their own
    on_gpu = experiment.arms[0].settings.device.startswith("cuda")
    return run_ray(
        partial(drawing_job, experiment.arms, design, images.folder.resolve(), shard),
        workers=workers,
        resources={"num_gpus": 1} if on_gpu else None,
        on_event=watch.event,
        stopping=watch.stopping,
    )


def _score(
    manifest: Manifest,
    images: Ledger,
    scores: Ledger,
    scorers: Sequence[Scorer],
    choosers: Sequence[Scorer],
    batch: int,
    watch: Watch,
) -> Summary:
    choose = candidates_of(manifest, images)
    if choose:
        watch.phase("choosing", len(choose))
        score_pictures(
            choose, choosers, scores, batch=batch, on_event=watch.event, stopping=watch.stopping
        )
    rows = manifest.design.rows
    found = [one for one in counted(manifest, images, scores) if one.record and one.record.files]
    pictures = [picture_of(images, one.record, rows[one.row].text) for one in found if one.record]
    groups = list(groups_of(manifest, images, found).values())
    single = [scorer for scorer in scorers if not scorer.per_prompt]
    grouped = [scorer for scorer in scorers if scorer.per_prompt]
    watch.phase("scoring", len(pictures) * len(single) + len(groups) * len(grouped))
    one = score_pictures(
        pictures, single, scores, batch=batch, on_event=watch.event, stopping=watch.stopping
    )
    other = score_groups(groups, grouped, scores, on_event=watch.event, stopping=watch.stopping)
    return Summary(**{name: count + getattr(other, name) for name, count in asdict(one).items()})


def _with_votes(results: Results) -> Results:
    """With the votes that people left in the folder, as `report` has them."""
    from w2sdiff.bench.report import fold_votes, read_votes

    return fold_votes(results, read_votes(results.folder))


def _write(results: Results, analysis: Analysis, run: Path, *, report: bool) -> tuple[Path, ...]:
    files = [*write_summary(results, analysis, run), write_timing(results, run)]
    if report:
        from w2sdiff.bench.report import write_report

        files += write_report(results, analysis, run)
    return tuple(files)
