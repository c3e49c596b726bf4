"""Files that are whole or absent."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from w2sdiff.errors import InputError

__all__ = ["check_writable", "reason", "write_whole"]

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
}


def write_whole(path: Path, data: bytes, *, forced: bool = True) -> None:
    """Write a file so that whoever looks, at any moment, finds all of it or none of it.

    The bytes go to a temporary name beside it, are forced to the disk, and the name is changed
    last. One writer per path at a time: the temporary name is fixed, so that what a killed process
    left behind is overwritten, not kept.

    Args:
        path: of the file.
        data: all of it.
        forced: false leaves it to the system when the bytes reach the disk. A process that is
            killed loses nothing by that; a machine that loses power may leave the file empty or cut
            off, so it is for files of which the reader sees that.

    Raises:
        InputError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            if forced:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        _remove(temporary)
        raise InputError(f"cannot write {path}: {reason(error)}") from error
    except BaseException:  # an interrupt: leave nothing half-made
        _remove(temporary)
        raise


def check_writable(folder: Path) -> None:
    """Find out whether files could be made in a folder that may not exist yet; leaves nothing.

    Raises:
        InputError: they could not.
    """
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise InputError(f"cannot write to {folder}: {place} is not a folder")
    probe = place / f".w2sdiff-{os.getpid()}.tmp"
    try:
        probe.touch(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {reason(error)}") from error
    finally:
        _remove(probe)


def reason(error: OSError) -> str:
    """Why the operating system said no, in a few words."""
    return _REASONS.get(error.errno or 0) or error.strerror or str(error)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
