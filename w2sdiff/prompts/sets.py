"""Prompt sets by name or file: known ones checked by hash, built-in ones made on the spot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from w2sdiff.errors import InputError
from w2sdiff.prompts.fetch import MAX_BYTES, cache_folder, check_file, fetch_set
from w2sdiff.prompts.files import ENDINGS, PromptRow, check_prompt, read_prompts
from w2sdiff.prompts.known import KNOWN, KnownFile, KnownSet
from w2sdiff.registry import unknown

__all__ = ["BUILT_IN", "PromptSet", "find_files", "load_set"]


@dataclass(frozen=True)
class PromptSet:
    """Prompts with everything a result must say about them.

    Attributes:
        name: of the set; it goes into `seed_of`.
        rows: the prompts, in order. `columns["category"]` is there if the set has categories.
        sha256: of the ids, prompts and columns of the whole set, before any limit: equal for equal
            prompts, whatever file they came in.
        source: where it comes from, in words.
        licence: of the prompts; "" if not known.
        count: prompts in the whole set, before any limit.
    """

    name: str
    rows: tuple[PromptRow, ...]
    sha256: str
    source: str
    licence: str
    count: int = 0


def load_set(
    name_or_path: str | Path,
    *,
    limit: int | None = None,
    folder: Path | None = None,
    download: bool = False,
) -> PromptSet:
    """The prompt set of this name, or in this file.

    Args:
        name_or_path: a name that `w2sdiff prompts list` shows, or a .txt, .csv, .tsv or .jsonl
            file (see `read_prompts`), which is then called by its file name without the ending.
        limit: only the first so many prompts.
        folder: where to look for the files of a known set, before the cache.
        download: fetch what is not here.

    Raises:
        InputError: no such set or file; a file that is not the known one, by hash; files that are
            not here; a limit below 1.

    Example:
        >>> prompts = load_set("shapes", limit=4)
        >>> [row.columns["category"] for row in prompts.rows]
        ['single', 'counting', 'colours', 'position']
        >>> prompts.count
        1000
    """
    if limit is not None and limit < 1:
        raise InputError(f"expected a limit of at least 1, got {limit}")
    name = str(name_or_path)
    if isinstance(name_or_path, str) and name in BUILT_IN:
        rows, source, licence = BUILT_IN[name](), "built in", "Apache-2.0"
    elif isinstance(name_or_path, str) and name in KNOWN:
        known = KNOWN[name]
        rows, source, licence = _known_rows(known, folder, download), known.source, known.licence
    else:
        path = Path(name_or_path)
        if path.suffix.lower() not in ENDINGS and not path.exists():
            raise unknown("prompt set", name, sorted([*BUILT_IN, *KNOWN]))
        rows, source, licence = read_prompts(path), f"the file {path.name}", ""
        name = path.stem
    text = json.dumps([[row.id, row.text, dict(row.columns)] for row in rows], sort_keys=True)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return PromptSet(name, tuple(rows[:limit]), sha256, source, licence, len(rows))


def find_files(known: KnownSet, folder: Path | None = None) -> list[Path] | None:
    """The files of a known set in a folder or the cache; None if one of them is in neither."""
    found = [_find(file, folder) for file in known.files]
    paths = [path for path in found if path is not None]
    return paths if len(paths) == len(found) else None


def _known_rows(known: KnownSet, folder: Path | None, download: bool) -> list[PromptRow]:
    paths = find_files(known, folder)
    if paths is None and download:
        paths = fetch_set(known.name)
    if paths is None:
        raise InputError(_absent(known, folder))
    for file, path in zip(known.files, paths, strict=True):
        check_file(file, _bytes(path), str(path))
    rows = known.read(paths)[: known.first]
    if len(rows) != known.count:
        raise InputError(
            f"{paths[0]}: expected the {known.count} prompts of {known.name}, got {len(rows)}"
        )
    for row in rows:
        check_prompt(row.text, f"{known.name}, prompt {row.id}")
    return rows


def _find(file: KnownFile, folder: Path | None) -> Path | None:
    places = [place for place in (folder, cache_folder()) if place is not None]
    names = (file.name, *file.other_names)
    return next(
        (place / name for place in places for name in names if (place / name).is_file()), None
    )


def _absent(known: KnownSet, folder: Path | None) -> str:
    places = " or ".join(str(place) for place in (folder, cache_folder()) if place is not None)
    names = ", ".join(file.name for file in known.files)
    if all(file.url for file in known.files):
        how = f"`w2sdiff prompts fetch {known.name}` gets it (licence: {known.licence})"
    else:
        how = f"put it there yourself; its source: {known.source}"
    return f"the prompt set {known.name} is not here: expected {names} in {places}; {how}"


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} has more than {MAX_BYTES} bytes, too many for a prompt set")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _shapes() -> list[PromptRow]:
    from w2sdiff.shapes.sampling import completions, evaluation_captions, is_held_out

    return [
        PromptRow(
            str(number),
            caption.text,
            {
                "category": caption.category,
                "held_out": "yes" if is_held_out(completions(caption)[0]) else "no",
                "vague": caption.vague.text,
            },
        )
        for number, caption in enumerate(evaluation_captions(1_000), 1)
    ]


def _shapes_open() -> list[PromptRow]:
    from w2sdiff.shapes.sampling import open_captions

    def captions() -> Iterator[tuple[str, str, str]]:
        for category in ("single", "counting"):
            for leave in ("colour", "shape"):
                for caption in open_captions(leave, category):
                    yield caption.text, category, leave

    return [
        PromptRow(str(number), text, {"category": category, "open": leave})
        for number, (text, category, leave) in enumerate(captions(), 1)
    ]


def _shapes_train() -> list[PromptRow]:
    """What training may see: no held-out combination, some captions left open."""
    import numpy as np

    from w2sdiff.shapes.sampling import sample_caption

    rng = np.random.Generator(np.random.Philox(key=(1, 2**62)))
    captions = (sample_caption(rng) for _ in range(20_000))
    return [PromptRow(str(i), c.text, {"category": c.category}) for i, c in enumerate(captions, 1)]


BUILT_IN: dict[str, Callable[[], list[PromptRow]]] = {
    "shapes": _shapes,
    "shapes-open": _shapes_open,
    "shapes-train": _shapes_train,
}
"""Sets of the embedded world: captions to be obeyed, with something left open, to train on."""
