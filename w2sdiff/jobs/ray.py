"""The engine for several machines: Ray Data sends task numbers to actors on a cluster.

Each actor builds its own `Job` once, so that a model is loaded once per actor, and runs one task
after the other against the same ledger, in a folder that all machines see. An actor that dies is
replaced by Ray, and what it had in hand is made again; what it had finished is found in the ledger.

Without a cluster it starts one on this machine and ends it again; with ``RAY_ADDRESS`` set, or in a
program that has called ``ray.init``, it uses that one and leaves it running.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from w2sdiff import errors
from w2sdiff.errors import InputError, W2SDiffError
from w2sdiff.jobs.local import Event, Job, Summary, run_local
from w2sdiff.jobs.values import Record

__all__ = ["run_ray"]

_RETRIES = 3  # of a task whose actor died: one that kills every actor must not do so for ever
_BLOCKS = 2000  # at most so many are on their way; with more tasks than that, each holds several
_STORE = 100 * 2**20  # bytes of shared memory; only numbers and records travel


def run_ray(
    make_job: Callable[[], Job],
    *,
    workers: int,
    resources: Mapping[str, float] | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Summary:
    """Make whatever is not there yet, with several actors; the same ledger as `run_local` writes.

    Args:
        make_job: builds the job; called here once, for the tasks and the ledger, and once in every
            actor, so it is a function of a module (or a `functools.partial` of one) and must give
            the same tasks everywhere. What is expensive, such as loading a model, belongs into the
            first call of `Job.work`.
        workers: how many actors, at least 1.
        resources: what an actor reserves: `{"num_gpus": 1}`. Default: one CPU.
        on_event: told about each item, in this process.
        stopping: asked here whenever a task ends; once it says yes, every actor ends after the task
            in hand.

    Raises:
        InputError: Ray is not installed, or `workers` is less than 1.
        W2SDiffError: raised by `Job.work` or by a folder that cannot be written, or a task killed
            its actor again and again.
    """
    if workers < 1:
        raise InputError(f"expected at least 1 worker, got {workers}")
    job, summary, waiting = make_job(), Summary(), []

    def tell(event: Event) -> None:
        summary.add(event)
        on_event(event)

    for number, task in enumerate(job.tasks):
        if found := job.ledger.state(task).done:
            for item, record in zip(task.items, found, strict=True):
                tell(Event("found", item, record))
        else:
            waiting.append(number)
            summary.left += len(task.items)
    if not waiting or stopping():
        return summary

    with _cluster(workers, resources or {}) as ray:
        stop = ray.remote(num_cpus=0)(_Stop).remote()
        asked = False
        for answer in _answers(ray, waiting, workers, resources or {}, (make_job, stop)):
            if "error" in answer:
                name, text = answer["error"]
                raise getattr(errors, name, W2SDiffError)(text)
            items = job.tasks[answer["number"]].items
            for item, (kind, text) in zip(items, answer["events"], strict=False):
                summary.left -= 1
                tell(Event(kind, item, Record.from_json(text)))
            if not asked and stopping():
                asked = True
                stop.ask.remote()
    return summary


class _Stop:
    """An actor that knows whether to go on; in a run there is one."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        self._asked = True

    def asked(self) -> bool:
        return self._asked


class _Worker:
    """What an actor does: its own job, and one task of it per row."""

    def __init__(self, make_job: Callable[[], Job], stop: Any) -> None:
        self._job = make_job()
        self._stop = stop

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        number, events = int(row["item"]), []

        def tell(event: Event) -> None:
            # It was not there when the run began: another process made it, or a dead actor did.
            kind = "elsewhere" if event.kind == "found" else event.kind
            events.append((kind, event.record.to_json()))

        answer: dict[str, Any] = {"number": number, "events": events}
        try:
            tasks = [self._job.tasks[number]]
            run_local(
                self._job.ledger, tasks, self._job.work, on_event=tell, stopping=self._stopping
            )
        except W2SDiffError as error:
            answer = {"error": [type(error).__name__, str(error)]}
        return {"answer": json.dumps(answer)}

    def _stopping(self) -> bool:
        import ray

        return bool(ray.get(self._stop.asked.remote()))


def _answers(
    ray: Any,
    numbers: Sequence[int],
    workers: int,
    resources: Mapping[str, float],
    arguments: tuple[Any, ...],
) -> Iterator[dict[str, Any]]:
    """What the actors say of each task, as it comes."""
    rows = ray.data.from_items(list(numbers), override_num_blocks=min(len(numbers), _BLOCKS))
    answers = rows.map(
        _Worker,
        fn_constructor_args=arguments,
        # One block at a time: nothing waits behind a long task while another actor is idle.
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        max_restarts=-1,
        max_task_retries=_RETRIES,
        **resources,
    )
    try:
        for batch in answers.iter_batches(batch_size=None, prefetch_batches=0):
            yield from map(json.loads, batch["answer"])
    except ray.exceptions.RayError as error:
        raise W2SDiffError(
            f"Ray gave up: {_last_line(error)}; what is finished is kept, run it again to go on"
        ) from error


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


@contextmanager
def _cluster(workers: int, resources: Mapping[str, float]) -> Iterator[Any]:
    """Ray with a cluster, and with its progress bars and notes switched off meanwhile."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(
            "several machines need Ray, which is not installed: pip install 'w2sdiff[ray]'"
        ) from error
    own = not ray.is_initialized()
    if own and os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    elif own:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
        cpus = workers * max(1, round(resources.get("num_cpus", 1)))
        ray.init(
            address="local",
            num_cpus=cpus + 1,
            object_store_memory=_STORE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, context.print_on_execution_start
    context.enable_progress_bars = context.print_on_execution_start = False
    log = logging.getLogger("ray.data")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield ray
    finally:
        log.setLevel(level)
        context.enable_progress_bars, context.print_on_execution_start = before
        if own:
            ray.shutdown()
