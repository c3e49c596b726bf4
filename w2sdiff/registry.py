"""One small registry: a kind's name -> its class, the folder imported at the first look-up."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Generic, TypeVar

from w2sdiff.errors import InputError

T = TypeVar("T")


def unknown(kind: str, name: object, known: list[str]) -> InputError:
    """Build the error for a name that is not known, with the nearest known one."""
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(known)}.")


class Registry(Mapping[str, type[T]], Generic[T]):
    """Classes by their `kind`; a file in `package` that registers one is all it takes to add it.

    Example:
        >>> from w2sdiff.methods import METHODS
        >>> sorted(METHODS)[:2]
        ['autoguidance', 'core2']
    """

    def __init__(self, kind: str, package: str, entry_points: str | None = None) -> None:
        """Say what is registered (`kind`, for messages) and which package holds the files.

        `entry_points` is the group under which other installed packages offer theirs.
        """
        self.kind = kind
        self._package = package
        self._group = entry_points
        self._classes: dict[str, type[T]] = {}
        self._complete = False

    def register(self, cls: type[T]) -> type[T]:
        """Add `cls` under `cls.kind` (a decorator)."""
        name: str = cls.kind  # type: ignore[attr-defined]
        if name in self._classes:
            raise InputError(f"Two {self.kind}s are called {name!r}; choose another name.")
        self._classes[name] = cls
        return cls

    def summary(self, name: str) -> str:
        """First line of the class's docstring: what `w2sdiff list` shows."""
        return (self[name].__doc__ or "").strip().splitlines()[0]

    def __getitem__(self, name: str) -> type[T]:
        if name not in self:
            raise unknown(self.kind, name, sorted(self._classes))
        return self._classes[name]

    def __contains__(self, name: object) -> bool:
        self._fill()
        return isinstance(name, str) and name in self._classes

    def __iter__(self) -> Iterator[str]:
        self._fill()
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        self._fill()
        return len(self._classes)

    def _fill(self) -> None:
        if self._complete:
            return
        self._complete = True
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        for entry in metadata.entry_points(group=self._group) if self._group else ():
            if entry.name not in self._classes:  # its file may have registered it already
                self.register(entry.load())
