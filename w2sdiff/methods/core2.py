"""`Core2`: refine with a trained noise model, slowly at first and fast afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2sdiff.edits.base import Edit, Edits
from w2sdiff.edits.guidance import number
from w2sdiff.edits.learned_guidance import LearnedGuidance
from w2sdiff.errors import InputError
from w2sdiff.forms import truth, values
from w2sdiff.methods.base import METHODS, Eval, Method, Step, Steps, Window, role_evaluations

if TYPE_CHECKING:
    from w2sdiff.core2.noise_model import NoiseModel


@METHODS.register
@dataclass(frozen=True)
class Core2(Method):
    """Sample with a noise model for guidance: beyond it while slow, for half its cost while fast.

    Shao et al. 2025, arXiv 2503.09662, the Refine phase. g(c) is the noise model's estimate of the
    guided prediction, made of the conditional one alone. The first steps are slow: they step with
    weak + scale (guided - weak), where weak = g(c). The rest are fast: they step with g(c).

    Args:
        noise_model: a file written by `w2sdiff core2 reflect`, or a `NoiseModel` in memory.
        scale: of the slow steps; 0 weak, 1 plain guidance bit for bit, 1.5 by default as published.
        slow_until: end of the slow part, as a fraction of the run in [0, 1]; 0 is fast only, 1 slow
            only, as published.
        fast_scale: of the fast steps, c + fast_scale (g(c) - c); 1 by default: g(c).
        base: edits of the network under all of this (a LoRA, a checkpoint); None: as called.
        reference: choose a published noise model's set of weights as its authors' code does.

    Cost: with classifier-free guidance 2 evaluations a slow step and 1 a fast one, and the noise
    model, by default at most a twentieth of one.

    Raises:
        InputError: a number out of range, no such file, or a base with `Guidance` of its own.
        UnsupportedError: while running, if the noise model does not fit the pipeline.

    Example:
        >>> from w2sdiff.core2 import NoiseModel
        >>> method = Core2(NoiseModel(), slow_until=0.6)
        >>> method.cost(num_inference_steps=50, guidance_scale=5.5)
        80
    """

    kind = "core2"
    noise_model: str | Path | NoiseModel
    scale: float = 1.5
    slow_until: float = 0.6
    fast_scale: float = 1.0
    base: Edit | Edits | None = None
    reference: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        self._normalise_roles()
        object.__setattr__(self, "noise_model", as_path(self.noise_model))
        truth(self.reference, "reference")
        for name in ("scale", "fast_scale", "slow_until"):
            object.__setattr__(self, name, number(getattr(self, name), f"Core2 {name}"))
        if not 0 <= self.slow_until <= 1:
            raise InputError(
                f"slow_until is a fraction of the run in [0, 1], got {self.slow_until}."
            )
        # The roles hold the noise model; a file that is not there is refused now.
        object.__setattr__(self, "_roles", self._make_roles())

    @property
    def window(self) -> Window:  # type: ignore[override]
        """The slow steps."""
        return Window(stop=self.slow_until, last=True)

    @property
    def reach(self) -> Window:
        """All steps, whichever way they go."""
        return Window(last=True)

    @property
    def roles(self) -> dict[str, Edits | None]:
        """Slow is the strong role, fast the weak one."""
        roles: dict[str, Edits | None] = self.__dict__["_roles"]
        return roles

    def to_json(self) -> dict[str, Any]:
        """Plain data; the noise model as where its file is, and its hash."""
        return {**super().to_json(), "noise_model": model_json(self.noise_model)}

    @classmethod
    def of_fields(cls, fields: dict[str, Any]) -> Core2:
        """Load the noise model from where it was, if it still is the same.

        Raises:
            InputError: the file is gone, or another one.
        """
        return cls(**{**fields, "noise_model": unchanged(fields["noise_model"])})

    def steps(self, step: Step) -> Steps:
        """Choose the role; the pipeline's own guidance then changes nothing."""
        role = "strong" if step.in_window else "weak"
        return (yield Eval(step.x, role, at=step.this)), step.x

    def evaluations(self, in_window: bool, guidance_scale: float) -> int:
        """The slow role's or the fast one's."""
        role = self.roles["strong" if in_window else "weak"]
        return role_evaluations(role, guidance_scale)

    def _make_roles(self) -> dict[str, Edits | None]:
        model, base = self.noise_model, no_guidance(self.base, "Core2")
        fast = LearnedGuidance(model, scale=self.fast_scale, reference=self.reference)
        slow = LearnedGuidance(model, slow=self.scale, reference=self.reference)
        return {"strong": base | slow, "weak": base | fast, "base": Edits.of(self.base)}


def no_guidance(base: Edit | Edits | None, what: str) -> Edits:
    """The base's edits, which may be anything but guidance: the method brings its own.

    Raises:
        InputError: there is guidance among them.
    """
    edits = Edits.of(base) or Edits()
    if any(edit.kind in ("guidance", LearnedGuidance.kind) for edit in edits):
        raise InputError(f"the base of {what} takes no guidance of its own, got {edits}.")
    return edits


def as_path(model: str | Path | NoiseModel) -> Path | NoiseModel:
    """A file's name as a path, so that a method read back from JSON equals the one written."""
    return Path(model) if isinstance(model, str) else model


def model_json(model: str | Path | NoiseModel) -> dict[str, Any]:
    """Where the file of a noise model is, and its hash.

    Raises:
        InputError: it is in memory only.
    """
    data = LearnedGuidance(model).to_json()
    return {name: data[name] for name in ("path", "sha256")}


def unchanged(named: str | Path | NoiseModel | Mapping[str, Any]) -> str | Path | NoiseModel:
    """The file of a noise model's JSON form, if it has the hash that it had."""
    if not isinstance(named, Mapping):
        return named
    path, sha256 = values(named, ("path", "sha256"), "The form of a noise model")
    edit = LearnedGuidance(path)
    if edit.to_json()["sha256"] != sha256:
        raise InputError(f"The noise model {path} is not the one it was then.")
    return edit.noise_model
