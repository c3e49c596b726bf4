"""What there is to draw: arms × batches as lazily made tasks of the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from w2sdiff.bench.plan.design import Design
from w2sdiff.bench.plan.experiment import Arm
from w2sdiff.errors import InputError
from w2sdiff.generate import Shot
from w2sdiff.jobs import Task, digest

__all__ = ["Drawing", "Drawings", "Shard"]


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, from 1: every `count`-th task.

    Raises:
        InputError: there is no such part.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 1 <= self.number <= self.count:
            raise InputError(
                f"expected a shard from 1/{max(1, self.count)} on, got {self.number}/{self.count}"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "i/n".

        Raises:
            InputError: this is no such part.

        Example:
            >>> Shard.parse("2/3")
            Shard(number=2, count=3)
        """
        number, _, count = text.partition("/")
        try:
            return cls(int(number), int(count))
        except InputError:
            raise
        except ValueError:
            raise InputError(f"expected a shard such as 1/4, got {text!r}") from None


@dataclass(frozen=True)
class Drawing(Task):
    """A batch of pictures of one arm.

    Attributes:
        arm: by which arm; another arm may have the same pictures.
        shots: what to draw, one per item.
        ids: of the prompts, one per item.
    """

    arm: Arm
    shots: tuple[Shot, ...]
    ids: tuple[str, ...]


class Drawings(Sequence[Drawing]):
    """The drawings of some arms, each made when it is asked for; what arms share is there once.

    Args:
        arms: what draws.
        design: what is drawn.
        shard: only this part of them; the parts together are the whole.

    Raises:
        InputError: a method reads a column that a prompt does not have.
    """

    def __init__(self, arms: Sequence[Arm], design: Design, shard: Shard | None = None) -> None:
        self.design = design
        self._shard = shard or Shard(1, 1)
        streams: dict[tuple[str, int], tuple[Arm, int]] = {}
        for arm in arms:
            for row in design.rows:
                arm.recipe.shot(row, 0)
            decides = digest(arm.recipe.decides)
            for candidate in range(arm.candidates):
                streams.setdefault((decides, candidate), (arm, candidate))
        self._streams = list(streams.values())

    @property
    def pictures(self) -> int:
        """How many pictures there are in all of them."""
        return sum(
            len(self.design.group(number % self.design.groups)) for number in self._numbers()
        )

    def __len__(self) -> int:
        return len(self._numbers())

    def __getitem__(self, number: int) -> Drawing:  # type: ignore[override]
        stream, group = divmod(self._numbers()[number], self.design.groups)
        arm, candidate = self._streams[stream]
        recipe = arm.recipe
        shots = self.design.shots(group, recipe.columns, candidate)
        return Drawing(
            items=tuple(recipe.item(shots, place) for place in range(len(shots))),
            arm=arm,
            shots=shots,
            ids=tuple(self.design.rows[row].id for row, _ in self.design.group(group)),
        )

    def _numbers(self) -> range:
        whole = range(len(self._streams) * self.design.groups)
        return whole[self._shard.number - 1 :: self._shard.count]
