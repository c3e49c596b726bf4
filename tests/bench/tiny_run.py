"""A tiny experiment on a real pipeline with random weights: a second or two for a whole run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from model_folders import model_folder

from w2sdiff.bench.plan.experiment import Experiment
from w2sdiff.bench.run.watch import Watch
from w2sdiff.bench.run.whole import run_experiment
from w2sdiff.prompts import load_set

ARMS = {
    "plain": {"method": "plain"},
    "w2sd": {"method": "w2sd", "strong": "guidance=1", "weak": "guidance=0"},
}


def file_of(folder: Path, **changes):
    """An experiment file; three prompts in two batches unless `changes` say otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "title": "tiny",
        "model": str(model_folder("sd", weak=True, lora=True)),
        "size": 16,
        "steps": 2,
        "guidance": 3.0,
        "device": "cpu",
        "prompts": "shapes",
        "limit": 3,
        "batch": 2,
        "scorers": ["saturation", "contrast"],
        "select": "sharpness",
        "arms": ARMS,
        **changes,
    }
    path = folder / "tiny.json"
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}), "utf-8")
    return path


def read(folder: Path, **changes) -> Experiment:
    """The experiment of `file_of`."""
    return Experiment.read(file_of(folder / "files", **changes))


def run(folder: Path, experiment: Experiment, watch: Watch | None = None, **options):
    """Run it in folder / "run", without pages unless asked for."""
    options = {"report": False, **options}
    prompts = load_set(experiment.prompts, limit=experiment.limit)
    return run_experiment(experiment, prompts, folder / "run", watch=watch, **options)


def summaries(folder: Path) -> dict[str, bytes]:
    """The bytes that must be equal for equal scores."""
    names = ("summary.json", "summary.csv", "cells.csv", "summary.md")
    return {name: (folder / "run" / name).read_bytes() for name in names}


def records(folder: Path, ledger: str = "images") -> dict[str, dict]:
    """The records of a run, by key."""
    files = (folder / "run" / ledger / "records").glob("*.json")
    return {path.stem: json.loads(path.read_text("utf-8")) for path in files}


class Stop(Watch):
    """Stops once it has been told of so many items of a phase."""

    def __init__(self, phase, after):
        self._wanted, self._after, self._phase = phase, after, ""

    def phase(self, name, _total):
        self._phase = name

    def event(self, _event):
        self._after -= self._phase == self._wanted

    def stopping(self):
        return self._after <= 0


def changed(experiment: Experiment, **changes) -> Experiment:
    """The same experiment but for some fields."""
    return dataclasses.replace(experiment, **changes)
