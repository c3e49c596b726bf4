"""The engine for several machines: Ray Data sends task numbers to actors on a cluster.

Each actor builds its own `Job` once, so that a model is loaded once per actor, and runs one task
after the other against the same ledger, in a folder that all machines see. An actor that dies is
replaced by Ray, and what it had in hand is made again; what it had finished is found in the ledger.
A task whose actor dies every time has failed, and the rest goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from w2sdiff import errors
from w2sdiff.errors import InputError, W2SDiffError
from w2sdiff.jobs.cluster import cluster
from w2sdiff.jobs.local import Event, Job, Summary, run_local
from w2sdiff.jobs.values import Done, Failed, Record, Task

__all__ = ["run_ray"]

_TRIES = 3  # of a task whose actor dies; after that it has failed, or it would kill for ever
_BLOCKS = 2000  # at most so many are on their way; with more tasks than that, each holds several


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
        W2SDiffError: raised by `Job.work` or by a folder that cannot be written, or Ray gave up.
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

    with cluster(workers, resources or {}) as ray, job.ledger:
        # It holds no state worth losing the run for: should it die, Ray starts it again.
        watch = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Watch).remote()
        answered: set[int] = set()
        begun: set[int] | None = None  # every task that was, once the run is to stop
        for answer in _answers(ray, waiting, workers, resources or {}, (make_job, watch)):
            if "error" in answer:
                name, text = answer["error"]
                raise getattr(errors, name, W2SDiffError)(text)
            items = job.tasks[answer["number"]].items
            for item, (kind, text) in zip(items, answer["events"], strict=False):
                summary.left -= 1
                tell(Event(kind, item, Record.from_json(text)))
            answered.add(answer["number"])
            if begun is None and stopping():
                begun = set(ray.get(watch.stop.remote()))
            if begun is not None and begun <= answered:
                break
    return summary


class _Watch:
    """The actor that all others ask before a task: may it be made, and has it killed somebody?"""

    def __init__(self) -> None:
        self._begun: dict[int, int] = {}
        self._stopped = False

    def stop(self) -> list[int]:
        """Let no further task begin; returns those that ever were."""
        self._stopped = True
        return list(self._begun)

    def stopped(self) -> bool:
        return self._stopped

    def begin(self, number: int) -> int | None:
        """How often this task was begun in vain; None if it shall not begin."""
        if self._stopped:
            return None
        before = self._begun.get(number, 0)
        self._begun[number] = before + 1
        return before

    def end(self, number: int) -> None:
        self._begun[number] = 0


class _Worker:
    """What an actor does: it builds a job of its own, and makes one task of it per row."""

    def __init__(self, make_job: Callable[[], Job], watch: Any) -> None:
        self._job = make_job()
        self._watch = watch

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        number = int(row["item"])
        deaths = self._ask("begin", number)
        answer: dict[str, Any] = {"number": number, "events": []}
        if deaths is not None:
            try:
                answer["events"] = self._make(number, deaths)
            except W2SDiffError as error:
                answer["error"] = [type(error).__name__, str(error)]
            self._ask("end", number)
        return {"answer": json.dumps(answer)}

    def _make(self, number: int, deaths: int) -> list[tuple[str, str]]:
        """What became of each item of a task that killed so many actors, and its record."""
        events: list[tuple[str, str]] = []

        def tell(event: Event) -> None:
            # It was not there when the run began: another process made it, or a dead actor did.
            kind = "elsewhere" if event.kind == "found" else event.kind
            events.append((kind, event.record.to_json()))

        def work(task: Task) -> Sequence[Done | Failed]:
            if deaths < _TRIES:
                return self._job.work(task)
            return [Failed(f"the process that was making it died, {deaths} times")] * len(
                task.items
            )

        run_local(
            self._job.ledger,
            [self._job.tasks[number]],
            work,
            on_event=tell,
            stopping=lambda: self._ask("stopped"),
        )
        return events

    def _ask(self, question: str, *arguments: int) -> Any:
        import ray

        return ray.get(getattr(self._watch, question).remote(*arguments))


def _answers(
    ray: Any,
    numbers: Sequence[int],
    workers: int,
    resources: Mapping[str, float],
    arguments: tuple[Any, ...],
) -> Iterator[dict[str, Any]]:
    """What the actors say of each task, as it comes; a dead actor's task is given out again."""
    rows = ray.data.from_items(list(numbers), override_num_blocks=min(len(numbers), _BLOCKS))
    answers = rows.map(
        _Worker,
        fn_constructor_args=arguments,
        # One block at a time: nothing waits behind a long task while another actor is idle.
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        **resources,
    )
    try:
        for batch in answers.iter_batches(batch_size=None, prefetch_batches=0):
            yield from map(json.loads, batch["answer"])
    except ray.exceptions.RayError as error:
        raise W2SDiffError(
            f"Ray gave up ({_last_line(error)}); what is finished is kept: run it again to go on"
        ) from error


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
