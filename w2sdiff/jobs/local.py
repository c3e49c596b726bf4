"""The plain engine: this process takes one task after the other until none is left."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from w2sdiff.errors import W2SDiffError
from w2sdiff.jobs.ledger import Ledger, State
from w2sdiff.jobs.values import Done, Failed, Item, Record, Task

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


Kind = Literal["found", "made", "elsewhere", "failed"]
_Held = tuple[Task, int]
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Event:
    """What happened to an item: found finished, made here, made by another process, or failed."""

    kind: Kind
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

    Nothing is kept of a task that is finished, so `tasks` may be a generator of any length.

    Args:
        ledger: where the records are.
        tasks: what there is to do; read once, each as it is come to.
        work: makes a task.
        on_event: told about each item.
        stopping: asked before each task; once it says yes, the run ends after the task in hand, and
            of the rest it is only counted what is there.

    Raises:
        W2SDiffError: raised by `work` or by a folder that cannot be written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> def square(task):
        ...     return [Done({}, {"square": item.spec["n"] ** 2}) for item in task.items]
        >>> tasks = [Task((Item({"n": n}),)) for n in range(3)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ledger = Ledger(Path(folder) / "squares")
        ...     first = run_local(ledger, tasks[:2], square)
        ...     again = run_local(ledger, tasks, square)
        >>> first.made, again.found, again.made
        (2, 2, 1)
    """
    run = _Run(ledger, work, on_event)
    held: list[_Held] = []  # by other processes: about as many as there are of them
    stopped = False
    for task in tasks:
        state = ledger.state(task)
        if run.is_over(task, state):
            continue
        stopped = stopped or stopping()
        if stopped:
            run.summary.left += len(task.items)
        elif run.settle(task, state.attempts):
            held = [entry for entry in held if stopping() or not run.settle(*entry)]
        else:
            held.append((task, state.attempts))
    while held and not stopping():
        still = [entry for entry in held if stopping() or not run.settle(*entry)]
        if len(still) == len(held) and not stopping():
            time.sleep(_POLL_SECONDS)
        held = still
    run.summary.left += sum(len(task.items) for task, _ in held)
    return run.summary


class _Run:
    """One process's part of the work: what becomes of a task, and the count of it all."""

    def __init__(self, ledger: Ledger, work: Work, on_event: Callable[[Event], None]) -> None:
        self.summary = Summary()
        self._ledger = ledger
        self._work = work
        self._on_event = on_event
        self._began: int | None = None  # by the ledger's clock, once there is something to make

    def is_over(self, task: Task, state: State) -> bool:
        """Whether a task is done, or was tried elsewhere since this run began; then it is told."""
        meanwhile = self._began is not None and state.time > self._began
        if records := state.tried if meanwhile else state.done:
            self._tell("elsewhere" if meanwhile else "found", task, records)
        return bool(records)

    def settle(self, task: Task, attempts: int) -> bool:
        """Make a task that was tried so often, unless it was meanwhile; False if it is held."""
        if self._began is None:
            self._began = self._ledger.clock()
        with self._ledger.claim(task) as claim:
            if claim is None:
                return False
            state = self._ledger.state(task)
            if state.done or state.attempts > attempts:  # another process was quicker
                self._tell("elsewhere", task, state.tried)
            else:
                self._tell("made", task, claim.save(_outcomes(self._work, task)))
        return True

    def _tell(self, kind: Kind, task: Task, records: Sequence[Record]) -> None:
        for item, record in zip(task.items, records, strict=True):
            event = Event(kind if record.status == "done" else "failed", item, record)
            self.summary.add(event)
            self._on_event(event)


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
