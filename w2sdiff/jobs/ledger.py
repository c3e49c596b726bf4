"""What is done: a record per finished item on disk, and a claim on what is being made.

Nothing else is remembered, so there is nothing to repair: a folder can be copied, resumed after a
crash, and worked on by several processes at once. A record appears only after the files it names
are whole, both by `write_whole`. Memory does not grow with the number of items.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2sdiff.errors import InputError
from w2sdiff.jobs.files import reason, write_whole
from w2sdiff.jobs.locks import locked
from w2sdiff.jobs.values import UNREADABLE, Done, Failed, Item, Record, Task, is_plain

__all__ = ["Claim", "Ledger", "State"]

_log = logging.getLogger(__name__)
_TURN_SECONDS = 0.01
_BINARY = getattr(os, "O_BINARY", 0)  # Windows


@dataclass(frozen=True)
class State:
    """How far a task is.

    Attributes:
        records: one per item of the task; None for an item without a sound one.
        time: when the newest of them was written, in ns since 1970 by the clock of the folder's
            file system; 0 if there is none.
    """

    records: tuple[Record | None, ...]
    time: int

    @property
    def done(self) -> list[Record]:
        """The records if all items are done, else none."""
        done = [record for record in self.records if record and record.status == "done"]
        return done if len(done) == len(self.records) else []

    @property
    def tried(self) -> list[Record]:
        """The records if all items were tried, done or not, else none."""
        tried = [record for record in self.records if record]
        return tried if len(tried) == len(self.records) else []

    @property
    def attempts(self) -> int:
        """How often the task was tried; a batch was, once every item of it has its record."""
        return min((record.attempts for record in self.tried), default=0)


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
        if len(self.task.items) == 1:
            return [self._ledger._save(item, outcome) for item, outcome in pairs]
        # Another process may have the same items in batches of another size, under other names.
        return [self._ledger._save_in_turn(item, outcome) for item, outcome in pairs]


class Ledger:
    """The records of a folder: ``records/<key>.json`` per item; the items' files lie beside it.

    The folder is made at the first claim, and `close` removes it again if it stayed empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records = folder / "records"
        self._claims = folder / "claims"
        self._made: list[Path] = []
        self._ready = False
        # As text: to find a hundred thousand items, paths as objects would cost more than the disk.
        self._file = os.path.join(folder, "")  # noqa: PTH118
        self._record = os.path.join(self._records, "")  # noqa: PTH118

    def get(self, key: str) -> Record | None:
        """The record of a key; None if there is none, or it or one of its files is damaged."""
        return self._read(key)[0]

    def state(self, task: Task) -> State:
        """How far a task is."""
        read = [self._read(item.key) for item in task.items]
        return State(tuple(record for record, _ in read), max(written for _, written in read))

    def records(self) -> Iterator[Record]:
        """Every readable record of the folder, by key; foreign files are passed over."""
        names: list[str] = []
        with suppress(OSError):
            names = sorted(os.listdir(self._records))  # noqa: PTH208
        for name in names:
            if name.endswith(".json") and not name.startswith("."):
                with suppress(*UNREADABLE):
                    yield Record.from_json((self._records / name).read_bytes())

    def damaged(self, record: Record) -> list[str]:
        """The files of a record whose bytes are not those that were written; reads them all."""
        return [
            name for name, facts in record.files.items() if self._sha256(name) != facts["sha256"]
        ]

    def clock(self) -> int:
        """The time now in ns since 1970, by the clock that dates the records.

        On a folder that several machines share it may differ from this machine's.
        """
        self._make_folders()
        while True:
            try:
                self._claims.mkdir(parents=True, exist_ok=True)
                os.utime(self._claims)  # no file of its own, which a killed process would leave
                return self._claims.stat().st_mtime_ns
            except FileNotFoundError:  # another process has just tidied it away
                continue
            except OSError as error:
                raise InputError(f"cannot write to {self.folder}: {reason(error)}") from error

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
        with locked(self._claims / _plain(name)) as held:
            yield held

    def close(self) -> None:
        """Remove claims of dead processes, and the folders this ledger made and left empty."""
        with suppress(OSError, InputError):
            for path in self._claims.iterdir():
                with locked(path):  # which takes the file away, unless somebody has it
                    pass
        for folder in (self._claims, *reversed(self._made)):
            with suppress(OSError):  # not empty, or another process is in it
                folder.rmdir()
        self._made.clear()
        self._ready = False

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, key: str) -> tuple[Record | None, int]:
        """The sound record of a key, and when it was written; (None, 0) if there is none."""
        path = f"{self._record}{key}.json"
        try:
            text, written = _bytes_and_time(path)
            record = Record.from_json(text)
            if record.key != key:
                raise ValueError("the record of another item")
        except FileNotFoundError:
            return None, 0
        except UNREADABLE as error:
            _log.warning("%s is damaged (%s); the item is made again", path, error)
            return None, 0
        for name, facts in record.files.items():
            if self._size(name) != facts["bytes"]:
                _log.warning("%s is missing or cut off; it is made again", self.folder / name)
                return None, 0
        return record, written

    def _save_in_turn(self, item: Item, outcome: Done | Failed) -> Record:
        while True:
            with self.hold(item.key) as held:
                if held:
                    return self._save(item, outcome)
            time.sleep(_TURN_SECONDS)

    def _save(self, item: Item, outcome: Done | Failed) -> Record:
        before = self.get(item.key)
        with suppress(FileExistsError):
            self._records.mkdir(parents=True)  # another process may have tidied it away
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
        # A record that is cut off is seen to be, and what has no files is cheap to make again: to
        # wait for the disk would cost more than most scores.
        path = self._records / f"{item.key}.json"
        write_whole(path, record.to_json().encode(), forced=bool(files))
        return record

    def _make_folders(self) -> None:
        if self._ready:
            return
        for folder in (self._records, self._claims):
            missing = [place for place in (folder, *folder.parents) if not place.exists()]
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"cannot write to {self.folder}: {reason(error)}") from error
            self._made += reversed(missing)
        self._ready = True

    def _size(self, name: str) -> int | None:
        try:
            return os.stat(f"{self._file}{name}").st_size  # noqa: PTH116
        except OSError:
            return None

    def _sha256(self, name: str) -> str | None:
        with suppress(OSError), (self.folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
        return None


def _bytes_and_time(path: str) -> tuple[bytes, int]:
    """A small file, and when it was written, without the buffers and objects of `open`."""
    handle = os.open(path, os.O_RDONLY | _BINARY)
    try:
        state = os.fstat(handle)
        return os.read(handle, state.st_size + 1), state.st_mtime_ns
    finally:
        os.close(handle)


def _plain(name: str) -> str:
    if not is_plain(name):
        raise InputError(f"expected a plain file name, got {name!r}")
    return name
