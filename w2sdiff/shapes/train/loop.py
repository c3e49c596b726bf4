"""One training loop for every network of the world: resumable, averaged, logged."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from w2sdiff.errors import InputError
from w2sdiff.shapes.train.muon import Muon

__all__ = ["Schedule", "Stopwatch", "append_jsonl", "generator_for", "swapped_weights", "train"]

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps.
        batch: items per step.
        lr: peak learning rate; it rises linearly over `warmup` steps, stays, and falls linearly
            to zero over the last `cooldown` (share of the steps). Until the fall begins, a run
            does not depend on `steps`, so a stopped one can be resumed with another number.
        ema: decay of the weights' running average, which is what gets used.
        weight_decay: of the optimiser.
        muon: name of the submodule whose matrices `Muon` trains; AdamW trains all else.
        keep_every: steps between the averaged weights that are kept; 0 keeps only the last.
        watch_every: steps between calls of `watch`; 0 never calls it.
        save_seconds: seconds between resumable states.
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 200
    cooldown: float = 0.2
    ema: float = 0.999
    weight_decay: float = 0.01
    muon: str | None = None
    keep_every: int = 0
    watch_every: int = 0
    save_seconds: float = 120.0

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step (0 .. steps - 1)."""
        left = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup), left)

    def ema_at(self, step: int) -> float:
        """Return the average's decay at a step: short at first, so that noise is soon forgotten."""
        return min(self.ema, (1 + step) / (10 + step))


class Stopwatch:
    """Seconds of work, summed over all the times that a run was resumed."""

    def __init__(self, before: float = 0.0) -> None:
        """Start at `before` seconds."""
        self._before, self._start = before, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._before + time.monotonic() - self._start


def generator_for(seed: int, step: int) -> torch.Generator:
    """Return the random numbers of one step: a function of (seed, step), so resuming is exact."""
    return torch.Generator().manual_seed((seed << 32) + step)


def train(
    module: nn.Module,
    loss: Callable[[int, torch.Generator], Tensor],
    schedule: Schedule,
    folder: Path,
    *,
    seed: int = 0,
    watch: Callable[[int], dict[str, Any]] | None = None,
) -> Weights:
    """Train the parameters of `module` that require gradients, and leave their average in it.

    Args:
        module: what is trained, already on its device.
        loss: called as loss(step, generator); a scalar tensor to go down.
        schedule: how long and how fast.
        folder: where the resumable state, the log (`log.jsonl`: step, seconds, loss) and the
            averaged weights (`ema-<step>.safetensors`) go. A run found there is resumed, and
            goes on exactly as if it had never stopped.
        seed: of the random numbers that `loss` receives.
        watch: called with the step while `module` holds the average; what it returns is logged.

    Returns:
        The averaged weights.

    Raises:
        InputError: the state in the folder is damaged.
        KeyboardInterrupt: passed on after the state was saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    device = next(iter(parameters.values())).device
    optimisers = _optimisers(parameters, schedule)
    average = {n: p.detach().clone() for n, p in parameters.items()}
    step, watchstop = 0, Stopwatch()
    state_file = folder / "state.pt"
    if state_file.is_file():
        state = _state(state_file, device)
        module.load_state_dict(state["module"], strict=False)
        for optimiser, values in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        average, step = state["average"], state["step"]
        watchstop = Stopwatch(state["seconds"])

    def save() -> None:
        state = {
            "module": {n: p.detach() for n, p in parameters.items()},
            "optimisers": [optimiser.state_dict() for optimiser in optimisers],
            "average": average,
            "step": step,
            "seconds": watchstop.seconds,
        }
        _write(state_file, lambda path: torch.save(state, path))

    def keep() -> None:
        weights = {n: t.contiguous().cpu() for n, t in average.items()}
        _write(folder / f"ema-{step:06d}.safetensors", lambda path: save_file(weights, path))

    saved, losses = time.monotonic(), torch.zeros((), device=device)
    since = step
    try:
        while step < schedule.steps:
            for group in (group for o in optimisers for group in o.param_groups):
                group["lr"] = schedule.lr_at(step)
            value = loss(step, generator_for(seed, step))
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(average.values()),
                    [parameters[n].detach() for n in average],
                    1 - schedule.ema_at(step),
                )
            losses += value.detach()
            step += 1
            last = step == schedule.steps
            if last or step % 100 == 0:
                line = {"step": step, "seconds": round(watchstop.seconds, 1)}
                append_jsonl(
                    folder / "log.jsonl", line | {"loss": round(float(losses) / (step - since), 5)}
                )
                losses, since = torch.zeros_like(losses), step
            if last or (schedule.keep_every and step % schedule.keep_every == 0):
                keep()
            if watch and schedule.watch_every and (last or step % schedule.watch_every == 0):
                with swapped_weights(module, average):
                    found = watch(step)
                line = {"step": step, "seconds": round(watchstop.seconds, 1)}
                append_jsonl(folder / "log.jsonl", line | found)
            if last or time.monotonic() - saved > schedule.save_seconds:
                save()
                saved = time.monotonic()
    except KeyboardInterrupt:
        save()
        raise
    module.load_state_dict(average, strict=False)
    return average


@contextmanager
def swapped_weights(module: nn.Module, weights: Weights) -> Iterator[None]:
    """Hold other weights in the module for a while."""
    own = {n: p.detach().clone() for n, p in module.named_parameters() if n in weights}
    training = module.training
    module.load_state_dict(weights, strict=False)
    module.eval()
    try:
        yield
    finally:
        module.load_state_dict(own, strict=False)
        module.train(training)


def _optimisers(
    parameters: dict[str, nn.Parameter], schedule: Schedule
) -> list[torch.optim.Optimizer]:
    matrices = {
        name: p
        for name, p in parameters.items()
        if schedule.muon
        and name.startswith(f"{schedule.muon}.")
        and name.endswith("weight")
        and p.ndim == 2  # a norm's weight is a vector
    }
    rest = [p for name, p in parameters.items() if name not in matrices]
    decay = schedule.weight_decay
    adamw = torch.optim.AdamW(
        rest, lr=schedule.lr, betas=(0.9, 0.99), weight_decay=decay, fused=True
    )
    if not matrices:
        return [adamw]
    return [adamw, Muon(matrices.values(), lr=schedule.lr, weight_decay=decay)]


def append_jsonl(path: Path, line: dict[str, Any]) -> None:
    """Append one JSON object to a file of lines."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _state(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        return state
    except Exception as error:  # damaged bytes raise whatever the place they are in leads to
        raise InputError(
            f"{path} is damaged; take another folder: {type(error).__name__}"
        ) from error


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write through a second file, so that a stop at any moment leaves the old one or the new."""
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    temporary.replace(path)
