"""Toy work for other processes: no torch, no model, an import of a tenth of a second.

    python tests/jobs/toy.py FOLDER --items 40 --seconds 0.01 --kill 3 --ray 2

Every item is one file of known bytes; what was begun is written to ``begun.log``, by process.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from w2sdiff.jobs import Done, Item, Job, Ledger, Task, run_local, run_ray
from w2sdiff.jobs.accelerate import process


def payload(number: int) -> bytes:
    return f"{number} ".encode() * 500


def make_job(folder: Path, items: int, seconds: float = 0.0, kill: int | None = None) -> Job:
    """Items 0, 1, ...; the process that begins item `kill` first is killed by it, once."""

    def work(task: Task) -> list[Done]:
        number = task.items[0].spec["n"]
        with (folder.parent / "begun.log").open("a") as log:
            log.write(f"{number} {os.getpid()}\n")
        if number == kill and mark(folder.parent / "killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(seconds)
        return [Done({f"{number}.txt": payload(number)}, {"square": number * number})]

    return Job(Ledger(folder), [Task((Item({"n": n}),)) for n in range(items)], work)


def mark(path: Path) -> bool:
    """Make a file; False if it was there."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def begun(folder: Path) -> list[tuple[int, int]]:
    """Item and process of everything that was begun."""
    lines = (folder.parent / "begun.log").read_text().splitlines()
    return [(int(number), int(pid)) for number, pid in map(str.split, lines)]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--kill", type=int)
    parser.add_argument("--ray", type=int, metavar="WORKERS")
    options = parser.parse_args()
    build = partial(make_job, options.folder, options.items, options.seconds, options.kill)
    if options.ray:
        summary = run_ray(build, workers=options.ray)
    else:
        job = build()
        with job.ledger:
            summary = run_local(job.ledger, job.tasks, job.work)
    if process().is_main:
        print(summary)
    return 0 if summary.complete else 1


if __name__ == "__main__":
    sys.exit(main())
