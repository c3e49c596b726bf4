"""Prompts × replicates: every shot of a run, its seed, and the batch it is drawn in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from w2sdiff.bench.plan.experiment import Seeds
from w2sdiff.errors import InputError
from w2sdiff.generate import Shot
from w2sdiff.jobs import digest
from w2sdiff.prompts import PromptRow, PromptSet, index_seed, seed_of

__all__ = ["Design", "candidate_seed"]


@dataclass(frozen=True)
class Design:
    """What every arm of a run draws, apart from how it draws it.

    Batches are counted within one replicate, so that more replicates, or more prompts by whole
    batches, leave every batch that was there as it was.

    Attributes:
        name: of the prompt set.
        rows: its first prompts, as many as are drawn.
        total: how many prompts the whole set has.
        replicates: pictures per prompt and arm.
        seeds: where seeds come from, see `Seeds`.
        batch: pictures made together.
    """

    name: str
    rows: tuple[PromptRow, ...]
    total: int
    replicates: int = 1
    seeds: Seeds = "hash"
    batch: int = 1

    @classmethod
    def of(
        cls, prompts: PromptSet, *, replicates: int = 1, seeds: Seeds = "hash", batch: int = 1
    ) -> Design:
        """For the prompts of a set, which a limit may have cut.

        Raises:
            InputError: a number of replicates or a batch below 1.
        """
        for what, number in (("replicates", replicates), ("batch", batch)):
            if number < 1:
                raise InputError(f"{what}: expected at least 1, got {number}")
        return cls(prompts.name, prompts.rows, prompts.count, replicates, seeds, batch)

    @property
    def groups(self) -> int:
        """How many batches an arm has."""
        return self.replicates * self._per_replicate

    @property
    def cells(self) -> list[tuple[int, int]]:
        """(number of the prompt, replicate) of every picture of an arm."""
        return [(row, r) for row in range(len(self.rows)) for r in range(self.replicates)]

    def seed(self, row: int, replicate: int) -> int:
        """The seed of a prompt's start noise, the same for every arm."""
        if self.seeds == "index":
            return index_seed(row, replicate, self.total)
        return seed_of(self.name, self.rows[row].id, replicate)

    def group(self, number: int) -> list[tuple[int, int]]:
        """The cells of batch `number`."""
        replicate, chunk = divmod(number, self._per_replicate)
        start = chunk * self.batch
        return [(row, replicate) for row in range(start, min(start + self.batch, len(self.rows)))]

    def place(self, row: int, replicate: int) -> tuple[int, int]:
        """In which batch a cell is, and where in it."""
        chunk, place = divmod(row, self.batch)
        return replicate * self._per_replicate + chunk, place

    def shots(self, number: int, columns: Sequence[str], candidate: int = 0) -> tuple[Shot, ...]:
        """What batch `number` draws.

        Args:
            number: of the batch, from 0.
            columns: those that the method reads.
            candidate: which of the pictures that a best-of-n arm chooses from; 0 is the one that
                other arms draw.
        """
        return tuple(
            Shot(
                self.rows[row].text,
                candidate_seed(self.seed(row, replicate), candidate),
                {name: self.rows[row].columns[name] for name in columns},
            )
            for row, replicate in self.group(number)
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` is the inverse."""
        return {**asdict(self), "rows": [[r.id, r.text, dict(r.columns)] for r in self.rows]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Design:
        """Inverse of `to_json`."""
        return cls(**{**data, "rows": tuple(PromptRow(*row) for row in data["rows"])})

    @property
    def _per_replicate(self) -> int:
        return -(-len(self.rows) // self.batch)


def candidate_seed(seed: int, candidate: int) -> int:
    """The seed of a further picture of the same prompt and replicate, below 2^63.

    Example:
        >>> candidate_seed(7, 0)
        7
    """
    if candidate == 0:
        return seed
    return int(digest({"seed": seed, "candidate": candidate})[:16], 16) >> 1
