"""`RUN/experiment.json`: a run in plain data, enough to find its pictures and scores again.

Reading it needs no model, no weights and no device: a run folder can be reported anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from w2sdiff.bench.plan.design import Design
from w2sdiff.bench.plan.experiment import Arm, Experiment
from w2sdiff.bench.results import ArmFacts, ScorerFacts
from w2sdiff.bench.rivals.matched import described
from w2sdiff.errors import InputError
from w2sdiff.generate import Recipe, cfg_scale
from w2sdiff.jobs import canonical, digest, write_whole
from w2sdiff.methods import Plain
from w2sdiff.prompts import PromptSet
from w2sdiff.scorers import Scorer, scorer_from_json

__all__ = ["FILE", "ArmEntry", "Manifest", "ScorerEntry"]

FILE = "experiment.json"
SCHEMA = 1


@dataclass(frozen=True)
class ArmEntry:
    """An arm: what tables say of it, and what decides the keys of its pictures.

    Attributes:
        facts: for tables.
        decides: see `Recipe.decides`.
        columns: see `Recipe.columns`.
        candidates: pictures of which the best one counts.
        noise: what its start noise depends on besides the seed; arms with the same must have the
            same noise. None where the run begins with an image.
    """

    facts: ArmFacts
    decides: Mapping[str, Any]
    columns: tuple[str, ...]
    candidates: int
    noise: str | None

    @classmethod
    def of(cls, arm: Arm, strength: float | None) -> ArmEntry:
        """From an arm and its measured effective guidance scale."""
        recipe, settings = arm.recipe, arm.settings
        facts = ArmFacts(
            name=arm.name,
            # A checkpoint of the model's own is the same one wherever the model's folder is.
            text=described(arm).replace(f"{arm.model.folder}/", ""),
            steps=settings.steps,
            guidance=settings.guidance,
            evaluations=arm.evaluations,
            rival_of=arm.rival_of,
            match=arm.match,
            strength=_own_scale(arm) if strength is None else strength,
            spec=_spec(recipe),
        )
        shape = [recipe.decides["model"], settings.size, settings.dtype, settings.scheduler]
        noise = digest(shape) if settings.image is None else None
        return cls(facts, recipe.decides, recipe.columns, arm.candidates, noise)


@dataclass(frozen=True)
class ScorerEntry:
    """A scorer: what tables say of it, and its JSON form."""

    facts: ScorerFacts
    spec: Mapping[str, Any]

    @classmethod
    def of(cls, scorer: Scorer) -> ScorerEntry:
        """From a scorer whose weights are here."""
        fingerprint = scorer.fingerprint()
        facts = ScorerFacts(
            name=scorer.name,
            group=scorer.group,
            higher_is_better=scorer.higher_is_better,
            expected=scorer.expected,
            needs_prompt=scorer.needs_prompt,
            max_tokens=scorer.max_tokens,
            tie=scorer.tie,
            recipe=scorer.recipe(),
            fingerprint=fingerprint,
        )
        return cls(facts, scorer.to_json())

    @cached_property
    def scorer(self) -> Scorer:
        """The scorer itself, not loaded."""
        return scorer_from_json(self.spec)


@dataclass(frozen=True)
class Manifest:
    """A run: what was asked for, with rivals made and everything that decides a result.

    Attributes:
        title: of the experiment.
        design: prompts, seeds, batches.
        arms: rivals included, each after the arm it rivals.
        scorers: in the order of the tables.
        select: the scorer that best-of-n chooses by; None where no arm is one.
        compare: pairs of arm names.
        prompts: name, sha256, source, licence and number of the prompts of the set.
    """

    title: str
    design: Design
    arms: tuple[ArmEntry, ...]
    scorers: tuple[ScorerEntry, ...]
    select: ScorerEntry | None
    compare: tuple[tuple[str, str], ...]
    prompts: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        design: Design,
        prompts: PromptSet,
        strengths: Mapping[str, float],
        choosers: Sequence[Scorer],
    ) -> Manifest:
        """From an experiment whose rivals are made.

        Args:
            experiment: its scorers ready to be asked for their fingerprints.
            design: what is drawn.
            prompts: the set it is drawn from.
            strengths: the measured effective guidance scales, by name of the arm.
            choosers: the scorer that best-of-n chooses by; none where no arm is one.

        Raises:
            InputError: the weights of a scorer are not here.
        """
        return cls(
            title=experiment.title,
            design=design,
            arms=tuple(ArmEntry.of(arm, strengths.get(arm.name)) for arm in experiment.arms),
            scorers=tuple(map(ScorerEntry.of, experiment.scorers)),
            select=ScorerEntry.of(choosers[0]) if choosers else None,
            compare=experiment.compare,
            prompts={
                "name": prompts.name,
                "sha256": prompts.sha256,
                "source": prompts.source,
                "licence": prompts.licence,
                "prompts": prompts.count,
            },
        )

    def save(self, run: Path) -> None:
        """Write it to the run folder."""
        data = {
            "schema": SCHEMA,
            **asdict(self),
            "design": self.design.to_json(),
        }
        write_whole(run / FILE, canonical(data).encode())

    @classmethod
    def read(cls, run: Path) -> Manifest:
        """Read the one of a run folder.

        Raises:
            InputError: the folder is no run, or its experiment.json is damaged.
        """
        path = run / FILE
        try:
            data = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise InputError(f"{run} is no run folder: it has no {FILE}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"cannot read {path}: {error}; run bench again") from error
        try:
            if data.pop("schema") != SCHEMA:
                raise InputError(f"{path} was written by another version of w2sdiff")
            return cls(
                title=data["title"],
                design=Design.from_json(data["design"]),
                arms=tuple(map(_arm, data["arms"])),
                scorers=tuple(map(_scorer, data["scorers"])),
                select=_scorer(data["select"]) if data["select"] else None,
                compare=tuple((arm, rival) for arm, rival in data["compare"]),
                prompts=data["prompts"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is damaged ({error!r}); run bench again") from error


def _own_scale(arm: Arm) -> float | None:
    """The scale of plain guidance, which needs no measuring."""
    scale = cfg_scale(arm.model, arm.settings)
    return scale if arm.method == Plain() and scale > 1 else None


def _arm(data: Mapping[str, Any]) -> ArmEntry:
    columns = tuple(data["columns"])
    return ArmEntry(**{**data, "facts": ArmFacts(**data["facts"]), "columns": columns})


def _scorer(data: Mapping[str, Any]) -> ScorerEntry:
    facts = {**data["facts"], "expected": tuple(data["facts"]["expected"])}
    return ScorerEntry(ScorerFacts(**facts), data["spec"])


def _spec(recipe: Recipe) -> dict[str, Any]:
    """For provenance: what decides the pictures, and the names that go with the hashes."""
    model = recipe.model
    return {
        **recipe.decides,
        "model": {
            "name": model.name,
            "pipeline": model.pipeline,
            "scheduler": model.scheduler,
            "variant": model.variant,
            "commit": model.commit,
            "sha256": model.sha256,
        },
    }
