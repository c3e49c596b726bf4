"""Killed at any moment, in any number of processes: nothing is lost, nothing is made twice."""

from __future__ import annotations

import multiprocessing
import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from jobs import toy

from w2sdiff.jobs import Done, Item, Ledger, Task, run_local

ITEMS = 200
KILLS = 20


def score(task: Task) -> list[Done]:
    return [Done({}, {"score": 0.5}) for _ in task.items]


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


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_processes_with_batches_of_different_sizes_do_not_meet(tmp_path):
    """The same items under other names: a claim on one batch says nothing of the other."""

    def make_batches(size: int) -> None:
        items = [Item({"n": n}) for n in range(300)]
        batches = [Task(tuple(items[n : n + size])) for n in range(0, len(items), size)]
        with Ledger(tmp_path / "run") as ledger:
            assert run_local(ledger, batches, score).complete

    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=make_batches, args=(size,)) for size in (1, 4, 5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert sum(record.status == "done" for record in Ledger(tmp_path / "run").records()) == 300
    assert not (tmp_path / "run" / "claims").exists()


def test_the_claim_of_a_process_killed_after_its_last_write_is_tidied_away(tmp_path):
    claims = tmp_path / "claims"
    with Ledger(tmp_path) as ledger:
        task = Task((Item({"n": 0}),))
        run_local(ledger, [task], score)
        (claims / task.key).touch()  # as the killed process would leave it
        other = Ledger(tmp_path)
        with ledger.hold("somebody's"):
            other.close()
            assert [path.name for path in claims.iterdir()] == ["somebody's"]
    assert not claims.exists()
