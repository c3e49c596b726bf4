"""A Ray cluster to work on: the one that is there, or one on this machine for as long as it takes.

With ``RAY_ADDRESS`` set, or in a program that has called ``ray.init``, it is that one, and it is
left running.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from w2sdiff.errors import InputError

__all__ = ["cluster"]

_NO_BARS = "ray.data._internal.progress"  # it would say that there are no progress bars
_STORE = 100 * 2**20  # bytes of shared memory; only numbers and records travel


@contextmanager
def cluster(workers: int, resources: Mapping[str, float]) -> Iterator[Any]:
    """Ray, connected to a cluster, and quiet meanwhile.

    Args:
        workers: actors there will be.
        resources: what each reserves.

    Raises:
        InputError: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # what it holds back, it says on stdout at the end
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
        cpus = workers * math.ceil(resources.get("num_cpus", 1)) + 1
        ray.init(
            address="local",
            num_cpus=cpus,
            object_store_memory=_STORE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, context.print_on_execution_start
    context.enable_progress_bars = context.print_on_execution_start = False
    out: Any = _NotFromRay(sys.stdout)
    try:
        with (
            redirect_stdout(out),
            _at_least(logging.WARNING, "ray.data"),
            _at_least(logging.ERROR, _NO_BARS),
        ):
            yield ray
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before
        if own:
            ray.shutdown()


@contextmanager
def _at_least(level: int, name: str) -> Iterator[None]:
    log = logging.getLogger(name)
    before = log.level
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)


class _NotFromRay:
    """The standard output, without what Ray's own threads say there: that is for stderr."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __getattr__(self, name: str) -> Any:
        from_ray = threading.current_thread().name.startswith("ray_")
        return getattr(sys.stderr if from_ray else self._out, name)
