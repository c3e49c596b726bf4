"""How a network is tuned, how far it is, and the state from which a stopped tuning goes on."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from w2sdiff.errors import InputError
from w2sdiff.highres.optimisers import check_optimiser

__all__ = ["Progress", "Tuning", "load_state", "save_state"]

_STATE = "state.pt"


@dataclass(frozen=True)
class Tuning:
    """How a network is adapted. Defaults where the paper states them are the paper's.

    Attributes:
        steps: optimiser steps; with averages to start from, 100 are enough to be usable.
        batch: pictures per step, over all processes and accumulated ones.
        optimiser: adamw, adafactor, and where their libraries are installed came (published),
            prodigy, adamw8bit.
        lr: learning rate, reached after `warmup` steps and then constant.
        warmup: steps.
        weight_decay: of the optimiser.
        ema: decay of the running average of the weights, which is what is validated and kept.
        only_adapter: train the compressors alone, and leave the network as it is.
        teacher: learn the prediction of the network as it was (uncompressed, at the old positions)
            instead of the noise itself; a second network in memory.
        drop_caption: share of captions that are left out, for guidance.
        validation: share of the pictures that is held back.
        validate_every: steps between validations.
        keep: steps after which what is there is kept as well.
        accumulate: parts of a batch whose gradients are added up before a step.
        precision: "no", "bf16" or "fp16".
        checkpointing: compute activations twice instead of keeping them.
        seed: of the order, the noise, and the noise levels.

    Raises:
        InputError: a value out of range, or an optimiser that is not there.
    """

    steps: int = 1000
    batch: int = 32
    optimiser: str = "adamw"
    lr: float = 2e-5
    warmup: int = 50
    weight_decay: float = 0.0
    ema: float = 0.999
    only_adapter: bool = False
    teacher: bool = False
    drop_caption: float = 0.1
    validation: float = 0.02
    validate_every: int = 100
    keep: tuple[int, ...] = ()
    accumulate: int = 1
    precision: Literal["no", "bf16", "fp16"] = "no"
    checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("steps", "batch", "validate_every", "accumulate"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is at least 1, got {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise InputError(f"lr is a positive number, got {self.lr}")
        for name in ("ema", "drop_caption", "validation"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} lies in [0, 1), got {getattr(self, name)}")
        if self.precision not in ("no", "bf16", "fp16"):
            raise InputError(f"the precision is no, bf16 or fp16, got {self.precision!r}")
        if self.batch % self.accumulate:
            raise InputError(f"a batch of {self.batch} does not go into {self.accumulate} parts")
        object.__setattr__(self, "keep", tuple(sorted(set(self.keep))))
        check_optimiser(self.optimiser)

    def lr_at(self, step: int) -> float:
        """Learning rate of a step."""
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup))

    def ema_at(self, step: int) -> float:
        """The average's decay at a step: short at first, so that the start is soon forgotten."""
        return min(self.ema, (1 + step) / (10 + step))


@dataclass(frozen=True)
class Progress:
    """How far a tuning is, told now and then.

    Attributes:
        step: optimiser steps done.
        steps: in all.
        loss: mean since the last time; None at the start.
        validation: error of the average on pictures that were held back, if there was one.
    """

    step: int
    steps: int
    loss: float | None
    validation: float | None = None


def load_state(folder: Path, tuning: Tuning, decides: dict[str, Any]) -> dict[str, Any] | None:
    """The state in a folder, if there is one.

    Args:
        folder: of the tuning.
        tuning: how it is tuned now.
        decides: what else decides the weights.

    Raises:
        InputError: a damaged state, or that of another tuning.
    """
    path = folder / _STATE
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        then = json.loads(state["decides"])
    except Exception as error:  # damaged bytes raise whatever the place they are in leads to
        raise InputError(
            f"{path} is damaged; take another folder: {type(error).__name__}"
        ) from error
    now = json.loads(_described(tuning, decides))
    names = [name for name in now if then.get(name) != now[name]]
    if names:
        raise InputError(
            f"{folder} has a tuning with another {', '.join(names)}; take another folder, or what "
            "it began with"
        )
    return state


def save_state(
    folder: Path, tuning: Tuning, decides: dict[str, Any], state: dict[str, Any]
) -> None:
    """Write the state, as a whole or not at all."""
    temporary = folder / f".{_STATE}.tmp"
    torch.save({"decides": _described(tuning, decides), **state}, temporary)
    temporary.replace(folder / _STATE)


def _described(tuning: Tuning, decides: dict[str, Any]) -> str:
    values = dataclasses.asdict(tuning)
    for name in ("steps", "keep", "validate_every", "checkpointing"):  # decide no weight
        del values[name]
    return json.dumps({**values, **decides}, sort_keys=True)
