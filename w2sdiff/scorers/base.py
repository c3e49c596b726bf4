"""What a scorer is: one number per picture, and everything that decides that number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from w2sdiff.errors import InputError
from w2sdiff.jobs import digest
from w2sdiff.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

__all__ = ["SCORERS", "Group", "Scorer", "parse_scorer", "scorer_from_json"]

Group = Literal["rises with guidance", "does not rise with guidance", "exact", "statistic"]
"""What a gain of this score says.

The first two are the two kinds of learned scores: some are known to rise with guidance strength
alone (HPSv2, ImageReward, CLIPScore; papers: GA-Eval, arXiv 2602.22570), some are not (aesthetic,
PickScore). "exact" reads the picture; "statistic" describes it and is neither good nor bad.
"""

SCORERS: Registry[Scorer] = Registry("scorer", "w2sdiff.scorers", entry_points="w2sdiff.scorers")


class Scorer:
    """Base of all scorers.

    A subclass is a frozen dataclass whose fields are its options, all of them JSON values; that
    gives it a JSON form and a form in text. What it loads it keeps in a `cached_property`, made at
    the first score and let go by `close`.

    Attributes:
        kind: the name in the registry.
        group: see `Group`.
        higher_is_better: None for a statistic that is neither.
        expected: the usual range; a score far outside it is worth a look, not wrong.
        needs_prompt: whether the score depends on the prompt.
        per_prompt: whether the score belongs to all pictures of one prompt together (diversity);
            `score` is then called with the pictures of one prompt, two or more, and gives each of
            them the same number.
        tie: scores closer than this count as equal.
    """

    kind: ClassVar[str]
    group: ClassVar[Group]
    higher_is_better: ClassVar[bool | None] = True
    expected: ClassVar[tuple[float, float]]
    needs_prompt: ClassVar[bool] = True
    per_prompt: ClassVar[bool] = False
    tie: ClassVar[float] = 1e-6

    @property
    def name(self) -> str:
        """What tables call it: the kind, and every option that is not the default.

        Of a local path only the last part, so that tables name no folder of anybody's machine.
        """
        return self._as_text(lambda value: Path(value).name if _is_path(value) else value)

    @property
    def max_tokens(self) -> int | None:
        """How many tokens of a prompt it reads, its own start and end marks included."""
        return None

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides a score, as JSON: scores with different ones never mix.

        At least "scorer" (the kind), "weights" (file name -> sha256), "preprocessing", "dtype" and
        "formula". Reads the weight files, but loads nothing.

        Raises:
            InputError: the weights are not here (and may not be downloaded), or are not the known
                ones.
        """
        raise NotImplementedError

    def recipe(self) -> str:
        """The sha256 of the fingerprint."""
        return digest(self.fingerprint())

    def score(
        self, images: Sequence[Image], prompts: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        """One number per picture, float32 [n]; a picture's number depends on no other picture.

        Args:
            images: pictures of any size and mode.
            prompts: one per picture; needed where `needs_prompt` is true.

        Raises:
            InputError: prompts are missing or their number is not that of the pictures.
        """
        raise NotImplementedError

    def tokens(self, prompts: Sequence[str]) -> list[int] | None:
        """How many tokens each prompt has before it is cut to `max_tokens`; None if not known."""
        del prompts
        return None

    def to(self, device: str) -> Scorer:
        """The same scorer, to compute on this device ("cpu", "cuda", "cuda:1", "mps").

        What it had loaded elsewhere it lets go of.
        """
        if device != self.device:
            self.close()
        object.__setattr__(self, "_device", device)
        return self

    @property
    def device(self) -> str:
        """Where it computes; the CPU unless `to` was called."""
        device: str = self.__dict__.get("_device", "cpu")
        return device

    def allow_download(self, allowed: bool = True) -> Scorer:
        """Whether weights that are not here may be fetched from where they are published."""
        object.__setattr__(self, "_download", allowed)
        return self

    @property
    def may_download(self) -> bool:
        """False unless `allow_download` was called."""
        allowed: bool = self.__dict__.get("_download", False)
        return allowed

    def close(self) -> None:
        """Let go of everything loaded; the next score loads it again."""
        fields = {field.name for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        for name in self.__dict__.keys() - fields - {"_device", "_download"}:
            del self.__dict__[name]

    def to_json(self) -> dict[str, Any]:
        """Plain data from which `scorer_from_json` makes it again."""
        return {"scorer": self.kind, **dataclasses.asdict(self)}  # type: ignore[call-overload]

    def to_text(self) -> str:
        """The form that `parse_scorer` reads: `kind` or `kind:option=value,option=value`."""
        return self._as_text(lambda value: value)

    def _as_text(self, shown: Callable[[str], str]) -> str:
        options = [
            f"{field.name}={shown(_text(getattr(self, field.name)))}"
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if getattr(self, field.name) != field.default
        ]
        return f"{self.kind}:{','.join(options)}" if options else self.kind

    @classmethod
    def _check_prompts(cls, images: Sequence[Image], prompts: Sequence[str] | None) -> list[str]:
        """One prompt per picture; empty ones for a scorer that reads none."""
        if prompts is None:
            if cls.needs_prompt:
                raise InputError(f"the scorer {cls.kind} needs the prompts of the pictures")
            return [""] * len(images)
        if len(prompts) != len(images):
            raise InputError(
                f"expected one prompt per picture, got {len(prompts)} for {len(images)} pictures"
            )
        return list(prompts)


def scorer_from_json(data: Mapping[str, Any]) -> Scorer:
    """Inverse of `Scorer.to_json`; options that are left out have their defaults.

    Raises:
        InputError: an unknown scorer or option.
    """
    cls = SCORERS[str(data.get("scorer"))]
    options = {name: value for name, value in data.items() if name != "scorer"}
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if unknown := sorted(options.keys() - set(known)):
        raise InputError(
            f"the scorer {cls.kind} has no option {unknown[0]!r} "
            f"(it has: {', '.join(known) or 'none'})"
        )
    return cls(**options)


def parse_scorer(text: str) -> Scorer:
    """A scorer from text: `aesthetic`, `clipscore:model=shapes-clip,form=plain`.

    Values read as a number, `true` or `false` are that; everything else is text.

    Raises:
        InputError: an unknown scorer or option, or text of another form.
    """
    kind, _, rest = text.strip().partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise InputError(f"expected KIND:OPTION=VALUE,..., got {text!r}")
        options[name.strip()] = _value(value.strip())
    return scorer_from_json({"scorer": kind, **options})


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_path(value: str) -> bool:
    return "/" in value and Path(value).expanduser().exists()
