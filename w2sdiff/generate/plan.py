"""What there is to draw: every picture as an item of the ledger, and every batch as a task."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import Any

import w2sdiff
from w2sdiff.edits import Edits, Guidance
from w2sdiff.edits import Prompt as PromptEdit
from w2sdiff.errors import InputError
from w2sdiff.generate.choose import with_hashes
from w2sdiff.generate.draw import Shot
from w2sdiff.generate.models import Model
from w2sdiff.generate.settings import Settings
from w2sdiff.jobs import Item, Task
from w2sdiff.methods import Method, Plain
from w2sdiff.prompts import PromptRow

__all__ = ["Arm", "Picture", "Plan", "cfg_scale", "compared", "slug", "versions"]

SCHEMA = 1
MAX_SEED = 2**63 - 1
_LIBRARIES = ("torch", "diffusers", "transformers", "peft")


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
        InputError: no prompts, a seed that no generator takes, or a batch below 1.
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
        settings = self.settings
        # From an image, only the last part of the run is made.
        steps = max(1, int(settings.steps * (settings.image_strength or 1.0)))
        return method.cost(steps, cfg_scale(self.model, settings))

    @property
    def evaluations(self) -> int:
        """Single-branch evaluations of the whole plan."""
        return sum(self.cost(picture.arm.method) for picture in self.pictures.values())

    @cached_property
    def versions(self) -> dict[str, str]:
        """The versions of what computes the pixels."""
        return versions()

    def method_json(self, arm: Arm) -> dict[str, Any]:
        """The JSON form of an arm's method, with the places and hashes of all its files."""
        return self._methods[arm.label][0]

    def file_name(self, picture: Picture, key: str) -> str:
        """A plain file name that says what the picture is, unique by its key."""
        seed = f"s{picture.shot.seed}"
        parts = (slug(picture.shot.prompt), slug(picture.arm.label), seed, key[:8])
        return "-".join(filter(None, parts)) + ".png"

    @cached_property
    def _decides(self) -> dict[str, Any]:
        return self.settings.decides()

    @cached_property
    def _methods(self) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
        """By label: the whole JSON form, and the form without paths."""
        found = {}
        for arm in self.arms:
            data = with_hashes(arm.method, self.settings.loras).to_json()
            found[arm.label] = (data, _without_paths(data))
        return found

    @cached_property
    def _batches(self) -> list[tuple[Task, tuple[Picture, ...]]]:
        return [(Task(tuple(map(self._item, group))), group) for group in self._groups()]

    def _groups(self) -> Iterator[tuple[Picture, ...]]:
        # The method first: if it cannot run, that shows before anything is written.
        for arm in reversed(self.arms):
            names = columns_used(arm.method)
            pairs = [(i, seed) for i in range(len(self.rows)) for seed in self.seeds]
            for start in range(0, len(pairs), self.batch):
                chunk = pairs[start : start + self.batch]
                group = tuple(_shot(self.rows[i], seed, names) for i, seed in chunk)
                yield tuple(
                    Picture(arm, self.rows[i], i, group, place)
                    for place, (i, _) in enumerate(chunk)
                )

    def _item(self, picture: Picture) -> Item:
        """Everything that decides a picture, and nothing else."""
        spec = {
            "schema": SCHEMA,
            **picture.shot.to_json(),
            "method": self._methods[picture.arm.label][1],
            "model": self.model.sha256,
            "settings": self._decides,
            "versions": self.versions,
        }
        if len(picture.group) > 1:
            spec |= {"group": [shot.to_json() for shot in picture.group], "place": picture.place}
        return Item(spec)


def cfg_scale(model: Model, settings: Settings) -> float:
    """The scale of the classifier-free guidance the pipeline will do; 1 where it does none."""
    if "true_cfg_scale" in model.parameters:
        return settings.true_cfg or 1.0
    return settings.guidance if "guidance_scale" in model.parameters else 1.0


def compared(method: Method, label: str) -> tuple[Arm, ...]:
    """The arms of a comparison: plain weak, plain strong, the method.

    Where the pair differs in more than guidance, the plain pictures are drawn at the guidance the
    pipeline is called with: a scale that a role has while it reflects is not one to draw with.

    Raises:
        InputError: the method has no weak and strong model.
    """
    if not (hasattr(method, "weak") and hasattr(method, "strong")):
        raise InputError(f"the method {label} has no weak and strong model to compare")
    weak, strong = (method.roles[role] for role in ("weak", "strong"))
    if any(not isinstance(edit, Guidance) for edits in (weak, strong) for edit in edits or ()):
        weak, strong = _unguided(weak), _unguided(strong)
    return Arm("weak", Plain(base=weak)), Arm("strong", Plain(base=strong)), Arm(label, method)


def columns_used(method: Method) -> list[str]:
    """The columns of the prompt file that a method's prompt edits name."""
    edits = [edit for role in method.roles.values() for edit in role or Edits()]
    texts = [text for e in edits if isinstance(e, PromptEdit) for text in (e.text, e.negative)]
    return sorted({text[1:] for text in texts if text and text.startswith("@")})


def versions() -> dict[str, str]:
    """The versions of what computes the pixels."""
    found = {"w2sdiff": w2sdiff.__version__}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def _unguided(edits: Edits | None) -> Edits | None:
    rest = tuple(edit for edit in edits or () if not isinstance(edit, Guidance))
    return Edits(rest) if rest else None


def _shot(row: PromptRow, seed: int, columns: Sequence[str]) -> Shot:
    missing = [name for name in columns if name not in row.columns]
    if missing:
        known = ", ".join(row.columns) or "none"
        raise InputError(
            f"an edit uses the column {missing[0]!r}, which the prompt {row.id} does not have "
            f"(columns: {known})"
        )
    return Shot(row.text, seed, {name: row.columns[name] for name in columns})


def _without_paths(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _without_paths(value) for key, value in data.items() if key != "path"}
    return [_without_paths(value) for value in data] if isinstance(data, list) else data


def slug(text: str) -> str:
    """The first lower-case letters and digits of a text, safe in any file name.

    Example:
        >>> slug("A red circle / a blue square")
        'a-red-circle-a-blue-square'
    """
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:48].strip("-")
