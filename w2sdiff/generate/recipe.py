"""`Recipe`: how a picture is made, apart from what it is of; it decides the keys of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import Any

import w2sdiff
from w2sdiff.edits import Edits
from w2sdiff.edits import Prompt as PromptEdit
from w2sdiff.errors import InputError
from w2sdiff.generate.calls import call_parameters, drawing_class
from w2sdiff.generate.choose import with_hashes
from w2sdiff.generate.draw import Shot
from w2sdiff.generate.models import Model
from w2sdiff.generate.needs import check_needs
from w2sdiff.generate.settings import Settings
from w2sdiff.jobs import Item
from w2sdiff.methods import Method
from w2sdiff.methods.base import PLACES
from w2sdiff.prompts import PromptRow

__all__ = ["Recipe", "cfg_scale", "item_of", "versions"]

SCHEMA = 1
_LIBRARIES = ("torch", "diffusers", "transformers", "peft")


@dataclass(frozen=True)
class Recipe:
    """Model, settings and method: with a `Shot`, all that a picture depends on.

    Attributes:
        model: which model.
        settings: how, resolved by `Settings.on_device`.
        method: by which method.

    Raises:
        InputError: the model or the settings lack what the method or the pipeline needs.
        UnsupportedError: the pipeline cannot be called with the settings.

    Example:
        >>> from w2sdiff import Plain
        >>> from w2sdiff.generate import Recipe, Settings, find_model
        >>> settings = Settings(steps=20, guidance=3.0, device="cpu", dtype="float32")
        >>> Recipe(find_model("shapes-unet"), settings, Plain()).evaluations
        40
    """

    model: Model
    settings: Settings
    method: Method

    def __post_init__(self) -> None:
        """Refuse what the model lacks and the settings do not bring."""
        check_needs(self.model, self.settings, self.method)

    @property
    def steps(self) -> int:
        """The denoising steps that are made: from an image, only the last part of the run."""
        return max(1, int(self.settings.steps * self._strength))

    @property
    def _strength(self) -> float:
        if self.settings.image is None:
            return 1.0
        accepted = call_parameters(drawing_class(self.model, from_image=True))
        if "strength" not in accepted:
            return 1.0
        return float(self.settings.image_strength or accepted["strength"].default)

    @property
    def evaluations(self) -> int:
        """Single-branch evaluations of one picture, known before anything is loaded."""
        return self.method.cost(self.steps, cfg_scale(self.model, self.settings))

    @cached_property
    def method_json(self) -> dict[str, Any]:
        """The JSON form of the method, with the places and hashes of all its files.

        Raises:
            InputError: something in the method has no JSON form.
        """
        return with_hashes(self.method, self.settings.loras, self.model).to_json()

    @cached_property
    def decides(self) -> dict[str, Any]:
        """What of this decides the pixels, as JSON without names and places.

        Raises:
            InputError: something in the method has no JSON form.
        """
        return {
            "schema": SCHEMA,
            "method": _without_paths(self.method_json),
            "model": self.model.sha256,
            "settings": self.settings.decides(),
            "versions": versions(),
        }

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns of the prompt file that the method's prompt edits name."""
        edits = [edit for role in self.method.roles.values() for edit in role or Edits()]
        texts = [text for e in edits if isinstance(e, PromptEdit) for text in (e.text, e.negative)]
        return tuple(sorted({text[1:] for text in texts if text and text.startswith("@")}))

    def shot(self, row: PromptRow, seed: int) -> Shot:
        """A picture of this prompt, from this seed, with the columns that the method reads.

        Raises:
            InputError: the prompt does not have one of them.
        """
        missing = [name for name in self.columns if name not in row.columns]
        if missing:
            known = ", ".join(row.columns) or "none"
            raise InputError(
                f"an edit uses the column {missing[0]!r}, which the prompt {row.id} does not have "
                f"(columns: {known})"
            )
        return Shot(row.text, seed, {name: row.columns[name] for name in self.columns})

    def item(self, group: Sequence[Shot], place: int) -> Item:
        """The ledger's item for one shot of a group that is made together."""
        return item_of(self.decides, group, place)


def item_of(decides: Mapping[str, Any], group: Sequence[Shot], place: int) -> Item:
    """Everything that decides a picture, and nothing else.

    Args:
        decides: `Recipe.decides`.
        group: the shots that are made together; sums are split by the size of a batch, so that its
            members are part of what decides the last bits.
        place: which of them.
    """
    spec = {**decides, **group[place].to_json()}
    if len(group) > 1:
        spec |= {"group": [shot.to_json() for shot in group], "place": place}
    return Item(spec)


def cfg_scale(model: Model, settings: Settings) -> float:
    """The scale of the classifier-free guidance the pipeline will do; 1 where it does none."""
    if "true_cfg_scale" in model.parameters:
        return settings.true_cfg or 1.0
    return settings.guidance if "guidance_scale" in model.parameters else 1.0


def versions() -> dict[str, str]:
    """The versions of what computes the pixels."""
    found = {"w2sdiff": w2sdiff.__version__}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def _without_paths(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _without_paths(value) for key, value in data.items() if key not in PLACES}
    return [_without_paths(value) for value in data] if isinstance(data, list) else data
