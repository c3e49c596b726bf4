"""Pictures on their way from the disk to a scorer: hashed, read ahead, flagged where unreadable."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from w2sdiff.errors import InputError
from w2sdiff.imaging import open_image
from w2sdiff.jobs import Failed

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Ahead", "Picture", "Unit", "hashed", "read_picture", "shown"]

# Decoding leaves the interpreter's lock. Two keep up with a scorer on the CPU, and more would take
# its cores; a machine with many cores has an accelerator to feed.
_THREADS = min(8, max(2, (os.cpu_count() or 1) // 2))


@dataclass(frozen=True)
class Picture:
    """A picture file and what it is meant to show.

    Attributes:
        path: the file.
        sha256: of its bytes; None if not known yet, "" if it could not be read.
        prompt: what it was made from.
    """

    path: Path
    sha256: str | None
    prompt: str


Unit = tuple[Picture, ...]
"""What gets one score: a picture, or all pictures of a prompt for a scorer of sets."""


def hashed(pictures: Iterable[Picture]) -> list[Picture]:
    """The same pictures, each with its sha256; "" for one that cannot be read."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_hashed, pictures))


def read_picture(picture: Picture) -> Image | Failed:
    """The picture in RGB, or why there is none.

    A file whose bytes are not those of the sha256 gives none: the score would go under the wrong
    name.
    """
    name = shown(picture.path.name)  # not the path: a record says the same wherever it lies
    try:
        if picture.sha256 and _sha256(picture.path) != picture.sha256:
            return Failed(f"{name} has changed since it was listed")
        return open_image(picture.path)
    except InputError as error:
        return Failed(shown(str(error).replace(str(picture.path), picture.path.name)))
    except OSError as error:
        return Failed(f"cannot read {name}: {error.strerror or error}")


def shown(text: str) -> str:
    r"""A text for one line of a terminal or record: what cannot be printed is escaped.

    Example:
        >>> print(shown("a\x1b[2Jb"))
        a\x1b[2Jb
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Ahead:
    """Reads the pictures of the batch that comes next while a scorer is busy with this one.

    Several processes on one folder take turns, so "next" is as far on as the last two batches
    were apart; a wrong guess costs some reading and nothing else.

    Args:
        wanted: the units of batch number i that have no score yet, by their place in it; empty
            where there is no such batch.
    """

    def __init__(self, wanted: Callable[[int], Mapping[int, Unit]]) -> None:
        self._wanted = wanted
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="w2sdiff-pictures")
        self._begun: dict[int, dict[int, list[Future[Image | Failed]]]] = {}
        self._last: int | None = None

    def take(self, number: int) -> dict[int, list[Image | Failed]]:
        """The pictures of the units of batch `number` that have no score yet."""
        begun = self._begun.pop(number, {})
        self._drop()
        # What another process has scored in between is wanted no more, and the other way round.
        units = self._wanted(number)
        units_begun = {place: begun.get(place) or self._read(unit) for place, unit in units.items()}
        found = {place: [f.result() for f in futures] for place, futures in units_begun.items()}
        stride = number - self._last if self._last is not None else 1
        self._last = number
        follower = number + max(1, stride)
        self._begun[follower] = {
            place: self._read(unit) for place, unit in self._wanted(follower).items()
        }
        return found

    def close(self) -> None:
        """Let go of what was read and not asked for."""
        self._drop()
        self._pool.shutdown(cancel_futures=True)

    def _read(self, unit: Unit) -> list[Future[Image | Failed]]:
        return [self._pool.submit(read_picture, picture) for picture in unit]

    def _drop(self) -> None:
        futures = (f for begun in self._begun.values() for unit in begun.values() for f in unit)
        for future in futures:
            future.cancel()
        self._begun.clear()


def _hashed(picture: Picture) -> Picture:
    if picture.sha256 is not None:
        return picture
    try:
        return replace(picture, sha256=_sha256(picture.path))
    except OSError:
        return replace(picture, sha256="")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
