"""How good a noise model is on prompts it has not seen, by noise level and category."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w2sdiff.core2.compact import CompactNoiseModel
from w2sdiff.core2.data import Batch, Collected
from w2sdiff.core2.noise_model import NoiseModel
from w2sdiff.core2.training import LOSSES

__all__ = ["Validation", "displacement", "explained_by", "validate"]

LIMIT = 8_000  # steps: more would only take longer


@dataclass(frozen=True)
class Validation:
    """Errors on held-back prompts.

    Attributes:
        errors: mean squared error under each loss, as a share of that of predicting no guidance:
            0 is perfect, 1 is nothing learned.
        levels: log(alpha^2/sigma^2) of each stored step, from noise to clean.
        explained: the share of what guidance adds, squared, that is predicted, at each level.
    """

    errors: Mapping[str, float]
    levels: tuple[float, ...]
    explained: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data, rounded."""
        data = dataclasses.asdict(self)
        data["errors"] = {name: round(value, 5) for name, value in self.errors.items()}
        data["levels"] = [round(value, 4) for value in self.levels]
        data["explained"] = [round(value, 4) for value in self.explained]
        return data


def displacement(loss: str) -> Callable[[Any, Batch], Tensor]:
    """The error of a model on a batch that a loss squares. Shape of the result: [B, C, ...].

    Args:
        loss: "relative", "prediction" or "x0", see `Training`.
    """

    def error(model: Any, batch: Batch) -> Tensor:
        weight = weights(loss, getattr(model, "module", model), batch)
        found: Tensor = (model(batch.c, batch.given) - batch.target) * weight
        return found

    return error


def weights(loss: str, model: CompactNoiseModel, batch: Batch) -> Tensor:
    """What an error is multiplied by. Shape: [B, 1, ...]."""
    shape = (-1, *[1] * (batch.c.ndim - 1))
    if loss == "relative":
        return 1 / model.size_at(batch.given, batch.c).reshape(shape)
    if loss == "prediction":
        return batch.c.new_ones(()).reshape((1,) * batch.c.ndim)
    alpha, sigma = (
        torch.as_tensor(v).reshape(shape) for v in (batch.given.alpha, batch.given.sigma)
    )
    match model.sizes.prediction:
        case "epsilon":  # x0 = (x - sigma eps) / alpha: unbounded at pure noise, where all is lost
            return (sigma / alpha).clamp(max=10.0).to(batch.c)
        case "sample":
            return torch.ones_like(sigma).to(batch.c)
        case "v" | "edm":
            return (sigma / (alpha**2 + sigma**2)).to(batch.c)
        case "flow":
            return (sigma / (alpha + sigma)).to(batch.c)


@torch.no_grad()
def validate(
    model: CompactNoiseModel, held: Collected, *, device: torch.device | str = "cpu"
) -> Validation:
    """Measure a noise model on held-back data.

    Args:
        model: the noise model, on the device.
        held: the validation part.
        device: where to compute.
    """
    squares: dict[str, list[float]] = {loss: [0.0, 0.0] for loss in LOSSES}
    levels: dict[float, list[float]] = {}
    for whole in held.read(LIMIT):
        batch = whole.to(device)
        error, added = _squares(model, batch)
        for loss, sums in squares.items():
            weight = weights(loss, model, batch).flatten(1).square().mean(1).cpu().double()
            sums[0] += float((weight * error).sum())
            sums[1] += float((weight * added).sum())
        logs = 2 * (
            torch.as_tensor(batch.given.alpha).log() - torch.as_tensor(batch.given.sigma).log()
        )
        for level, wrong, all_of_it in zip(logs.tolist(), error, added, strict=True):
            sums = levels.setdefault(round(level, 4), [0.0, 0.0])
            sums[0] += float(wrong)
            sums[1] += float(all_of_it)
    ordered = sorted(levels)
    return Validation(
        errors={loss: wrong / max(whole, 1e-12) for loss, (wrong, whole) in squares.items()},
        levels=tuple(ordered),
        explained=tuple(1 - levels[at][0] / max(levels[at][1], 1e-12) for at in ordered),
    )


@torch.no_grad()
def explained_by(
    model: NoiseModel, data: Collected, group: Callable[[str], str]
) -> dict[str, float]:
    """The explained share for groups of prompts: by category, say.

    Args:
        model: the noise model.
        data: what to measure on.
        group: gives the group of a prompt.
    """
    sums: dict[str, list[float]] = {}
    prompts = (
        shard.prompts[row]
        for shard in data.shards
        for row in data.rows(shard)
        for _ in range(shard.steps)
    )
    for batch in data.read():
        for wrong, whole in zip(*_squares(model, batch), strict=True):
            found = sums.setdefault(group(next(prompts)), [0.0, 0.0])
            found[0] += float(wrong)
            found[1] += float(whole)
    return {name: 1 - wrong / max(whole, 1e-12) for name, (wrong, whole) in sorted(sums.items())}


def _squares(model: NoiseModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean squared error, and what predicting c itself would have. Shape: [B] each."""
    error = (model(batch.c, batch.given) - batch.target).flatten(1).square().mean(1)
    added = (batch.target - batch.c).flatten(1).square().mean(1)
    return error.cpu().double(), added.cpu().double()
