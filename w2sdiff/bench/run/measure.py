"""How strongly each arm guides, measured once and kept; and the rivals that follow from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from w2sdiff.bench.plan.design import Design
from w2sdiff.bench.plan.experiment import Arm, Experiment
from w2sdiff.bench.rivals.matched import rivals_of
from w2sdiff.bench.rivals.strength import effective_scale
from w2sdiff.bench.run.drawing import DrawWork
from w2sdiff.bench.run.watch import Watch
from w2sdiff.errors import InputError, UnsupportedError
from w2sdiff.generate import Shot, cfg_scale
from w2sdiff.jobs import Done, Failed, Item, Ledger, Task, run_local
from w2sdiff.methods import Plain

__all__ = ["guided", "known_strengths", "measured_strengths", "with_rivals"]

PICTURES = 8
"""How many prompts an arm's strength is measured on; its standard error is kept beside it."""
SCHEMA = 1


def measured_strengths(
    experiment: Experiment, design: Design, folder: Path, work: DrawWork, watch: Watch
) -> dict[str, float]:
    """Effective guidance scales of the arms that get rivals, through a ledger of their own.

    Args:
        experiment: before it has rivals.
        design: the first replicate of its first `PICTURES` prompts is measured.
        folder: of the ledger.
        work: draws.
        watch: told about each arm.

    Returns:
        Name of the arm -> its scale; absent for an arm whose scale is not defined here.
    """
    tasks = {
        task.key: (arm, task) for arm in guided(experiment.arms) for task in [_task(arm, design)]
    }
    arms = {key: arm for key, (arm, _) in tasks.items()}
    if not tasks:
        return {}
    watch.phase("measuring", len(tasks))

    def measure(task: Task) -> list[Done | Failed]:
        arm = arms[task.key]
        try:
            strength = effective_scale(work.studio(arm), arm.method, _shots(arm, design))
        except UnsupportedError as error:
            return [Failed(str(error))]
        return [Done({}, strength.to_json())]

    with Ledger(folder) as ledger:
        run_local(
            ledger,
            [task for _, task in tasks.values()],
            measure,
            on_event=watch.event,
            stopping=watch.stopping,
        )
        return known_strengths(experiment, design, ledger, watch)


def known_strengths(
    experiment: Experiment, design: Design, ledger: Ledger, watch: Watch
) -> dict[str, float]:
    """The strengths that were measured already."""
    found = {}
    for arm in guided(experiment.arms):
        record = ledger.get(_task(arm, design).key)
        if record is None:
            continue
        if record.status == "failed":
            watch.note(f"{arm.name}: its strength is not known: {record.reason}")
        elif record.facts.get("scale") is not None:
            found[arm.name] = float(record.facts["scale"])
    return found


def with_rivals(experiment: Experiment, strengths: Mapping[str, float], watch: Watch) -> Experiment:
    """The same experiment with each arm's rivals behind it.

    Raises:
        InputError: an arm has the name of a rival.
    """
    arms: list[Arm] = []
    for arm in experiment.arms:
        strength = strengths.get(arm.name)
        arms.append(arm)
        arms += rivals_of(arm, strength=strength, select=experiment.select, on_note=watch.note)
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two arms are called {name!r}; give the one of the file another name")
    return dataclasses.replace(experiment, arms=tuple(arms))


def guided(arms: Sequence[Arm]) -> list[Arm]:
    """The arms whose strength has to be measured: not plain, on a pipeline that guides."""
    return [
        arm
        for arm in arms
        if not isinstance(arm.method, Plain) and cfg_scale(arm.model, arm.settings) > 1
    ]


def _shots(arm: Arm, design: Design) -> list[Shot]:
    rows = design.rows[:PICTURES]
    return [arm.recipe.shot(row, design.seed(number, 0)) for number, row in enumerate(rows)]


def _task(arm: Arm, design: Design) -> Task:
    spec = {
        "schema": SCHEMA,
        "measured": "effective scale",
        "decides": arm.recipe.decides,
        "shots": [shot.to_json() for shot in _shots(arm, design)],
    }
    return Task((Item(spec),))
