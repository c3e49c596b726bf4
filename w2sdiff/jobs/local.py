"""The plain engine: this process takes one task after the other until none is left."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from w2sdiff.errors import W2SDiffError
from w2sdiff.jobs.ledger import Done, Failed, Item, Ledger, Record, Task

__all__ = ["Event", "Job", "Summary", "Work", "run_local"]

Work = Callable[[Task], Sequence[Done | Failed]]
"""Makes a task: one outcome per item, in order."""


@dataclass(frozen=True)
class Job:
    """Everything an engine needs to know, so that any process can build it for itself.

    Attributes:
        ledger: where the records are.
        tasks: what there is to do, by number.
        work: makes a task.
    """

    ledger: Ledger
    tasks: Sequence[Task]
    work: Work


_Kind = Literal["found", "made", "elsewhere", "failed"]
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Event:
    """What happened to an item: found finished, made here, made by another process, or failed."""

    kind: _Kind
    item: Item
    record: Record


@dataclass
class Summary:
    """How many items were found, made here, made elsewhere meanwhile, failed, or not reached."""

    found: int = 0
    made: int = 0
    elsewhere: int = 0
    failed: int = 0
    left: int = 0

    def add(self, event: Event) -> None:
        """Count one item."""
        setattr(self, event.kind, getattr(self, event.kind) + 1)

    @property
    def complete(self) -> bool:
        """Whether every item is there."""
        return not (self.failed or self.left)


def run_local(
    ledger: Ledger,
    tasks: Iterable[Task],
    work: Work,
    *,
    on_event: Callable[[Event], None] = lambda _: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Summary:
    """Make whatever is not there yet, in order, and wait for what other processes are making.

    A task whose work raises is recorded as failed and the rest goes on; a task that failed in an
    earlier run is tried again. Errors of w2sdiff itself (wrong input, a full disk) end the run:
    they would meet every task alike. A process that dies loses only the task in its hands, which
    whoever still runs then takes over.

    Args:
        ledger: where the records are.
        tasks: what there is to do; read once.
        work: makes a task.
        on_event: told about each item.
        stopping: asked before each task; once it says yes, the run ends after the task in hand.

    Raises:
        W2SDiffError: raised by `work` or by a folder that cannot be written.
    """
    summary = Summary()

    def tell(kind: _Kind, task: Task, records: Sequence[Record]) -> None:
        for item, record in zip(task.items, records, strict=True):
            event = Event(kind if record.status == "done" else "failed", item, record)
            summary.add(event)
            on_event(event)

    def settle(task: Task, tried: int) -> bool:
        with ledger.claim(task) as claim:
            if claim is None:
                return False
            done, attempts = ledger.state(task)
            if done or attempts > tried:  # another process was quicker
                found = [ledger.get(item.key) for item in task.items]
                tell("elsewhere", task, [record for record in found if record is not None])
            else:
                tell("made", task, claim.save(_outcomes(work, task)))
        return True

    waiting: list[tuple[Task, int]] = []
    for task in tasks:
        done, attempts = ledger.state(task)
        if done:
            tell("found", task, done)
        else:
            waiting.append((task, attempts))
    while waiting and not stopping():
        held = [entry for entry in waiting if stopping() or not settle(*entry)]
        if len(held) == len(waiting) and not stopping():
            time.sleep(_POLL_SECONDS)
        waiting = held
    summary.left = sum(len(task.items) for task, _ in waiting)
    return summary


def _outcomes(work: Work, task: Task) -> Sequence[Done | Failed]:
    try:
        return work(task)
    except W2SDiffError:
        raise
    except Exception as error:
        failed = Failed(
            f"{type(error).__name__}: {_first_line(error)}", {"traceback": traceback.format_exc()}
        )
        return [failed] * len(task.items)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
