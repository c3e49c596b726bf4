"""What a run will cost, before it starts: evaluations exactly, time by trying."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from w2sdiff.bench.plan.design import Design
from w2sdiff.bench.plan.drawings import Drawings, Shard
from w2sdiff.bench.plan.experiment import Arm, Experiment
from w2sdiff.bench.run.collect import IMAGES
from w2sdiff.bench.run.drawing import DrawWork
from w2sdiff.bench.run.measure import guided, known_strengths, with_rivals
from w2sdiff.bench.run.watch import Watch
from w2sdiff.bench.run.whole import STRENGTH
from w2sdiff.jobs import Ledger
from w2sdiff.prompts import PromptSet

__all__ = ["Forecast", "forecast"]

PROBE_STEPS = 4


@dataclass(frozen=True)
class Forecast:
    """The cost of drawing; scoring is not in it.

    Attributes:
        arms: every arm, rivals included, as far as they are known before measuring.
        unmeasured: names of arms whose strength is not measured yet: each may get one rival more,
            of at most as many evaluations as itself.
        pictures: how many, those that arms share counted once.
        there: how many of them are there already.
        evaluations: single-branch evaluations of all of them.
        left: of those that are not there yet.
        seconds: estimated time for what is left, from a short probe; None if nothing is left.
    """

    arms: tuple[Arm, ...]
    unmeasured: tuple[str, ...]
    pictures: int
    there: int
    evaluations: int
    left: int
    seconds: float | None


def forecast(
    experiment: Experiment,
    prompts: PromptSet,
    run: Path,
    *,
    shard: Shard | None = None,
    watch: Watch | None = None,
) -> Forecast:
    """Count what a run has to do, and draw a batch of a few steps to say how long that takes.

    Nothing is written. The time is an estimate: it knows this machine as it is now, one arm, and
    neither decoding nor scoring at their full cost.

    Args:
        experiment: without rivals.
        prompts: its prompt set, cut to its limit.
        run: the run folder; need not be there.
        shard: only this part.
        watch: told which rivals are left out.

    Raises:
        InputError: what a run would refuse.
    """
    watch = watch or Watch()
    design = Design.of(
        prompts,
        replicates=experiment.replicates,
        seeds=experiment.seeds,
        batch=experiment.batch,
    )
    unmeasured: tuple[str, ...] = ()
    if experiment.rivals:
        asked = experiment.arms
        known = known_strengths(experiment, design, Ledger(run / STRENGTH), watch)
        experiment = with_rivals(experiment, known, watch)
        unmeasured = tuple(arm.name for arm in guided(asked) if arm.name not in known)
    drawings = Drawings(experiment.arms, design, shard)
    images, each = Ledger(run / IMAGES), {arm.name: arm.recipe for arm in experiment.arms}
    counts = {True: [0, 0], False: [0, 0]}  # there: pictures, evaluations
    for task in drawings:
        count = counts[bool(images.state(task).done)]
        count[0] += len(task.items)
        count[1] += len(task.items) * each[task.arm.name].evaluations
    left = counts[False][1]
    return Forecast(
        arms=experiment.arms,
        unmeasured=unmeasured,
        pictures=counts[True][0] + counts[False][0],
        there=counts[True][0],
        evaluations=counts[True][1] + left,
        left=left,
        seconds=left * _seconds_per_evaluation(experiment, design) if left else None,
    )


def _seconds_per_evaluation(experiment: Experiment, design: Design) -> float:
    """Of a picture in a batch of the dearest arm; the second batch counts, the first one loads."""
    arm = max(experiment.arms, key=lambda arm: arm.recipe.evaluations)
    steps = min(PROBE_STEPS, arm.settings.steps)
    probe = dataclasses.replace(arm, settings=dataclasses.replace(arm.settings, steps=steps))
    work, shots = DrawWork(), design.shots(0, arm.recipe.columns)
    try:
        work.draw(probe, shots)
        drawn = work.draw(probe, shots)
    finally:
        work.close()
    return sum(one.seconds for one in drawn) / max(1, sum(one.evaluations for one in drawn))
