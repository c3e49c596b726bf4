"""`Variant`: one way to use one pipeline class, built tiny; `VARIANTS`: the table of them.

A file in `w2sdiff/testing/pipelines/` that adds a row to `VARIANTS` is all it takes: the contract
tests and `benchmarks/families.py` go over the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from w2sdiff.testing.parts import private_randomness

__all__ = ["NEGATIVE", "PROMPT", "VARIANTS", "Variant", "variants"]

PROMPT = "a red circle left of a blue square"
NEGATIVE = "blurry"


@dataclass(frozen=True)
class Variant:
    """One way to use one pipeline class.

    Attributes:
        name: "sdxl", "sdxl-inpaint-9", ...
        family: what it is a variant of, as in `w2sdiff list families`.
        make: seed -> the pipeline, in float32, on the CPU.
        arguments: seed -> what it is called with besides steps and generator; latents come out.
        denoiser: attribute of the pipeline that holds the network.
        guidance: name of the argument with the scale; None: it runs without guidance.
        offset: what is to be added to that argument to have the scale of u + scale (c - u).
        constant: arguments with which that scale holds at every step, where it else does not.
        calls: of the network per step.
        evaluations: single-branch ones per step.
        unguided: the same at guidance scale 1; None: one less where there is guidance.
        unconditional: the same at guidance scale 0; None: one less where there is guidance, as long
            as the conditional prediction has no other use than in the mix.
        prompted: it takes a prompt.
        shared: arguments that all items of a batch have in common.
        steps: name of the argument with the number of steps.
        output: attribute of what a call returns.
        since: first diffusers release that has the class, "0.38" being the oldest supported.
    """

    name: str
    family: str
    make: Callable[[int], Any]
    arguments: Callable[[int], Mapping[str, Any]]
    denoiser: str = "transformer"
    guidance: str | None = "guidance_scale"
    offset: float = 0.0
    constant: Mapping[str, Any] = field(default_factory=dict)
    calls: int = 1
    evaluations: int = 2
    unguided: int | None = None
    unconditional: int | None = None
    prompted: bool = True
    shared: tuple[str, ...] = ()
    steps: str = "num_inference_steps"
    output: str = "images"
    since: str = "0.38"

    @property
    def installed(self) -> bool:
        """Whether the installed diffusers has it."""
        return _release(version("diffusers")) >= _release(self.since)

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
        """The pipeline; the same weights for the same seed, whatever was drawn before."""
        with private_randomness(seed):
            pipe = self.make(seed)
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(dtype) if dtype != torch.float32 else pipe

    def call(self, *, steps: int = 4, seed: int = 0, **changes: Any) -> dict[str, Any]:
        """Arguments of a fast, deterministic call; `changes` win."""
        generator = torch.Generator().manual_seed(seed)
        common = {self.steps: steps, "generator": generator}
        with private_randomness(seed):
            return {**common, **self.arguments(seed), **changes}

    @torch.no_grad()
    def latents(self, pipe: Any, **changes: Any) -> Tensor:
        """The latents of one call."""
        # as_tensor: DiT gives pictures as an array, whatever one asks for (diffusers 0.42)
        return torch.as_tensor(getattr(pipe(**self.call(**changes)), self.output))

    def at_scale(self, scale: float) -> dict[str, Any]:
        """Arguments of a call that really runs at guidance scale `scale`, in u + scale (c - u)."""
        assert self.guidance is not None, f"{self.name} has no guidance"
        return {self.guidance: scale - self.offset, **self.constant}

    def evaluations_at(self, scale: float) -> int:
        """Single-branch evaluations per step of a role at guidance scale 0 or 1."""
        stated = {0.0: self.unconditional, 1.0: self.unguided}[scale]
        return stated or self.evaluations - (self.guidance is not None)

    def network(self, pipe: Any) -> nn.Module:
        """The denoiser of a pipeline."""
        found: nn.Module = getattr(pipe, self.denoiser)
        return found


def _release(number: str) -> tuple[int, ...]:
    return tuple(int(part) for part in number.split(".")[:2])


VARIANTS: dict[str, Variant] = {}


def add(*rows: Variant) -> None:
    """Add rows to the table."""
    for row in rows:
        assert row.name not in VARIANTS, row.name
        VARIANTS[row.name] = row


def variants(families: Sequence[str] = ()) -> list[Variant]:
    """The rows of some families, or of all, in the order of their names' files.

    Example:
        >>> from w2sdiff.testing import variants
        >>> "sdxl" in [variant.name for variant in variants()]
        True
    """
    return [row for row in VARIANTS.values() if not families or row.family in families]
