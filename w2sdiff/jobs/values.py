"""What a ledger is about: items and the tasks that make them, outcomes, and the records of both."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from w2sdiff.jobs.hashing import canonical, digest

__all__ = ["UNREADABLE", "Done", "Failed", "Item", "Record", "Task", "is_plain"]

_PLAIN = re.compile(r"[^/\\:\0]+")

UNREADABLE = (OSError, ValueError, TypeError, AttributeError, RecursionError)
"""What reading a record that is none may raise."""


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
        """Read a record; raises one of `UNREADABLE` if the text is none."""
        # As text: of bytes, json would first find out the encoding, which takes as long as to read.
        record = cls(**json.loads(text if isinstance(text, str) else text.decode()))
        for name, facts in record.files.items():
            if not is_plain(name) or not {"bytes", "sha256"} <= facts.keys():
                raise ValueError(f"it names a file {name!r} as no record does")
        if record.status not in ("done", "failed"):
            raise ValueError(f"its status is {record.status!r}")
        if not (isinstance(record.spec, dict) and isinstance(record.facts, dict)):
            raise ValueError("its spec or its facts are no object")
        if not isinstance(record.attempts, int):
            raise ValueError(f"its number of attempts is {record.attempts!r}")
        return record

    def to_json(self) -> str:
        """The canonical text of the record."""
        return canonical(vars(self))


def is_plain(name: str) -> bool:
    """Whether a name is that of a file in the folder it is used in, on any system."""
    return _PLAIN.fullmatch(name) is not None and name not in (".", "..")
