"""How folders of pictures are laid out, ours and others'; each reader yields entries.

A file that does not fit costs its own picture and is named; nothing is ever written here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from w2sdiff.bench.folders.listing import PICTURES, Entry, natural, pictures_in
from w2sdiff.bench.scoring.pictures import shown
from w2sdiff.errors import InputError
from w2sdiff.imaging import read_metadata
from w2sdiff.jobs import Ledger
from w2sdiff.prompts import PromptRow, PromptSet, formats, read_prompts

__all__ = ["GENEVAL_FOLDER", "bare", "geneval", "hpsv2", "ledger", "named", "ordered", "png", "run"]

Complain = Callable[[str], None]
"""Told what was left out, and why, in a line."""

GENEVAL_FOLDER = re.compile(r"[0-9]{4,6}")
_MAX_BYTES = 1_000_000  # of a metadata file
_PATH_COLUMNS = ("path", "image", "file", "filename", "image_path")


def run(folder: Path, complain: Complain) -> Iterator[Entry]:
    """A run folder of `w2sdiff bench`: its arms, prompts and replicates."""
    from w2sdiff.bench.run.collect import read_results

    results = read_results(folder)
    for sample in results.samples:
        arm, prompt = results.arms[sample.arm], results.prompts[sample.prompt]
        if sample.image is None:
            complain(f"{arm.name}, prompt {shown(prompt.id)}: {sample.reason or 'not made yet'}")
            continue
        path = folder / sample.image
        yield Entry(prompt.id, path, prompt.text, prompt.category, arm.name, sha256=sample.sha256)


def ledger(folder: Path, complain: Complain) -> Iterator[Entry]:
    """The output folder of `w2sdiff generate`, by its records."""
    found = []
    for record in Ledger(folder).records():
        name = next(iter(record.files), None)
        if record.status != "done" or name is None:
            complain(f"{shown(record.key[:12])}: {shown(record.reason or 'it has no picture')}")
            continue
        spec, facts = record.spec, record.facts
        entry = Entry(
            id=str(facts.get("prompt_id", record.key[:12])),
            path=folder / name,
            prompt=str(spec.get("prompt", "")),
            arm=str(facts.get("arm", "")),
            sha256=str(record.files[name]["sha256"]),
        )
        seed = spec.get("seed")
        place = (entry.arm, natural(entry.id), seed if isinstance(seed, int) else 0)
        found.append((place, entry))
    yield from (entry for _, entry in sorted(found, key=lambda pair: pair[0]))


def png(folder: Path, complain: Complain) -> Iterator[Entry]:
    """Pictures of `w2sdiff generate` without its records: each says how it was made."""
    for path in pictures_in(folder):
        try:
            made = read_metadata(path)
        except InputError as error:
            complain(shown(str(error)))
            continue
        method = made.get("method")
        arm = method.get("method", "") if isinstance(method, dict) else ""
        prompt = str(made.get("prompt", ""))
        yield Entry(id=prompt[:60].strip(), path=path, prompt=prompt, arm=str(arm))


def geneval(folder: Path, complain: Complain) -> Iterator[Entry]:
    """GenEval's layout: `00000/metadata.jsonl` and `00000/samples/0000.png`, ..."""
    for place in sorted(path for path in folder.iterdir() if GENEVAL_FOLDER.fullmatch(path.name)):
        try:
            facts = _json_object(place / "metadata.jsonl")
            paths = pictures_in(place / "samples")
        except InputError as error:
            complain(shown(str(error)))
            continue
        for path in paths:
            category = str(facts.get("tag", ""))
            yield Entry(place.name, path, str(facts.get("prompt", "")), category)


def hpsv2(folder: Path, prompts: PromptSet | None, complain: Complain) -> Iterator[Entry]:
    """HPSv2's layout: a folder per style with `00000.jpg`, ... in the order of the prompts.

    The prompts are those of the set `hpdv2-benchmark`, or of a file per style beside the folders
    (`anime.json`, a list, or any prompt file).
    """
    rows = {row.id: row for row in prompts.rows} if prompts else {}
    for place in _folders_with_pictures(folder):
        own = rows or dict(_rows_beside(place))
        for path in pictures_in(place):
            row = own.get(f"{place.name}/{path.stem}")
            if row is None:
                complain(f"{shown(place.name)}/{shown(path.name)}: no prompt has this number")
                continue
            yield Entry(row.id, path, row.text, row.columns.get("category", place.name))


def table(file: Path, complain: Complain) -> Iterator[Entry]:
    """A CSV, TSV or JSON-lines file of `path` and `prompt`, and `id`, `category`, `arm` if known.

    Paths are read as seen from the folder of the file.
    """
    del complain  # whatever is wrong with a line is refused with its number
    for row in read_prompts(file):
        names = {name.lower(): name for name in row.columns}
        column = next((names[name] for name in _PATH_COLUMNS if name in names), None)
        if column is None:
            known = ", ".join(_PATH_COLUMNS)
            raise InputError(f"{file}: expected a column named {known}, got {', '.join(names)}")
        path = file.parent / row.columns[column]
        category, arm = (row.columns.get(names.get(name, ""), "") for name in ("category", "arm"))
        yield Entry(row.id, path, row.text, category, arm)


def named(folder: Path, prompts: PromptSet, complain: Complain) -> Iterator[Entry]:
    """Pictures whose name, without the ending, is the id of their prompt."""
    rows = {row.id: row for row in prompts.rows}
    for path in pictures_in(folder):
        if path.stem in rows:
            yield _entry(rows[path.stem], path)
        else:
            complain(f"{shown(path.name)}: no prompt of {shown(prompts.name)} has this id")


def ordered(folder: Path, prompts: PromptSet, complain: Complain) -> Iterator[Entry]:
    """As many pictures as prompts, in the order of their names, 9 before 10."""
    del complain
    paths = pictures_in(folder)
    if len(paths) != len(prompts.rows):
        raise InputError(
            f"{folder} has {len(paths)} pictures for the {len(prompts.rows)} prompts of "
            f"{prompts.name}: their order does not say which is which. Give pictures the ids of "
            "their prompts as names (--layout name), a table of path and prompt, or --limit"
        )
    yield from map(_entry, prompts.rows, paths)


def bare(folder: Path, complain: Complain) -> Iterator[Entry]:
    """Pictures of which nothing is known; enough for scorers that read no prompt."""
    del complain
    yield from (Entry(id=path.stem[:200], path=path) for path in pictures_in(folder))


def _entry(row: PromptRow, path: Path) -> Entry:
    return Entry(row.id, path, row.text, row.columns.get("category", ""))


def _folders_with_pictures(folder: Path) -> list[Path]:
    places = sorted(path for path in folder.iterdir() if path.is_dir())
    return [
        place
        for place in places
        if any(path.suffix.lower() in PICTURES for path in _children(place))
    ]


def _children(folder: Path) -> Sequence[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return ()


def _rows_beside(place: Path) -> Iterator[tuple[str, PromptRow]]:
    for ending in (".json", ".txt", ".csv", ".tsv", ".jsonl"):
        file = place.with_name(f"{place.name}{ending}")
        if file.is_file():
            rows = formats.styles([file]) if ending == ".json" else read_prompts(file)
            for number, row in enumerate(rows):
                name = f"{place.name}/{number:05}"
                yield name, PromptRow(name, row.text, row.columns)
            return


def _json_object(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise InputError(f"{path} has more than {_MAX_BYTES} bytes")
        value = json.loads(text)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object")
    return value
