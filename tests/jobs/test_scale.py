"""Any number of items: tasks are read as they are come to, and nothing is kept of them."""

from __future__ import annotations

import threading
import time
import tracemalloc

import pytest

from w2sdiff.jobs import Done, Failed, Item, Ledger, Task, run_local


def task(n):
    return Task((Item({"n": n, "text": "what decides it " * 4}),))


def score(task):
    return [Done({}, {"score": 0.5}) for _ in task.items]


def kept(folder, items):
    """Bytes held at the end of a run that makes all items, and of one that finds them.

    In blocks of less than 64 kB, which is what an item could leave behind. Larger ones are tables
    of the interpreter: its interned strings, file names among them, are moved to a larger table
    now and then, and whether that falls into a run depends on all that was imported before.
    """
    held = []

    def tasks():
        for n in range(items):
            yield task(n)
        sizes = [trace.size for trace in tracemalloc.take_snapshot().traces]
        held.append(sum(size for size in sizes if size < 2**16))

    for _ in range(2):
        ledger = Ledger(folder)
        tracemalloc.start()
        run_local(ledger, tasks(), score)
        tracemalloc.stop()
    return held


@pytest.mark.parametrize(
    ("few", "many"), [(200, 1500), pytest.param(2000, 20_000, marks=pytest.mark.slow)]
)
def test_memory_does_not_grow_with_the_number_of_items(tmp_path, few, many):
    kept(tmp_path / "warm", 100)  # what is imported on the way, and Python's own caches
    for small, large in zip(
        kept(tmp_path / "few", few), kept(tmp_path / "many", many), strict=True
    ):
        # The smallest thing that could be kept of an item, its key, has 113 bytes.
        assert large - small < 60 * (many - few)


def test_tasks_are_read_as_they_are_come_to(tmp_path):
    log = []

    def given():
        for n in range(3):
            log.append(("read", n))
            yield task(n)

    def work(task):
        log.append(("made", task.items[0].spec["n"]))
        return score(task)

    run_local(Ledger(tmp_path), given(), work)
    assert log == [(what, n) for n in range(3) for what in ("read", "made")]


def test_events_come_in_order_and_found_ones_are_told(tmp_path):
    ledger, events = Ledger(tmp_path), []
    run_local(ledger, [task(1), task(3)], score)
    run_local(
        ledger,
        map(task, range(5)),
        score,
        on_event=lambda event: events.append((event.kind, event.item.spec["n"])),
    )
    assert events == [("made", 0), ("found", 1), ("made", 2), ("found", 3), ("made", 4)]


def test_a_stopped_run_still_counts_what_is_there(tmp_path):
    ledger, made = Ledger(tmp_path), []
    run_local(ledger, [task(4), task(6)], score)

    def work(task):
        made.append(task)
        return score(task)

    summary = run_local(ledger, map(task, range(8)), work, stopping=lambda: len(made) == 2)
    assert (summary.made, summary.found, summary.left) == (2, 2, 4)


def test_a_held_task_is_come_back_to(tmp_path):
    ours, theirs, made = Ledger(tmp_path), Ledger(tmp_path), []
    holding, enough = threading.Event(), threading.Event()

    def hold():
        with theirs.claim(task(1)):
            holding.set()
            enough.wait(20)

    def work(task):
        made.append(task.items[0].spec["n"])
        if len(made) == 3:
            enough.set()
        return score(task)

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait(20)
    assert run_local(ours, map(task, range(4)), work).made == 4
    holder.join()
    assert made[:3] == [0, 2, 3]
    assert made[3:] == [1]


def test_what_another_process_did_meanwhile_is_not_done_again(tmp_path):
    """Not even what failed there: that is for the next run."""
    other, made = Ledger(tmp_path), []

    def elsewhere(n, outcome):
        time.sleep(0.02)  # file systems date files by a clock that ticks every few ms
        with other.claim(task(n)) as claim:
            claim.save([outcome])

    def work(task):
        made.append(task.items[0].spec["n"])
        if made == [0]:
            elsewhere(1, Done({}, {}))
            elsewhere(2, Failed("no luck"))
        return score(task)

    elsewhere(3, Failed("yesterday"))
    time.sleep(0.02)
    first = run_local(Ledger(tmp_path), map(task, range(4)), work)
    assert made == [0, 3]
    assert (first.made, first.elsewhere, first.failed) == (2, 1, 1)
    assert run_local(Ledger(tmp_path), map(task, range(4)), work).made == 1
    assert made == [0, 3, 2]
