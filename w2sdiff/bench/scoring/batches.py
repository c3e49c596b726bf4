"""What there is to score: items of the ledger, and lazy batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from w2sdiff.bench.scoring.pictures import Picture, Unit, shown
from w2sdiff.errors import InputError
from w2sdiff.jobs import Item, Task, digest
from w2sdiff.prompts import check_prompt
from w2sdiff.scorers import Scorer

__all__ = ["Batch", "Batches", "item_of"]

SCHEMA = 1


def item_of(unit: Unit, scorer: Scorer, recipe: str) -> Item:
    """Everything that decides a score, and nothing else: pictures, prompt if read, recipe.

    A picture that cannot be read has no bytes to go by: its file name stands for them, so that it
    is counted and named.

    Raises:
        InputError: a prompt that no text encoder should see.
    """
    spec: dict[str, Any] = {"schema": SCHEMA, "scorer": scorer.kind, "recipe": recipe}
    names = [_name(picture) for picture in unit]
    spec["image" if not scorer.per_prompt else "images"] = (
        names[0] if not scorer.per_prompt else sorted(names)
    )
    if scorer.needs_prompt:
        check_prompt(unit[0].prompt, f"the prompt of {unit[0].path.name}")
        spec["prompt"] = unit[0].prompt
    return Item(spec)


@dataclass(frozen=True)
class Batch(Task):
    """Items that are scored together, with the pictures of each."""

    units: tuple[Unit, ...] = ()
    number: int = 0


class Batches(Sequence[Batch]):
    """The batches of a list of units, made when they are asked for; equal units come once.

    Args:
        units: what gets one score each; their pictures are `hashed`.
        scorer: by which scorer.
        batch: units per batch, at least 1. It decides no score, only what is done at a time.

    Raises:
        InputError: a batch below 1, a picture without its hash, a prompt that no text encoder
            should see.
    """

    def __init__(self, units: Sequence[Unit], scorer: Scorer, *, batch: int = 32) -> None:
        if batch < 1:
            raise InputError(f"expected a batch of at least 1, got {batch}")
        self.scorer = scorer
        self.recipe = scorer.recipe()
        self.batch = batch
        self._units = units
        self._places = list(self._first_of_each())

    @property
    def items(self) -> int:
        """How many scores there are to make."""
        return len(self._places)

    def item(self, unit: Unit) -> Item:
        """The item of a unit."""
        return item_of(unit, self.scorer, self.recipe)

    def __len__(self) -> int:
        return -(-len(self._places) // self.batch)

    def __getitem__(self, number: int) -> Batch:  # type: ignore[override]
        if not 0 <= number < len(self):
            raise IndexError(number)
        places = self._places[number * self.batch : (number + 1) * self.batch]
        units = tuple(self._units[place] for place in places)
        return Batch(tuple(map(self.item, units)), units, number)

    def _first_of_each(self) -> Iterator[int]:
        seen: set[bytes] = set()
        for place, unit in enumerate(self._units):
            key = bytes.fromhex(digest(self.item(unit).spec))
            if key not in seen:
                seen.add(key)
                yield place


def _name(picture: Picture) -> str:
    if picture.sha256 is None:
        raise InputError(f"{picture.path} has no sha256 yet: use hashed()")
    return picture.sha256 or f"unreadable: {shown(picture.path.name)}"
