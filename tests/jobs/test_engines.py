"""Three engines, one ledger: two processes each, one of them killed, and equal bytes after all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import toy

from w2sdiff.errors import InputError
from w2sdiff.jobs import run_local, run_ray

TOY = Path(toy.__file__)
ITEMS, KILL = 24, 5
LAUNCH = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"),
    *("--num_processes", "2", "--mixed_precision", "no", "--dynamo_backend", "no"),
]


def words(folder: Path, *more: str) -> list[str]:
    return [str(TOY), str(folder), "--items", str(ITEMS), "--seconds", "0.05", *more]


def finish(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


@pytest.fixture
def alone(tmp_path) -> dict[str, bytes]:
    """What one process that nobody killed makes."""
    job = toy.make_job(tmp_path / "alone" / "run", ITEMS)
    job.ledger.folder.parent.mkdir()
    with job.ledger:
        assert run_local(job.ledger, job.tasks, job.work).complete
    return toy.contents(job.ledger.folder)


def check(folder: Path, alone: dict[str, bytes], most: int) -> None:
    """Everything is there, byte for byte, and at most so many items were begun again."""
    assert toy.contents(folder) == alone
    began = toy.begun(folder)
    assert (folder.parent / "killed").exists()
    assert {number for number, _ in began} == set(range(ITEMS))
    assert ITEMS < len(began) <= ITEMS + most
    assert len({pid for _, pid in began}) >= 2


@pytest.mark.slow
def test_plain_processes(tmp_path, alone):
    command = [sys.executable, *words(tmp_path / "run", "--kill", str(KILL))]
    workers = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert sorted(worker.wait(60) for worker in workers) == [-9, 0]
    check(tmp_path / "run", alone, most=1)


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [0, 1])
def test_accelerate_launch(tmp_path, alone, restarts):
    """The launcher ends the others when one dies; run it again, or have it restart them."""
    restart = ["--max_restarts", str(restarts)]
    command = [*LAUNCH, *restart, *words(tmp_path / "run", "--kill", str(KILL))]
    first = finish(command)
    assert (first.returncode == 0) == bool(restarts), first.stderr[-2000:]
    second = finish(command)
    assert second.returncode == 0, second.stderr[-2000:]
    assert (
        second.stdout.count(f"found={ITEMS}" if restarts else "left=0") == 1
    )  # only rank 0 speaks
    check(tmp_path / "run", alone, most=2)


@pytest.mark.slow
def test_ray(tmp_path, alone):
    pytest.importorskip("ray")
    done = finish([sys.executable, *words(tmp_path / "run", "--kill", str(KILL), "--ray", "2")])
    assert done.returncode == 0, done.stderr[-2000:]
    check(tmp_path / "run", alone, most=1)


RAY_CASES = """
    import os, signal, sys
    from functools import partial
    from pathlib import Path
    import ray
    from jobs import toy
    from w2sdiff.errors import InputError
    from w2sdiff.jobs import Job, run_ray

    def deadly(folder, items):
        job = toy.make_job(folder, items)
        def work(task):
            if task.items[0].spec["n"] == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return job.work(task)
        return Job(job.ledger, job.tasks, work)

    def wrong(folder, items):
        def work(task):
            raise InputError("wrong for all")
        job = toy.make_job(folder, items)
        return Job(job.ledger, job.tasks, work)

    SAID = "said:"  # this cluster is not w2sdiff's own: it writes among our lines as it likes
    folder = Path(sys.argv[1])
    ray.init(num_cpus=3, include_dashboard=False, object_store_memory=100 * 2**20)
    print(SAID, run_ray(partial(deadly, folder / "deadly", 6), workers=2))
    try:
        run_ray(partial(wrong, folder / "wrong", 6), workers=2)
    except InputError as error:
        print(SAID, "InputError:", error)
    told = []
    build = partial(toy.make_job, folder / "stopped", 40, 0.05)
    print(SAID, run_ray(build, workers=2, on_event=told.append, stopping=lambda: len(told) > 3))
    print(SAID, len(list((folder / "stopped").glob("*.txt"))))
    print(SAID, ray.is_initialized())
"""


@pytest.mark.slow
def test_ray_a_deadly_task_fails_wrong_input_ends_and_stopping_stops(tmp_path):
    pytest.importorskip("ray")
    program = tmp_path / "program.py"
    lines = [line[4:] for line in RAY_CASES.splitlines()]
    program.write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(TOY.parent.parent)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.partition("said: ") for line in done.stdout.splitlines()]
    deadly, wrong, stopped, files, running = [text for _, mark, text in lines if mark]
    assert "made=5" in deadly
    assert "failed=1, left=0" in deadly
    assert wrong == "InputError: wrong for all"
    assert f"made={files}, " in stopped  # what was in hand was finished, and told
    assert f"left={40 - int(files)}" in stopped
    assert int(files) < 40
    assert running == "True"  # whose cluster it is, that one ends it


def test_ray_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    build = toy.make_job
    with pytest.raises(InputError, match=r"pip install 'w2sdiff\[ray\]'"):
        run_ray(lambda: build(tmp_path / "run", 2), workers=2)
    with pytest.raises(InputError, match="at least 1 worker, got 0"):
        run_ray(lambda: build(tmp_path / "run", 2), workers=0)


def test_ray_is_not_started_for_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    job = toy.make_job(tmp_path / "run", 3)
    run_local(job.ledger, job.tasks, job.work)
    events = []
    build = toy.make_job
    summary = run_ray(lambda: build(tmp_path / "run", 3), workers=2, on_event=events.append)
    assert summary.found == len(events) == 3
