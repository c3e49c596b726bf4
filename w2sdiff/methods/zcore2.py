"""`ZCore2`: Z-Sampling whose inversion uses one evaluation and a noise model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from w2sdiff.edits.base import Edit, Edits
from w2sdiff.edits.guidance import Guidance, number
from w2sdiff.edits.learned_guidance import LearnedGuidance
from w2sdiff.forms import truth
from w2sdiff.methods.base import METHODS, Method, Step, Steps, Window
from w2sdiff.methods.core2 import as_path, model_json, no_guidance, unchanged
from w2sdiff.methods.w2sd import W2SD, Inversion

if TYPE_CHECKING:
    from w2sdiff.core2.noise_model import NoiseModel


@METHODS.register
@dataclass(frozen=True)
class ZCore2(Method):
    """Z-Sampling that inverts with a noise model: c + scale (g(c) - c), of one evaluation.

    Shao et al. 2025, arXiv 2503.09662 (Z-CoRe2), on Bai et al. 2024, arXiv 2412.10891. The step
    down and the real step are guided as the pipeline is called; the way up has one evaluation of
    the conditional branch, where Z-Sampling with a weak scale other than 0 or 1 has two.

    Args:
        noise_model: a file written by `w2sdiff core2 reflect`, or a `NoiseModel` in memory.
        scale: of the inversion; 0 inverts with the conditional prediction, 1 with g(c), 1.5 by
            default as published. What is reflected is guided - (c + scale (g(c) - c)): the smaller
            the scale, the more; beyond 1 a step is guided less than plain sampling's.
        real_scale: guidance scale of the real step; None: the pipeline's. The published code for
            Stable Diffusion 3.5 has 3.5 here, whatever it is called with.
        base: edits of the network under all of this; None: as called.
        window: as in `W2SD`.
        times: as in `W2SD`.
        inversion: as in `W2SD`.
        weak_time: as in `W2SD`.
        reference: choose a published noise model's set of weights as its authors' code does.

    Cost: a reflected step has 5 evaluations, 2 + 1 + 2, and the noise model.

    Raises:
        InputError: a number out of range, no such file, or a base with guidance of its own.
        UnsupportedError: while running, if the noise model does not fit the pipeline, or the
            scheduler has no first-order path.

    Example:
        >>> from w2sdiff.core2 import NoiseModel
        >>> ZCore2(NoiseModel()).cost(num_inference_steps=28, guidance_scale=3.5)
        137
    """

    kind = "zcore2"
    noise_model: str | Path | NoiseModel
    scale: float = 1.5
    real_scale: float | None = None
    base: Edit | Edits | None = None
    window: Window = Window()
    times: int = 1
    inversion: Inversion = "exact"
    weak_time: Literal["this", "next"] = "this"
    reference: bool = False

    def __post_init__(self) -> None:
        """Check the numbers; the roles are those of a `W2SD`."""
        self._normalise_roles()
        object.__setattr__(self, "noise_model", as_path(self.noise_model))
        truth(self.reference, "reference")
        object.__setattr__(self, "scale", number(self.scale, "ZCore2 scale"))
        base = no_guidance(self.base, "ZCore2")
        inverse = LearnedGuidance(self.noise_model, scale=self.scale, reference=self.reference)
        real = base if self.real_scale is None else base | Guidance(self.real_scale)
        pair = W2SD(
            strong=base,
            weak=base | inverse,
            base=real,
            window=self.window,
            times=self.times,
            inversion=self.inversion,
            weak_time=self.weak_time,
        )
        object.__setattr__(self, "_pair", pair)

    @property
    def roles(self) -> dict[str, Edits | None]:
        """Those of the reflection."""
        return self._reflection.roles

    def to_json(self) -> dict[str, Any]:
        """Plain data; the noise model as where its file is, and its hash."""
        return {**super().to_json(), "noise_model": model_json(self.noise_model)}

    @classmethod
    def of_fields(cls, fields: dict[str, Any]) -> ZCore2:
        """Load the noise model from where it was, if it still is the same.

        Raises:
            InputError: the file is gone, or another one.
        """
        return cls(**{**fields, "noise_model": unchanged(fields["noise_model"])})

    def steps(self, step: Step) -> Steps:
        """W2SD's, with the noise model as the weak one."""
        return self._reflection.steps(step)

    def evaluations(self, in_window: bool, guidance_scale: float) -> int:
        """W2SD's."""
        return self._reflection.evaluations(in_window, guidance_scale)

    @property
    def _reflection(self) -> W2SD:
        pair: W2SD = self.__dict__["_pair"]
        return pair
