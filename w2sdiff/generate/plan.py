"""What there is to draw: every picture as an item of the ledger, and every batch as a task."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from w2sdiff.edits import Edits, Guidance
from w2sdiff.errors import InputError
from w2sdiff.generate.draw import Shot
from w2sdiff.generate.models import Model
from w2sdiff.generate.recipe import Recipe
from w2sdiff.generate.settings import Settings
from w2sdiff.jobs import Task
from w2sdiff.methods import Method, Plain, real_role
from w2sdiff.prompts import PromptRow

__all__ = ["Arm", "Picture", "Plan", "compared", "slug"]

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Arm:
    """A method and what to call it in file names and grids."""

    label: str
    method: Method


@dataclass(frozen=True)
class Picture:
    """One picture of the plan: its arm, what it is of, and the batch it is made in.

    Attributes:
        arm: by which method.
        row: the prompt, with its id.
        number: of the prompt in the plan, from 0.
        group: the shots made together, itself among them.
        place: its index in the group.
    """

    arm: Arm
    row: PromptRow
    number: int
    group: tuple[Shot, ...]
    place: int

    @property
    def shot(self) -> Shot:
        """Its shot."""
        return self.group[self.place]


@dataclass(frozen=True)
class Plan:
    """Prompts × seeds × arms on one model.

    Attributes:
        model: which model.
        settings: how, resolved by `Settings.on_device`.
        arms: the methods, the one that was asked for last.
        rows: the prompts.
        seeds: one picture per prompt, arm and seed.
        batch: pictures made together; the groups are part of what is recorded.

    Raises:
        InputError: no prompts, a seed that no generator takes, a batch below 1, or something that
            a method needs is not there.
        UnsupportedError: the pipeline cannot be called with the settings.
    """

    model: Model
    settings: Settings
    arms: tuple[Arm, ...]
    rows: tuple[PromptRow, ...]
    seeds: tuple[int, ...]
    batch: int = 1

    def __post_init__(self) -> None:
        """Check the counts."""
        if not self.rows:
            raise InputError("there are no prompts")
        if not self.seeds:
            raise InputError("expected a count of at least 1")
        if min(self.seeds) < 0 or max(self.seeds) > MAX_SEED:
            raise InputError(f"expected seeds from 0 to {MAX_SEED}, got {self.seeds[0]}")
        if self.batch < 1:
            raise InputError(f"expected a batch of at least 1, got {self.batch}")
        self.recipes  # noqa: B018 - what an arm lacks is said before anything is announced

    @cached_property
    def batches(self) -> list[tuple[Task, tuple[Picture, ...]]]:
        """The tasks and the pictures of their items, arm by arm; a repeated one is there once."""
        found: dict[str, tuple[Task, tuple[Picture, ...]]] = {}
        for task, pictures in self._batches:
            found.setdefault(task.key, (task, pictures))
        return list(found.values())

    @cached_property
    def pictures(self) -> dict[str, Picture]:
        """Every picture by the key of its item."""
        return {
            item.key: picture
            for task, pictures in self.batches
            for item, picture in zip(task.items, pictures, strict=True)
        }

    @cached_property
    def keys(self) -> dict[tuple[str, int, int], str]:
        """The key of every picture by arm, number of the prompt, and seed."""
        return {
            (picture.arm.label, picture.number, picture.shot.seed): item.key
            for task, pictures in self._batches
            for item, picture in zip(task.items, pictures, strict=True)
        }

    def cost(self, method: Method) -> int:
        """Single-branch evaluations of one picture by a method, known before anything is loaded."""
        return Recipe(self.model, self.settings, method).evaluations

    @property
    def evaluations(self) -> int:
        """Single-branch evaluations of the whole plan."""
        return sum(
            self.recipes[picture.arm.label].evaluations for picture in self.pictures.values()
        )

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """How the pictures of each arm are made, by label."""
        return {arm.label: Recipe(self.model, self.settings, arm.method) for arm in self.arms}

    def file_name(self, picture: Picture, key: str) -> str:
        """A plain file name that says what the picture is, unique by its key."""
        seed = f"s{picture.shot.seed}"
        parts = (slug(picture.shot.prompt), slug(picture.arm.label), seed, key[:8])
        return "-".join(filter(None, parts)) + ".png"

    @cached_property
    def _batches(self) -> list[tuple[Task, tuple[Picture, ...]]]:
        return [(self._task(group), group) for group in self._groups()]

    def _groups(self) -> Iterator[tuple[Picture, ...]]:
        # The method first: if it cannot run, that shows before anything is written.
        for arm in reversed(self.arms):
            recipe = self.recipes[arm.label]
            pairs = [(i, seed) for i in range(len(self.rows)) for seed in self.seeds]
            for start in range(0, len(pairs), self.batch):
                chunk = pairs[start : start + self.batch]
                group = tuple(recipe.shot(self.rows[i], seed) for i, seed in chunk)
                yield tuple(
                    Picture(arm, self.rows[i], i, group, place)
                    for place, (i, _) in enumerate(chunk)
                )

    def _task(self, pictures: tuple[Picture, ...]) -> Task:
        recipe, group = self.recipes[pictures[0].arm.label], pictures[0].group
        return Task(tuple(recipe.item(group, place) for place in range(len(group))))


def compared(method: Method, label: str) -> tuple[Arm, ...]:
    """The arms of a comparison: plain weak, plain strong, the method.

    Of a method with a noise model they are plain sampling without and with guidance.

    Where the pair differs in more than guidance, the plain pictures are drawn at the guidance the
    pipeline is called with: a scale that a role has while it reflects is not one to draw with.

    Raises:
        InputError: the method has no weak and strong model.
    """
    if hasattr(method, "noise_model"):
        base = real_role(method)
        ends = Arm("conditional", Plain(base | Guidance(1.0))), Arm("guided", Plain(base))
        return *ends, Arm(label, method)
    if not (hasattr(method, "weak") and hasattr(method, "strong")):
        raise InputError(f"the method {label} has no weak and strong model to compare")
    weak, strong = (method.roles[role] for role in ("weak", "strong"))
    if any(not isinstance(edit, Guidance) for edits in (weak, strong) for edit in edits or ()):
        weak, strong = _unguided(weak), _unguided(strong)
    return Arm("weak", Plain(base=weak)), Arm("strong", Plain(base=strong)), Arm(label, method)


def _unguided(edits: Edits | None) -> Edits | None:
    rest = tuple(edit for edit in edits or () if not isinstance(edit, Guidance))
    return Edits(rest) if rest else None


def slug(text: str) -> str:
    """The first lower-case letters and digits of a text, safe in any file name.

    Example:
        >>> slug("A red circle / a blue square")
        'a-red-circle-a-blue-square'
    """
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:48].strip("-")
