"""`LearnedGuidance(noise_model)`: a small network stands in for classifier-free guidance."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2sdiff.core2.noise_model import NoiseModel, load_noise_model
from w2sdiff.edits.base import BOTH, COND, EDITS, Context, Edit, Halves
from w2sdiff.edits.fits import check_fits
from w2sdiff.edits.given import given_of, predicted_channels
from w2sdiff.edits.guidance import number
from w2sdiff.errors import InputError, UnsupportedError
from w2sdiff.forms import text, truth, values
from w2sdiff.jobs import weights_sha256

if TYPE_CHECKING:
    import torch


@EDITS.register
@dataclass(frozen=True, eq=False)
class LearnedGuidance(Edit):
    """learned-guidance=FILE    a noise model of CoRe2 (core2 reflect) in the place of guidance.

    Shao et al. 2025, arXiv 2503.09662. The noise model g turns the conditional prediction c into an
    estimate of the guided one. Both halves are then given the same prediction, so that whatever the
    pipeline mixes them to is that prediction:

    * fast, one evaluation: c + scale (g(c) - c), at scale 1 g(c) itself;
    * slow, two evaluations: g(c) + slow (guided - g(c)), beyond guided where slow > 1.

    A pipeline that rescales its guided prediction by the conditional one is not rescaled in the
    fast form, whose target was rescaled when it was collected. In the slow form c stays, and the
    unconditional half is chosen so that the pipeline's mix is the wanted one before rescaling.

    Args:
        noise_model: file written by `w2sdiff core2 reflect` or `save_noise_model`, or a
            `NoiseModel` in memory.
        scale: strength of the fast form; 0 conditional, 1 guided as learned.
        slow: strength of the slow form; None: the fast form.
        reference: how a published noise model counts steps, see `PublishedNoiseModel`.
        sha256: expected hash of the file, checked on loading; None: not checked.

    Cost: 1 evaluation in the fast form, 2 in the slow one, and the noise model.

    Raises:
        InputError: no such file, another hash, both `scale` and `slow`, or one that is not finite.
        UnsupportedError: while running, if the noise model was made for another network, kind of
            prediction, number of channels or guidance scale, or guidance is off.

    Example:
        >>> from w2sdiff.core2 import NoiseModel
        >>> class Half(NoiseModel):  # any network will do
        ...     def forward(self, c, given):
        ...         return c / 2
        >>> LearnedGuidance(Half()).needs(None) == {"c"}
        True
    """

    kind = "learned-guidance"
    noise_model: str | Path | NoiseModel
    scale: float = 1.0
    slow: float | None = None
    reference: bool = False
    sha256: str | None = None

    def __post_init__(self) -> None:
        """Check the scales; refuse a file that is not there before anything runs."""
        truth(self.reference, "reference")
        if self.sha256 is not None:
            text(self.sha256, "The sha256 of a noise model")
        object.__setattr__(self, "scale", number(self.scale, "scale of the noise model"))
        if self.slow is not None:
            object.__setattr__(self, "slow", number(self.slow, "slow scale of the noise model"))
            if self.scale != 1:
                raise InputError("LearnedGuidance takes a scale or a slow scale, not both.")
        if isinstance(self.noise_model, str | Path):
            if not Path(self.noise_model).is_file():
                raise InputError(f"No noise model file {self.noise_model}.")
        elif not isinstance(self.noise_model, NoiseModel):
            raise InputError(
                "A noise model is a file or a w2sdiff.core2.NoiseModel, "
                f"got {type(self.noise_model).__name__}."
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LearnedGuidance) or self._numbers != other._numbers:
            return NotImplemented if not isinstance(other, LearnedGuidance) else False
        if self.noise_model is other.noise_model:
            return True
        return self._named and other._named and self._hash() == other._hash()

    def __hash__(self) -> int:
        named = self._hash() if self._named else id(self.noise_model)
        return hash((named, *self._numbers))

    @classmethod
    def from_text(cls, argument: str | None, value: str) -> LearnedGuidance:
        """`learned-guidance=FILE`."""
        if argument is not None:
            raise InputError(f"Write learned-guidance=FILE; ':{argument}' means nothing.")
        if not value.strip():
            raise InputError("Expected a noise model's file after learned-guidance=, got nothing.")
        return cls(value)

    @classmethod
    def from_json(cls, data: Any) -> LearnedGuidance:
        """Inverse of `to_json`: load from where the file was, if it still is the same."""
        names = ("path", "scale", "slow", "reference", "sha256")
        fields = {name: value for name, value in data.items() if name != "edit"}
        path, scale, slow, reference, sha256 = values(fields, names, f"the edit {cls.kind!r}")
        return cls(path, scale, slow, reference, sha256)

    def to_json(self) -> dict[str, Any]:
        """Where the file is, its hash, and the strength."""
        if not self._named:
            raise InputError(
                "A noise model in memory has no JSON form; save it and give the file: "
                "w2sdiff.core2.save_noise_model(model, path)."
            )
        scale, slow, reference = self._numbers
        numbers = {"scale": scale, "slow": slow, "reference": reference}
        path, sha256 = str(self.noise_model), self._hash()
        return {"edit": self.kind, "path": path, "sha256": sha256, **numbers}

    def needs(self, context: Context) -> Halves:
        """The conditional half; the slow form both."""
        del context
        return COND if self.slow is None else BOTH

    def inputs(self, kwargs: dict[str, Any], context: Context) -> dict[str, Any]:
        """Refuse where there is no guidance to stand in for."""
        if context.guidance_scale is None:
            raise UnsupportedError(
                "A noise model stands in for classifier-free guidance, which is off at this step. "
                "Call the pipeline with the guidance scale that the model was made for "
                "(FLUX: true_cfg_scale and a negative_prompt)."
            )
        return kwargs

    def halves(
        self, c: torch.Tensor | None, u: torch.Tensor | None, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The wanted prediction, for both halves."""
        assert c is not None
        scale = context.guidance_scale
        assert scale is not None
        if self.slow == 1 and u is not None:
            return c, u  # the pipeline's own guidance, to the last bit
        guided = self._apply(c, context)
        if u is None:
            wanted = guided if self.scale == 1 else c.lerp(guided, self.scale)
            return wanted, wanted
        assert self.slow is not None
        wanted = guided.lerp(u + scale * (c - u), self.slow)
        if context.rescales:
            return c, (wanted - scale * c) / (1 - scale)
        return wanted, wanted

    def _apply(self, c: torch.Tensor, context: Context) -> torch.Tensor:
        """g(c); what a network appends to its prediction (a learned variance) stays c's."""
        request = context.request
        assert request is not None
        # One for the slow and the fast form. Not by its hash: that would read the file every step.
        key = ("noise model", str(self.noise_model) if self._named else id(self.noise_model))
        model: NoiseModel = context.remember(key, lambda: self._load(c))
        channels = predicted_channels(request, c)
        # Again for another scale: the next call may have one, or a callback have changed it.
        context.remember_in_call(
            (*key, context.guidance_scale),
            lambda: check_fits(model, context, request.levels().prediction, channels),
        )
        given = given_of(request, channels, reference=self.reference)
        if c.ndim < 4 or c.shape[1] == channels:
            return model(c, given).to(c.dtype)  # type: ignore[no-any-return]
        import torch

        guided = model(c[:, :channels], given).to(c.dtype)
        return torch.cat([guided, c[:, channels:]], dim=1)

    def _load(self, c: torch.Tensor) -> NoiseModel:
        named = self._named
        if named and self.sha256 is not None and self._hash() != self.sha256:
            raise InputError(
                f"The noise model {self.noise_model} is not the one expected "
                f"(sha256 {self.sha256[:12]}...)."
            )
        model = load_noise_model(Path(self.noise_model)) if named else self.noise_model  # type: ignore[arg-type]
        assert isinstance(model, NoiseModel)
        parameter = next(model.parameters(), None)
        if parameter is None or (parameter.device, parameter.dtype) == (c.device, c.dtype):
            return model
        # The user's own module is copied, not cast in place.
        return (model if named else copy.deepcopy(model)).to(c.device, c.dtype)

    @property
    def _named(self) -> bool:
        return isinstance(self.noise_model, str | Path)

    @property
    def _numbers(self) -> tuple[float, float | None, bool]:
        return self.scale, self.slow, self.reference

    def _hash(self) -> str:
        return weights_sha256(Path(self.noise_model))  # type: ignore[arg-type]
