"""Prompt files: text, CSV, TSV and JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2sdiff.errors import InputError

__all__ = ["ENDINGS", "PromptRow", "check_prompt", "read_prompts"]

MAX_LINE = 100_000  # bytes; the longest prompts in use have some thousands
ENDINGS = (".txt", ".csv", ".tsv", ".jsonl")
_PROMPT_COLUMNS = ("prompt", "text", "caption")
_Line = tuple[int, str]


@dataclass(frozen=True)
class PromptRow:
    """A prompt of a file.

    Attributes:
        id: the file's own id, else the number of the prompt in the file, from 1.
        text: the prompt.
        columns: the other columns, by name; for prompt edits that use one.
    """

    id: str
    text: str
    columns: Mapping[str, str] = field(default_factory=dict)


def read_prompts(path: Path) -> list[PromptRow]:
    """The prompts of a file, in order; the kind of file is told by its ending.

    * ``.txt``: one prompt per line; empty lines are passed over.
    * ``.csv``, ``.tsv``: a line of column names first. The prompt is in ``prompt``, ``text`` or
      ``caption``, the id in ``id`` if there is one; the other columns go along.
    * ``.jsonl``: per line a string, or an object with the same names as the columns of a CSV file.

    Text is UTF-8, with or without a byte order mark.

    Raises:
        InputError: the file is missing, empty, of another kind, not UTF-8, has a line of more than
            `MAX_LINE` bytes, a missing prompt or a repeated id; says which line.
    """
    readers: dict[str, Callable[[Path], Iterator[tuple[int, PromptRow]]]] = {
        ".txt": _text,
        ".csv": lambda path: _table(path, ","),
        ".tsv": lambda path: _table(path, "\t"),
        ".jsonl": _json_lines,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(readers)
        raise InputError(f"expected a prompt file ending in {known}, got {path.name!r}")
    rows: dict[str, tuple[int, PromptRow]] = {}
    for number, row in reader(path):
        row = row if row.id else PromptRow(str(len(rows) + 1), row.text, row.columns)
        if row.id in rows:
            first = rows[row.id][0]
            raise InputError(f"{path}, line {number}: the id {row.id!r} was used in line {first}")
        for value in (row.id, *row.columns, *row.columns.values()):
            _check_text(value, f"{path}, line {number}")
        check_prompt(row.text, f"{path}, line {number}")
        rows[row.id] = (number, row)
    if not rows:
        raise InputError(f"{path} has no prompts: it is empty")
    return [row for _, row in rows.values()]


def check_prompt(text: str, where: str) -> None:
    """Refuse what no text encoder should see.

    Raises:
        InputError: the prompt is blank, longer than `MAX_LINE` bytes, or has broken or NUL
            characters.
    """
    if not text.strip():
        raise InputError(f"{where}: the prompt is empty")
    _check_text(text, where)


def _check_text(text: str, where: str) -> None:
    if "\0" in text:
        raise InputError(f"{where}: the text has a NUL character in it")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InputError(
            f"{where}: the text has half a character (a lone surrogate) in it"
        ) from None
    if size > MAX_LINE:
        raise InputError(f"{where}: the text has {size} bytes, more than {MAX_LINE}")


def _lines(path: Path) -> Iterator[_Line]:
    """The lines of a file with their numbers, endings included; never reads far past a long one."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE + 2):  # the line's end is not counted
                number += 1
                if len(line.rstrip(b"\r\n")) > MAX_LINE:
                    raise InputError(f"{path}, line {number}: longer than {MAX_LINE} bytes")
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    byte = line[error.start]
                    raise InputError(
                        f"{path}, line {number}: expected UTF-8 text, got the byte 0x{byte:02x}"
                    ) from None
    except FileNotFoundError:
        raise InputError(f"the prompt file {path} does not exist") from None
    except OSError as error:
        raise InputError(f"cannot read the prompt file {path}: {error.strerror}") from error


def _text(path: Path) -> Iterator[tuple[int, PromptRow]]:
    for number, line in _lines(path):
        if line.strip():
            yield number, PromptRow("", line.strip())


def _table(path: Path, delimiter: str) -> Iterator[tuple[int, PromptRow]]:
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        if not names:
            return
        if len(set(names)) < len(names):
            raise InputError(f"{path}, line 1: two columns have one name: {', '.join(names)}")
        for cells in reader:
            number = reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(names):
                raise InputError(
                    f"{path}, line {number}: expected {len(names)} columns, got {len(cells)}"
                )
            yield number, _row(dict(zip(names, cells, strict=True)), f"{path}, line {number}")
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error


def _json_lines(path: Path) -> Iterator[tuple[int, PromptRow]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON: {error}") from error
        if isinstance(value, str):
            value = {"prompt": value}
        if not isinstance(value, dict):
            raise InputError(f"{where}: expected a JSON string or object, got {line.strip()[:40]}")
        yield number, _row({name: _cell(cell) for name, cell in value.items()}, where)


def _row(cells: dict[str, str], where: str) -> PromptRow:
    lower = {name.lower(): name for name in cells}
    column = next((lower[name] for name in _PROMPT_COLUMNS if name in lower), None)
    if column is None:
        known = ", ".join(_PROMPT_COLUMNS)
        raise InputError(
            f"{where}: expected a column named {known}, got {', '.join(cells) or 'none'}"
        )
    text = cells.pop(column)
    name = cells.pop(lower["id"], "") if "id" in lower else ""
    return PromptRow(name.strip(), text.strip(), cells)


def _cell(value: Any) -> str:
    """A JSON value as the text of a column."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
