"""One process at a time writes the files at the end of a run, which all of them write."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from w2sdiff.jobs.locks import locked

__all__ = ["turn"]

_PAUSE = 0.02  # seconds between two looks


@contextmanager
def turn(lock: Path) -> Iterator[None]:
    """Wait until no other process is in this block with the same lock, then hold it.

    Whoever comes later has read the ledgers later, so the last one to write knows the most. A
    process that is killed lets go.

    Args:
        lock: a file in a folder that is there; it is gone when nobody holds it.

    Raises:
        InputError: the file cannot be made.
    """
    while True:
        with locked(lock) as held:
            if held:
                yield
                return
        time.sleep(_PAUSE)
