"""A list of pictures with what each is of: what every layout of folders comes down to."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from w2sdiff.bench.scoring.pictures import shown
from w2sdiff.errors import InputError
from w2sdiff.prompts import check_prompt

__all__ = ["PICTURES", "Entry", "Listing", "listing", "natural", "pictures_in"]

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_MAX_ID = 200  # characters; ids are column entries, not prompts


@dataclass(frozen=True)
class Entry:
    """A picture of a folder.

    Attributes:
        id: of its prompt; only ever compared and shown, never a part of a path.
        path: the file.
        prompt: its text; "" where the folder does not say.
        category: of the prompt; "" where there is none.
        arm: which method made it; "" where the folder does not say.
        replicate: which of the pictures of its arm and prompt, from 0.
        sha256: of the file, if a record says it.
    """

    id: str
    path: Path
    prompt: str = ""
    category: str = ""
    arm: str = ""
    replicate: int = 0
    sha256: str | None = None


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder.

    Attributes:
        layout: how the folder was read.
        entries: in order.
        problems: what was left out, and why, a line each.
    """

    layout: str
    entries: tuple[Entry, ...]
    problems: tuple[str, ...] = ()

    @property
    def has_prompts(self) -> bool:
        """Whether the folder, or who asked, said what the pictures are of."""
        return any(entry.prompt for entry in self.entries)


def listing(
    layout: str, entries: Iterable[Entry], problems: Iterable[str], *, prompts: bool = True
) -> Listing:
    """Bring entries into shape: sound ids and prompts, one prompt per id, replicates counted.

    Args:
        layout: how they were found.
        entries: in order.
        problems: what was left out so far.
        prompts: whether every picture must have a prompt.

    Raises:
        InputError: no picture is left.
    """
    said = list(problems)
    sound: list[Entry] = []
    for entry in entries:
        problem = _problem(entry, prompts)
        if problem:
            said.append(f"{shown(entry.path.name)}: {problem}")
        else:
            sound.append(replace(entry, id=shown(entry.id), arm=shown(entry.arm)))
    if not sound:
        raise InputError(f"there is nothing to score: {said[0] if said else 'no picture found'}")
    return Listing(layout, tuple(_counted(_told_apart(sound))), tuple(said))


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder, not of its subfolders, 9 before 10.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES]
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror or error}") from error
    return sorted((path for path in found if not path.is_dir()), key=lambda p: natural(p.name))


def natural(name: str) -> tuple[list[str | int], str]:
    """A key to sort names by: 9 before 10, equal numbers told apart by how they are written."""
    parts = re.split(r"([0-9]{1,18})", name)  # words and numbers take turns
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _problem(entry: Entry, prompts: bool) -> str | None:
    try:
        str(entry.path).encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if len(entry.id) > _MAX_ID:
        return f"its prompt id has {len(entry.id)} characters, more than {_MAX_ID}"
    if not entry.prompt and not prompts:
        return None
    try:
        check_prompt(entry.prompt, "its prompt")
    except InputError as error:
        return str(error)
    return None


def _told_apart(entries: list[Entry]) -> list[Entry]:
    """An id that stands for several prompts gets the hash of each appended."""
    texts: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        texts[entry.id].add(entry.prompt)
    return [
        replace(entry, id=f"{entry.id}-{hashlib.sha256(entry.prompt.encode()).hexdigest()[:8]}")
        if len(texts[entry.id]) > 1
        else entry
        for entry in entries
    ]


def _counted(entries: list[Entry]) -> list[Entry]:
    seen: Counter[tuple[str, str]] = Counter()
    numbered = []
    for entry in entries:
        numbered.append(replace(entry, replicate=seen[entry.arm, entry.id]))
        seen[entry.arm, entry.id] += 1
    return numbered
