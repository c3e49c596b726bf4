"""`Arm` and `Experiment`: what is to be found out, with every model found and every word read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from w2sdiff.bench.results import Match
from w2sdiff.errors import InputError
from w2sdiff.generate import Model, Recipe, Settings
from w2sdiff.methods import Method
from w2sdiff.scorers import Scorer

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

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)
