"""Any folder of pictures, ours or another's: which pictures there are and what each is of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from w2sdiff.bench.folders import layouts
from w2sdiff.bench.folders.listing import Entry, Listing, listing, pictures_in
from w2sdiff.errors import InputError
from w2sdiff.prompts import PromptSet
from w2sdiff.registry import unknown

__all__ = ["LAYOUTS", "read_folder"]

LAYOUTS = {
    "run": "a run folder of `w2sdiff bench`",
    "ledger": "an output folder of `w2sdiff generate`",
    "png": "pictures of `w2sdiff generate`, by what each says of itself",
    "geneval": "00000/metadata.jsonl and 00000/samples/0000.png",
    "hpsv2": "style/00000.jpg, prompts of hpdv2-benchmark or style.json beside the folder",
    "table": "a .csv, .tsv or .jsonl file of path and prompt",
    "name": "pictures named by the id of their prompt",
    "order": "as many pictures as prompts, in the order of their names",
    "bare": "pictures without prompts",
}
_NEEDS_PROMPTS = ("name", "order")


def read_folder(place: Path, *, prompts: PromptSet | None = None, layout: str = "auto") -> Listing:
    """The pictures of a folder, or of a table of path and prompt.

    Args:
        place: the folder, or the table.
        prompts: what the pictures are of, where the folder does not say.
        layout: a name of `LAYOUTS`; "auto" finds out, and refuses where it would have to guess.

    Raises:
        InputError: nothing there, no picture, a layout that does not fit, or pictures and prompts
            that cannot be told to belong together.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise unknown("layout", layout, ["auto", *LAYOUTS])
    if not place.exists():
        raise InputError(f"there is no {place}")
    if layout == "auto":
        layout = _layout_of(place, prompts)
    if layout == "table" and not place.is_file():
        raise InputError(f"expected a .csv, .tsv or .jsonl file of path and prompt, got {place}")
    if layout != "table" and not place.is_dir():
        raise InputError(f"expected a folder, got {place}")
    if layout in _NEEDS_PROMPTS and prompts is None:
        raise InputError(f"the layout {layout!r} needs to know the prompts: --prompts")
    problems: list[str] = []
    entries = list(_read(place, prompts, layout, problems.append))
    return listing(layout, entries, problems, prompts=layout != "bare")


def _read(
    place: Path, prompts: PromptSet | None, layout: str, complain: layouts.Complain
) -> Iterator[Entry]:
    if layout == "hpsv2":
        return layouts.hpsv2(place, prompts, complain)
    if prompts is not None and layout == "name":
        return layouts.named(place, prompts, complain)
    if prompts is not None and layout == "order":
        return layouts.ordered(place, prompts, complain)
    readers = {
        "run": layouts.run,
        "ledger": layouts.ledger,
        "png": layouts.png,
        "geneval": layouts.geneval,
        "table": layouts.table,
        "bare": layouts.bare,
    }
    return readers[layout](place, complain)


def _layout_of(place: Path, prompts: PromptSet | None) -> str:
    if place.is_file():
        return "table"
    if (place / "experiment.json").is_file():
        return "run"
    if (place / "records").is_dir() and pictures_in(place):
        return "ledger"
    children = [path for path in place.iterdir() if layouts.GENEVAL_FOLDER.fullmatch(path.name)]
    if any((path / "metadata.jsonl").is_file() for path in children):
        return "geneval"
    paths = pictures_in(place)
    if not paths:
        return "hpsv2"
    if prompts is None:
        return "png" if _says_how_it_was_made(paths[0]) else "bare"
    # Numbers alone are no ids: a folder may count from 0 and a prompt file from 1.
    numbered = all(row.id == str(number) for number, row in enumerate(prompts.rows, 1))
    ids = {row.id for row in prompts.rows}
    return "name" if not numbered and all(path.stem in ids for path in paths) else "order"


def _says_how_it_was_made(path: Path) -> bool:
    from w2sdiff.imaging import read_metadata

    try:
        return "prompt" in read_metadata(path)
    except InputError:
        return False
