"""What is done: a record per finished item on disk, and a claim on what is being made.

Nothing else is remembered, so there is nothing to repair: a folder can be copied, resumed after a
crash, and worked on by several processes at once. A record appears only after the files it names
are whole, both by `write_whole`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from w2sdiff.errors import InputError
from w2sdiff.jobs.files import reason, write_whole
from w2sdiff.jobs.hashing import canonical, digest

__all__ = ["Claim", "Done", "Failed", "Item", "Ledger", "Record", "Task"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One thing to make; `spec` is JSON and holds everything that decides the result."""

    spec: Mapping[str, Any]

    @cached_property
    def key(self) -> str:
        """The content hash under which the ledger knows this item."""
        return digest(self.spec)


@dataclass(frozen=True)
class Task:
    """Items that are made together: one batch. It is claimed, done and redone whole."""

    items: tuple[Item, ...]

    @cached_property
    def key(self) -> str:
        """The key of its only item, or the hash of the keys of all of them."""
        return (
            self.items[0].key if len(self.items) == 1 else digest([item.key for item in self.items])
        )


@dataclass(frozen=True)
class Done:
    """An item that worked out: its files, by plain name, and what is worth knowing about them."""

    files: Mapping[str, bytes]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """An item that did not, and why, in one line."""

    reason: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """What the ledger holds about one item that was tried.

    `files` maps each file name to its size in bytes and its sha256; `attempts` counts how often it
    was tried.
    """

    key: str
    status: Literal["done", "failed"]
    spec: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Any]
    reason: str | None
    attempts: int

    @classmethod
    def from_json(cls, text: str | bytes) -> Record:
        """Read a record; `ValueError`, `TypeError` or `AttributeError` if the text is none."""
        record = cls(**json.loads(text))
        for name, facts in record.files.items():
            if name != Path(name).name or not {"bytes", "sha256"} <= facts.keys():
                raise ValueError(f"it names a file {name!r} as no record does")
        if record.status not in ("done", "failed"):
            raise ValueError(f"its status is {record.status!r}")
        return record

    def to_json(self) -> str:
        """The canonical text of the record."""
        return canonical(vars(self))


class Claim:
    """The right to make one task; only `Ledger.claim` gives it out."""

    def __init__(self, ledger: Ledger, task: Task) -> None:
        self._ledger = ledger
        self.task = task

    def save(self, outcomes: Sequence[Done | Failed]) -> list[Record]:
        """Write the files, then the records, one outcome per item of the task, in order.

        Raises:
            InputError: the folder cannot be written or the disk is full; finished items stay whole.
        """
        pairs = zip(self.task.items, outcomes, strict=True)
        return [self._ledger._save(item, outcome) for item, outcome in pairs]


class Ledger:
    """The records of a folder: ``records/<key>.json`` per item; the items' files lie beside it.

    The folder is made at the first claim, and `close` removes it again if it stayed empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records = folder / "records"
        self._claims = folder / "claims"
        self._made: list[Path] = []

    def get(self, key: str) -> Record | None:
        """The record of a key; None if there is none, or it or one of its files is damaged."""
        path = self._records / f"{key}.json"
        try:
            record = Record.from_json(path.read_bytes())
            if record.key != key:
                raise ValueError("the record of another item")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            _log.warning("%s is damaged (%s); the item is made again", path, error)
            return None
        for name, facts in record.files.items():
            if self._size(name) != facts["bytes"]:
                _log.warning("%s is missing or cut off; it is made again", self.folder / name)
                return None
        return record

    def state(self, task: Task) -> tuple[list[Record], int]:
        """The records of a task if all its items are done, else none; and how often it was tried.

        A batch counts as tried only once every item of it has its record.
        """
        records = [self.get(item.key) for item in task.items]
        attempts = min(record.attempts if record else 0 for record in records)
        done = [record for record in records if record and record.status == "done"]
        return (done if len(done) == len(records) else []), attempts

    def records(self) -> Iterator[Record]:
        """Every readable record of the folder, by key; foreign files are passed over."""
        for path in sorted(self._records.glob("*.json")):
            with suppress(OSError, ValueError, TypeError, AttributeError):
                yield Record.from_json(path.read_bytes())

    def damaged(self, record: Record) -> list[str]:
        """The files of a record whose bytes are not those that were written; reads them all."""
        return [
            name for name, facts in record.files.items() if self._sha256(name) != facts["sha256"]
        ]

    @contextmanager
    def claim(self, task: Task) -> Iterator[Claim | None]:
        """Hold a task against every other process, or get None if one of them holds it."""
        with self.hold(task.key) as held:
            yield Claim(self, task) if held else None

    @contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        """Hold a name against every other process; False if one of them holds it.

        It is a lock on a file, so it ends with the process that holds it, however that ends.
        """
        self._make_folders()
        path = self._claims / _plain(name)
        lock = _acquire(path)
        if lock is None:
            yield False
            return
        try:
            yield True
        finally:
            # First the name, then the lock: whoever opens it in between sees that it is stale.
            with suppress(OSError):
                path.unlink()
            os.close(lock)

    def close(self) -> None:
        """Remove the claims folder, and what else this ledger made and left empty."""
        for folder in (self._claims, *reversed(self._made)):
            with suppress(OSError):  # not empty, or another process is in it
                folder.rmdir()
        self._made.clear()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _save(self, item: Item, outcome: Done | Failed) -> Record:
        before = self.get(item.key)
        self._records.mkdir(parents=True, exist_ok=True)  # another process may have tidied it away
        files: dict[str, dict[str, Any]] = {}
        if isinstance(outcome, Done):
            for name, data in outcome.files.items():
                write_whole(self.folder / _plain(name), data)
                files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        record = Record(
            key=item.key,
            status="done" if isinstance(outcome, Done) else "failed",
            spec=item.spec,
            files=files,
            facts=outcome.facts,
            reason=outcome.reason if isinstance(outcome, Failed) else None,
            attempts=(before.attempts if before else 0) + 1,
        )
        write_whole(self._records / f"{item.key}.json", record.to_json().encode())
        return record

    def _make_folders(self) -> None:
        for folder in (self._records, self._claims):
            missing = [place for place in (folder, *folder.parents) if not place.exists()]
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"cannot write to {self.folder}: {reason(error)}") from error
            self._made += reversed(missing)

    def _size(self, name: str) -> int | None:
        with suppress(OSError):
            return (self.folder / name).stat().st_size
        return None

    def _sha256(self, name: str) -> str | None:
        with suppress(OSError), (self.folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
        return None


def _plain(name: str) -> str:
    if not name or name != Path(name).name or name in (".", ".."):
        raise InputError(f"expected a plain file name, got {name!r}")
    return name


def _acquire(path: Path) -> int | None:
    """Lock the file at `path` and return its descriptor; None if another process has it."""
    while True:
        try:
            handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        except FileNotFoundError:  # another ledger's close() took the empty folder away
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
        except OSError as error:
            raise InputError(f"cannot write to {path.parent.parent}: {reason(error)}") from error
        if not _lock(handle):
            os.close(handle)
            return None
        with contextlib.suppress(FileNotFoundError):
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
