"""`Training`: how a noise model is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from w2sdiff.errors import InputError

__all__ = ["LOSSES", "Loss", "Training"]

Loss = Literal["relative", "prediction", "x0"]
LOSSES = get_args(Loss)


@dataclass(frozen=True)
class Training:
    """How a noise model is trained.

    Attributes:
        steps: optimiser steps.
        batch: stored steps per optimiser step, over all processes and accumulated ones.
        lr: peak learning rate: it rises linearly over `warmup` steps, and falls with a cosine to
            zero over the last `cooldown` (share of the steps).
        warmup: steps.
        cooldown: share of the steps.
        ema: decay of the running average of the weights, which is what is validated and saved.
        weight_decay: of AdamW.
        loss: what is squared: the error relative to what guidance adds at the noise level
            ("relative"), of the prediction ("prediction"), or of the x0 it implies ("x0"). All
            three are about the displacement guided - c; they differ in how noise levels weigh.
        cost_ratio: most operations of the model, as a share of one evaluation of the host.
        width: of the model; None: the largest that the cost ratio allows.
        depth: its number of blocks.
        patch: side of the square of latents that is one of its tokens; None: twice the host's.
        validation: share of the prompts that is held back.
        validate_every: steps between validations.
        accumulate: batches whose gradients are added up before a step.
        precision: "no", "bf16" or "fp16".
        compile: whether the training step is compiled.
        seed: of the weights and the order of the data.

    Raises:
        InputError: a value out of range; says which.
    """

    steps: int = 10_000
    batch: int = 256
    lr: float = 2e-3
    warmup: int = 200
    cooldown: float = 0.5
    ema: float = 0.998
    weight_decay: float = 0.01
    loss: Loss = "relative"
    cost_ratio: float = 0.05
    width: int | None = None
    depth: int = 2
    patch: int | None = None
    validation: float = 0.05
    validate_every: int = 500
    accumulate: int = 1
    precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("steps", "batch", "validate_every", "accumulate", "depth"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is at least 1, got {getattr(self, name)}")
        for name in ("lr", "cost_ratio"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is a positive number, got {getattr(self, name)}")
        for name in ("warmup", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is not negative, got {getattr(self, name)}")
        for name in ("cooldown", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} lies in [0, 1), got {getattr(self, name)}")
        if not 0 < self.validation < 1:
            raise InputError(f"the share of validation lies in (0, 1), got {self.validation}")
        if self.loss not in LOSSES:
            raise InputError(f"the loss is one of {', '.join(LOSSES)}, got {self.loss!r}")
        if self.precision not in ("no", "bf16", "fp16"):
            raise InputError(f"the precision is no, bf16 or fp16, got {self.precision!r}")
        if self.batch % self.accumulate:
            raise InputError(f"a batch of {self.batch} does not go into {self.accumulate} parts")

    def lr_at(self, step: int) -> float:
        """Learning rate of a step."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        left = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return self.lr * rise * (0.5 - 0.5 * math.cos(math.pi * min(1.0, left)))

    def ema_at(self, step: int) -> float:
        """The average's decay at a step: short at first, so that noise is soon forgotten."""
        return min(self.ema, (1 + step) / (10 + step))
