"""The formats in which known prompt sets are published, each with its own traps."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from w2sdiff.errors import InputError
from w2sdiff.prompts.files import PromptRow, read_prompts

__all__ = [
    "Reader",
    "coco",
    "drawbench",
    "geneval",
    "hpd_text",
    "id_and_prompt",
    "partiprompts",
    "pickapic",
    "plain",
    "styles",
    "t2i",
]

Reader = Callable[[Sequence[Path]], list[PromptRow]]
"""The rows of the files of a set. The column `category` is there if the set has categories."""


def plain(files: Sequence[Path]) -> list[PromptRow]:
    """A file as `read_prompts` reads it."""
    return read_prompts(files[0])


def drawbench(files: Sequence[Path]) -> list[PromptRow]:
    """Columns `Prompts,Category`; one category has a space at its end."""
    rows = [cells for cells in _csv(files[0])[1:] if cells and cells[0].strip()]
    return [
        PromptRow(str(number), text.strip(), {"category": category.strip()})
        for number, (text, category) in enumerate(rows, 1)
    ]


def pickapic(files: Sequence[Path]) -> list[PromptRow]:
    """Columns number, caption, and two in Chinese; the id is the number, from 0.

    Number 87 is empty and dropped. Seeds of the published evaluations count after that.
    """
    rows = _csv(files[0])[1:]
    return [PromptRow(cells[0], cells[1].strip()) for cells in rows if cells[1].strip()]


def partiprompts(files: Sequence[Path]) -> list[PromptRow]:
    """Columns `Prompt Category Challenge Note`, split at tabs; quotes are part of the text."""
    lines = [line.split("\t") for line in _lines(_text(files[0]))[1:]]
    return [
        PromptRow(str(number), text.strip(), {"category": category, "challenge": challenge})
        for number, (text, category, challenge, *_) in enumerate(lines, 1)
    ]


def geneval(files: Sequence[Path]) -> list[PromptRow]:
    """JSON lines; the category is the `tag`, the id the name of the folder in GenEval's layout."""
    return [
        PromptRow(f"{number:05}", row.text, {"category": row.columns["tag"], **row.columns})
        for number, row in enumerate(read_prompts(files[0]))
    ]


def t2i(files: Sequence[Path]) -> list[PromptRow]:
    """One prompt per line, with either line end; the category is in the name of the file."""
    return [
        PromptRow(f"{part}-{row.id}", row.text, {"category": part})
        for file in files
        for part in [file.name.removesuffix("_val.txt")]
        for row in read_prompts(file)
    ]


def styles(files: Sequence[Path]) -> list[PromptRow]:
    """A JSON list of prompts per style; the id is the path of the picture in HPSv2's layout."""
    return [
        PromptRow(f"{file.stem}/{number:05}", text.strip(), {"category": file.stem})
        for file in files
        for number, text in enumerate(_json_texts(file))
    ]


def coco(files: Sequence[Path]) -> list[PromptRow]:
    """The first caption (the lowest annotation id) of every picture, by picture id."""
    first: dict[int, tuple[int, str]] = {}
    try:
        for entry in _json(files[0])["annotations"]:
            picture, caption = int(entry["image_id"]), (int(entry["id"]), str(entry["caption"]))
            first[picture] = min(first.get(picture, caption), caption)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{files[0]}: expected captions as COCO stores them: {error}") from error
    return [PromptRow(str(picture), first[picture][1].strip()) for picture in sorted(first)]


def hpd_text(data: bytes) -> bytes:
    """The 400 prompts of a CSV file that does not quote its commas: all after the first one."""
    lines = _lines(data.decode("utf-8-sig"))[1:]
    return "".join(f"{line.partition(',')[2]}\n" for line in lines).encode()


def id_and_prompt(data: bytes) -> bytes:
    """JSON lines with `id` and `prompt` out of a JSON list of larger objects."""
    entries = [{"id": entry["id"], "prompt": entry["prompt"]} for entry in json.loads(data)]
    return "".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in entries).encode()


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text: {error}") from error


def _lines(text: str) -> list[str]:
    """Lines that are not empty; `str.splitlines` would also split at rarer characters."""
    return [line for line in text.replace("\r\n", "\n").split("\n") if line]


def _csv(path: Path) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise InputError(f"{path}: {error}") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from error


def _json_texts(path: Path) -> Iterator[str]:
    texts = _json(path)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{path}: expected a JSON list of prompts")
    yield from texts
