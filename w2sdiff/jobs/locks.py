"""Locks between processes: on a file, so that a lock ends with its holder, however that ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from w2sdiff.errors import InputError
from w2sdiff.jobs.files import reason

__all__ = ["locked"]


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the file at `path` against every other process; False if one of them holds it.

    The file is there only while somebody holds it, or if its holder was killed.

    Raises:
        InputError: the file cannot be made.
    """
    handle = _acquire(path)
    if handle is None:
        yield False
        return
    try:
        yield True
    finally:
        # First the name, then the lock: whoever opens it in between sees that it is stale.
        with suppress(OSError):
            path.unlink()
        os.close(handle)


def _acquire(path: Path) -> int | None:
    while True:
        try:
            handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        except FileNotFoundError:  # another process found the folder empty and took it away
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
        except OSError as error:
            raise InputError(f"cannot write to {path.parent.parent}: {reason(error)}") from error
        if not _lock(handle):
            os.close(handle)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)  # its owner finished and removed it between our open and our lock


def _lock(handle: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        # A file system without locks: two processes may then make an item twice, but never half of
        # one.
    return True
