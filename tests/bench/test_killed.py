"""Runs that are killed at any moment, and shared between processes: nothing lost, nothing twice."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback

import pytest
from bench.tiny_run import read, records, run, summaries

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]


def started(folder, experiment):
    """The run in a child of this process, which has everything imported already."""
    child = os.fork()
    if child:
        return child
    try:
        code = 0 if run(folder, experiment).complete else 1
    except BaseException:
        traceback.print_exc()
        code = 2
    finally:
        os._exit(code)


def ended(child):
    """The exit code of a child; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def nothing_lost_nothing_twice(folder, whole):
    for ledger in ("images", "scores", "strength"):
        found = records(folder, ledger)
        assert found.keys() == records(whole, ledger).keys()
        assert {record["status"] for record in found.values()} == {"done"}
        if ledger != "scores":  # a score batch that was half there is saved again, not scored again
            assert {record["attempts"] for record in found.values()} == {1}
    names = sorted(path.name for path in (folder / "run").rglob("*") if path.is_file())
    assert names == sorted(path.name for path in (whole / "run").rglob("*") if path.is_file())
    assert summaries(folder) == summaries(whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed, and how long it took."""
    folder = tmp_path_factory.mktemp("whole")
    experiment = read(folder)
    began = time.monotonic()
    assert ended(started(folder, experiment)) == 0
    return folder, experiment, time.monotonic() - began


def test_killed_at_twenty_random_moments(tmp_path, whole):
    folder, experiment, seconds = whole
    moments, kills, unfinished = random.Random(7), 0, 0
    deadline = time.monotonic() + 300
    while kills < 20 and time.monotonic() < deadline:
        child = started(tmp_path, experiment)
        time.sleep(moments.uniform(0.0, seconds / 4))
        os.kill(child, signal.SIGKILL)
        kills += ended(child) == -signal.SIGKILL
        unfinished += not (tmp_path / "run" / "summary.json").exists()
    assert kills == 20
    assert unfinished >= 3, "most kills came too late to hurt"
    assert ended(started(tmp_path, experiment)) == 0
    nothing_lost_nothing_twice(tmp_path, folder)


def test_two_processes_at_once_one_of_them_killed(tmp_path, whole):
    folder, experiment, seconds = whole
    victim, survivor = started(tmp_path, experiment), started(tmp_path, experiment)
    time.sleep(seconds / 2)
    os.kill(victim, signal.SIGKILL)
    ended(victim)
    assert ended(survivor) == 0
    nothing_lost_nothing_twice(tmp_path, folder)


def test_two_processes_share_the_work(tmp_path, whole):
    folder, experiment, _ = whole
    assert [
        ended(child) for child in (started(tmp_path, experiment), started(tmp_path, experiment))
    ] == [0, 0]
    nothing_lost_nothing_twice(tmp_path, folder)


def test_actors_of_a_cluster_make_the_same_run(tmp_path, whole):
    pytest.importorskip("ray")
    folder, experiment, _ = whole
    assert run(tmp_path, experiment, engine="ray", workers=2).complete
    nothing_lost_nothing_twice(tmp_path, folder)
