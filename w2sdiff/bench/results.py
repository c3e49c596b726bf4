"""`Results`: everything a run found out, in one value. Statistics and reports read nothing else.

It comes from the ledgers of a run folder, from a scored folder of pictures, or from a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from w2sdiff.scorers import Group

__all__ = ["ArmFacts", "Match", "PromptFacts", "Results", "Sample", "ScorerFacts"]

Match = Literal["evaluations", "strength", "first order", "best of n"]
"""What a rival was made equal in: the number of evaluations (all of them are), and also the
measured effective guidance scale, the first-order strength of the pair, or the number of pictures
that the evaluations pay for."""


@dataclass(frozen=True)
class ArmFacts:
    """One way of making the pictures.

    Attributes:
        name: unique in the run.
        text: in words, for tables.
        steps: denoising steps; None if not known (pictures from elsewhere).
        guidance: the guidance scale the pipeline was called with; None if not known.
        evaluations: single-branch network evaluations per picture, those of all candidates for
            best-of-n; None if not known.
        rival_of: the arm it was made for, if it is a rival; None for an arm that was asked for.
        match: what it was made equal in; None for an arm that was asked for.
        strength: the measured effective guidance scale, where it was measured.
        spec: method, settings and model as JSON, for provenance.
    """

    name: str
    text: str
    steps: int | None = None
    guidance: float | None = None
    evaluations: int | None = None
    rival_of: str | None = None
    match: Match | None = None
    strength: float | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptFacts:
    """A prompt of the set; `category` is "" where the set has none."""

    id: str
    text: str
    category: str = ""


@dataclass(frozen=True)
class ScorerFacts:
    """What a table must know of a scorer; see `w2sdiff.scorers.Scorer`.

    Attributes:
        recipe: the sha256 of `fingerprint`; two tables with different ones are never joined.
        fingerprint: everything that decides its scores.
    """

    name: str
    group: Group
    higher_is_better: bool | None
    expected: tuple[float, float]
    needs_prompt: bool = True
    max_tokens: int | None = None
    tie: float = 1e-6
    recipe: str = ""
    fingerprint: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One picture, or its absence.

    Attributes:
        arm: index into `Results.arms`.
        prompt: index into `Results.prompts`.
        replicate: from 0.
        status: "done", "failed" (tried, and why is in `reason`) or "missing" (not tried yet).
        image: path relative to `Results.folder`; None unless done.
        sha256: of the image file.
        seed: of its start noise.
        noise: sha256 of its start noise; equal for the arms of one prompt and replicate.
        flags: what is odd about it, in words: "of one colour", "same picture as ...", ... One that
            begins with "SCORER: " is about that score; any other keeps the picture out of every
            figure.
        reason: why it failed.
        scores: scorer name -> score; a scorer that gave none, or no number, is absent.
        truncated: names of the scorers that read only the beginning of its prompt.
        seconds: time it took to make, its share of the batch; None if not known.
        peak_mb: peak memory of the device meanwhile, in MB; None if not known.
    """

    arm: int
    prompt: int
    replicate: int
    status: Literal["done", "failed", "missing"] = "done"
    image: str | None = None
    sha256: str | None = None
    seed: int | None = None
    noise: str | None = None
    flags: tuple[str, ...] = ()
    reason: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    truncated: tuple[str, ...] = ()
    seconds: float | None = None
    peak_mb: float | None = None


@dataclass(frozen=True, eq=False)
class Results:
    """A whole run: arms × prompts × replicates, and the scores.

    Attributes:
        title: what the run is called.
        folder: the run folder, against which image paths are read.
        arms: in table order; rivals come after the arm they were made for.
        prompts: in the order of the set.
        scorers: in the order they were asked for.
        samples: every sample of the plan, missing ones too, by arm, prompt, replicate.
        replicates: pictures per prompt and arm.
        compare: pairs of arm names to compare besides each arm with its rivals.
        provenance: config, versions, machine, hashes of models, prompt set and noise, as JSON.
    """

    title: str
    folder: Path
    arms: tuple[ArmFacts, ...]
    prompts: tuple[PromptFacts, ...]
    scorers: tuple[ScorerFacts, ...]
    samples: tuple[Sample, ...]
    replicates: int = 1
    compare: tuple[tuple[str, str], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def values(self) -> dict[str, NDArray[np.float64]]:
        """Scorer name -> scores [arms, prompts, replicates]; NaN where there is none."""
        import numpy as np

        shape = (len(self.arms), len(self.prompts), self.replicates)
        found = {scorer.name: np.full(shape, np.nan) for scorer in self.scorers}
        for sample in self.samples:
            for name, score in sample.scores.items():
                found[name][sample.arm, sample.prompt, sample.replicate] = score
        return found

    def arm(self, name: str) -> int:
        """The index of an arm."""
        return [arm.name for arm in self.arms].index(name)

    def rivals(self, name: str) -> tuple[ArmFacts, ...]:
        """The arms that were made to rival this one."""
        return tuple(arm for arm in self.arms if arm.rival_of == name)
