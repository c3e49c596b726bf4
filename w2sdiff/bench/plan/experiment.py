"""`Arm` and `Experiment`: what is to be found out, with every model found and every word read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from w2sdiff.bench.plan.words import ArmWords, Words, read_words
from w2sdiff.bench.results import Match
from w2sdiff.edits import Checkpoint
from w2sdiff.edits.hub import is_here
from w2sdiff.errors import InputError
from w2sdiff.generate import (
    LoraFile,
    Model,
    Recipe,
    Settings,
    cfg_scale,
    choose_method,
    find_loras,
    find_model,
    image_strength,
)
from w2sdiff.methods import Method
from w2sdiff.scorers import Scorer, parse_scorer

__all__ = ["Arm", "Experiment", "Seeds"]

Seeds = Literal["hash", "index"]
"""Where the seed of a picture comes from: a hash of prompt set, prompt id and replicate, or the
number of the prompt in the set (as the published results of the field do it)."""


@dataclass(frozen=True)
class Arm:
    """One way of making the pictures of a prompt set.

    Attributes:
        name: unique in the experiment; for people, never part of a path.
        method: by which method.
        model: with which model.
        settings: how, resolved by `Settings.on_device`.
        rival_of: the arm it was made to rival, if it was.
        match: what it was made equal in, if it is a rival.
        candidates: pictures per prompt and replicate, of which the best one counts.
        select: the scorer, in text, that says which one is best; needed for two candidates or more.

    Raises:
        InputError: fewer than one candidate, or several and nothing to choose by.
    """

    name: str
    method: Method
    model: Model
    settings: Settings
    rival_of: str | None = None
    match: Match | None = None
    candidates: int = 1
    select: str | None = None

    def __post_init__(self) -> None:
        """Check the candidates."""
        if self.candidates < 1:
            raise InputError(f"{self.name}: expected at least 1 candidate, got {self.candidates}")
        if self.candidates > 1 and self.select is None:
            raise InputError(
                f"{self.name}: the best of {self.candidates} pictures needs a scorer to choose by"
            )

    @cached_property
    def recipe(self) -> Recipe:
        """How each of its pictures is made."""
        return Recipe(self.model, self.settings, self.method)

    @property
    def evaluations(self) -> int:
        """Single-branch evaluations per picture that counts: those of all its candidates."""
        return self.candidates * self.recipe.evaluations


@dataclass(frozen=True)
class Experiment:
    """Arms × prompts × replicates, and what to score them with.

    Attributes:
        title: what it is called.
        arms: in the order of the file; rivals, once there are any, after the arm they rival.
        prompts: name of a known prompt set, or a prompt file.
        scorers: in the order of the tables.
        limit: only so many prompts, from the first; None for all.
        replicates: pictures per prompt and arm, each from a seed of its own.
        seeds: see `Seeds`.
        batch: pictures made together.
        select: the scorer, in text, that best-of-n chooses by; never one of `scorers`.
        rivals: whether each arm gets rivals of equal evaluations.
        compare: pairs of arm names to compare besides each arm with its rivals.
        notes: in words, what was filled in where the file said nothing.
    """

    title: str
    arms: tuple[Arm, ...]
    prompts: str
    scorers: tuple[Scorer, ...]
    limit: int | None = None
    replicates: int = 1
    seeds: Seeds = "hash"
    batch: int = 1
    select: str | None = None
    rivals: bool = True
    compare: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path, *, device: str | None = None, download: bool = False) -> Experiment:
        """Read an experiment file: find its models, and make methods and scorers of its words.

        Args:
            path: a ``.yaml``, ``.yml`` or ``.json`` file.
            device: where to compute, whatever the file says; None for what it says.
            download: whether models that are not here may be fetched from the hub.

        Raises:
            InputError: the file is not one of experiments, or names what is not here; says which
                file and key.
        """
        words = read_words(path)
        find = cache(lambda **name: find_model(**name, download=download))
        try:
            scorers, select = _scorers(words)
            made = [
                _in(f"arms.{arm.name}", _arm, arm, find, device, select, download)
                for arm in words.arms
            ]
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        run = dict(words.run)
        return cls(
            title=run.pop("title", path.stem),
            arms=tuple(arm for arm, _ in made),
            scorers=scorers,
            notes=tuple(note for _, notes in made for note in notes),
            **{name: value for name, value in run.items() if name != "scorers"},
        )


def _in(where: str, make: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return make(*arguments)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _scorers(words: Words) -> tuple[tuple[Scorer, ...], str | None]:
    names, select = words.run.get("scorers", ()), words.run.get("select")
    if not names:
        raise InputError("scorers: expected at least one, for example [shapes, saturation]")
    scorers = tuple(_in("scorers", parse_scorer, name) for name in names)
    if len({scorer.name for scorer in scorers}) < len(scorers):
        raise InputError("scorers: one of them is there twice")
    if select is not None and _in("select", parse_scorer, select) in scorers:
        raise InputError(
            f"select: {select} is one of the scorers that are reported; a picture chosen by a "
            "score is flattered by it, so choose by another one"
        )
    return scorers, select


def _arm(
    words: ArmWords,
    find: Callable[..., Model],
    device: str | None,
    select: str | None,
    download: bool,
) -> tuple[Arm, list[str]]:
    model = find(**words.model)
    settings = _settings(words, model, device)
    options = {
        name: value.replace("{model}", str(model.folder)) if isinstance(value, str) else value
        for name, value in words.options.items()
    }
    method, notes = choose_method(words.method, options, model, cfg_scale(model, settings))
    if not download:
        _refuse_hub_checkpoints(method)
    loras = find_loras(method, settings.loras, model)
    arm = Arm(
        name=words.name,
        method=method,
        model=model,
        settings=dataclasses.replace(settings, loras=loras),
        candidates=words.candidates,
        select=select if words.candidates > 1 else None,
    )
    arm.recipe.method_json  # noqa: B018 - what has no JSON form is refused here
    return arm, [f"{words.name}: {note}" for note in notes]


def _refuse_hub_checkpoints(method: Method) -> None:
    for edit in (edit for edits in method.roles.values() for edit in edits or ()):
        if isinstance(edit, Checkpoint) and not is_here(edit.source):
            raise InputError(
                f"the checkpoint {edit.source} is not here; --download fetches it from the hub"
            )


def _settings(words: ArmWords, model: Model, device: str | None) -> Settings:
    given: dict[str, Any] = {
        "steps": model.default("num_inference_steps", 50),
        "guidance": model.default("guidance_scale", 1.0),
        **words.settings,
    }
    if "image" in given:
        given["image"] = Path(given["image"])
        strength = image_strength(model, given["image"], given.get("image_strength"))
        given["image_strength"] = strength
    if device is not None:
        given["device"] = device
    return Settings(**given, loras=_loras(words.loras, model)).on_device(small=model.is_shapes)


def _loras(files: Mapping[str, str], model: Model) -> tuple[LoraFile, ...]:
    return tuple(
        LoraFile.parse(name, file.replace("{model}", str(model.folder)))
        for name, file in files.items()
    )
