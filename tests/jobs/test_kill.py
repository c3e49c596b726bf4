"""Killed at any moment, in any number of processes: nothing is lost, nothing is made twice."""

from __future__ import annotations

import multiprocessing
import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from jobs import toy

from w2sdiff.jobs import Ledger, run_local

ITEMS = 200
KILLS = 20


def make(folder: Path, seconds: float) -> None:
    job = toy.make_job(folder, ITEMS, seconds)
    with job.ledger:
        assert run_local(job.ledger, job.tasks, job.work).complete


def start(folder: Path) -> BaseProcess:
    # A fork works within milliseconds, so that most kills meet it at work.
    worker = multiprocessing.get_context("fork").Process(target=make, args=(folder, 0.005))
    worker.start()
    return worker


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_twenty_kills_at_random_moments_in_two_processes(tmp_path, seed):
    folder, alone = tmp_path / "killed" / "run", tmp_path / "alone" / "run"
    folder.parent.mkdir()
    alone.parent.mkdir()
    moments = random.Random(seed)
    workers = [start(folder), start(folder)]
    for _ in range(KILLS):
        time.sleep(moments.uniform(0.005, 0.05))
        number = moments.randrange(2)
        workers[number].kill()
        workers[number].join()
        workers[number] = start(folder)
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]

    make(alone, 0.0)
    assert toy.contents(folder) == toy.contents(alone)
    assert all(record.attempts == 1 for record in Ledger(folder).records())
    assert not (folder / "claims").exists()
    # Begun again is only what a killed process had in hand, and some of them had something.
    again = len(toy.begun(folder)) - ITEMS
    assert 0 < again <= KILLS
