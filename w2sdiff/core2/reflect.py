"""Reflect: train a noise model on collected data, with accelerate; resumable."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from w2sdiff.accelerator import accelerator_of, load_scaler, scaler_state
from w2sdiff.average import Average
from w2sdiff.core2.compact import CompactNoiseModel
from w2sdiff.core2.data import Batch, Collected
from w2sdiff.core2.noise_model import save_noise_model
from w2sdiff.core2.sizing import calibrated, share_of, sized
from w2sdiff.core2.training import LOSSES, Training
from w2sdiff.core2.validate import Validation, displacement, validate
from w2sdiff.curves import Curves
from w2sdiff.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Progress", "reflect"]

_STATE = "state.pt"


@dataclass(frozen=True)
class Progress:
    """How far a training is, told now and then.

    Attributes:
        step: optimiser steps done.
        steps: in all.
        loss: mean since the last time.
        validation: the latest, if there was one since.
    """

    step: int
    steps: int
    loss: float
    validation: Validation | None = None


def reflect(
    data: Collected,
    folder: Path,
    training: Training | None = None,
    *,
    card: dict[str, Any] | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Path | None:
    """Train a noise model, or go on with a training that was stopped.

    Shao et al. 2025, arXiv 2503.09662, the Reflect phase: regression of the target from the
    conditional prediction. The paper's network has weights per step; this one is told the level.

    Args:
        data: what was collected.
        folder: gets `noise_model.safetensors` (the average with the lowest validation error so
            far), `curves.csv`, `curves.png` and the state to resume from.
        training: how; a resumed one must be trained as it began.
        card: what the file should say about itself besides.
        on_progress: told every 50 steps and at every validation.
        stopping: asked after every step; the state is saved when it says yes.

    Returns:
        The file; None if it was stopped before the end.

    Raises:
        InputError: the folder has a training of another kind, or the loss is no number any more;
            the last good weights are then in the folder.
    """
    training = training or Training()
    accelerator = accelerator_of(training.precision)
    folder.mkdir(parents=True, exist_ok=True)
    kept, held = data.split(training.validation)
    torch.manual_seed(training.seed)
    model = calibrated(CompactNoiseModel(sized(data, training.cost_ratio, training)), kept)
    model.host = data.host
    run = _Run(accelerator, model, kept, held, folder, training, card or {})
    run.resume()
    return run.go(on_progress, stopping)


class _Run:
    """One training in one process."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: CompactNoiseModel,
        kept: Collected,
        held: Collected,
        folder: Path,
        training: Training,
        card: dict[str, Any],
    ) -> None:
        self.accelerator, self.training, self.folder, self.card = (
            accelerator,
            training,
            folder,
            card,
        )
        self.kept, self.held = kept, held
        self.bare = model
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=training.lr,
            betas=(0.9, 0.99),
            weight_decay=training.weight_decay,
            fused=True,
        )
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        if training.compile:
            self.model = torch.compile(self.model)
        self.average = Average(model.state_dict())
        self.curves = Curves(folder, LOSSES, "error (1: nothing learned)")
        self.step, self.seconds, self.best = 0, 0.0, math.inf
        self._error = displacement(training.loss)

    # ---- around the steps

    def resume(self) -> None:
        """Take up the state in the folder, if there is one."""
        path = self.folder / _STATE
        if not path.is_file():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            then = json.loads(state["training"])
        except Exception as error:  # damaged bytes raise whatever the place they are in leads to
            raise InputError(
                f"{path} is damaged; take another folder: {type(error).__name__}"
            ) from error
        now = json.loads(self._described())
        names = [name for name in now if then.get(name) != now[name]]
        if names:
            raise InputError(
                f"{self.folder} has a training with other settings ({', '.join(names)}); "
                "take another folder, or the settings it began with"
            )
        self.bare.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        load_scaler(self.accelerator, state)
        self.average.load(state["average"])
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        self.curves.cut(self.step)

    def save(self) -> None:
        """Write the state, as a whole or not at all."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "training": self._described(),
            "model": {n: t.cpu() for n, t in self.bare.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            **scaler_state(self.accelerator),
            "average": self.average.weights,
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
        }
        temporary = self.folder / f".{_STATE}.tmp"
        torch.save(state, temporary)
        temporary.replace(self.folder / _STATE)

    def _described(self) -> str:
        data = {**dataclasses.asdict(self.training), "data": self.kept.about["decides"]}
        return json.dumps({**data, "samples": len(self.kept)}, sort_keys=True)

    # ---- the steps

    def go(
        self, on_progress: Callable[[Progress], None], stopping: Callable[[], bool]
    ) -> Path | None:
        """Train to the end, or until it is to stop."""
        training, losses = self.training, 0.0
        since, began, before = self.step, time.monotonic(), self.seconds
        batches = self._batches()
        if self.step == 0:
            self._validate()
        while self.step < training.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = training.lr_at(self.step)
            loss = self._gradients(next(batches).to(self.accelerator.device))
            losses += loss
            self._check(loss)
            self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.average.follow(training.ema_at(self.step))
            self.step += 1
            self.seconds = before + time.monotonic() - began
            last = self.step == training.steps
            found = None
            if last or self.step % training.validate_every == 0:
                found = self._validate()
            if last or found or self.step % 50 == 0:
                mean = losses / (self.step - since)
                self.curves.add(self.step, self.seconds, mean, found.errors if found else {})
                on_progress(Progress(self.step, training.steps, mean, found))
                losses, since = 0.0, self.step
            if last or found:
                self.save()
            if not last and stopping():
                self.save()
                return None
        if self.accelerator.is_main_process:
            self.curves.draw()
        return self.folder / "noise_model.safetensors"

    def _gradients(self, batch: Batch) -> float:
        """Add up the gradients of the parts of a batch; its loss."""
        total, parts = 0.0, self.training.accumulate
        for part in _parts(batch, parts):
            with self.accelerator.autocast():
                error = self._error(self.model, part)
            loss = error.square().mean() / parts
            self.accelerator.backward(loss)
            total += float(loss.detach())
        return total

    def _batches(self) -> Iterator[Batch]:
        """This process's batches from where the training is, pass after pass."""
        training, accelerator = self.training, self.accelerator
        count, rank = accelerator.num_processes, accelerator.process_index
        if training.batch % (count * training.accumulate):
            raise InputError(
                f"a batch of {training.batch} does not go into {count} processes and "
                f"{training.accumulate} parts"
            )
        epoch, left = 0, self.step
        while True:
            number = self.kept.batches_per_epoch(training.batch, seed=training.seed, epoch=epoch)
            if number == 0:
                raise InputError(
                    f"a batch of {training.batch} is more than a window of the data holds; "
                    "take a smaller --batch"
                )
            if left >= number:
                left -= number
                epoch += 1
                continue
            for batch in self.kept.batches(
                training.batch, seed=training.seed, epoch=epoch, skip=left
            ):
                yield _parts(batch, count)[rank]
            epoch, left = epoch + 1, 0

    def _validate(self) -> Validation:
        """The average's error on the prompts that were held back; the best one is kept."""
        with self.average.worn():
            found = validate(self.bare, self.held, device=self.accelerator.device)
            error = found.errors[self.training.loss]
            self._check(error)
            if error < self.best and self.accelerator.is_main_process:
                self.best = error
                self._keep(found)
        return found

    def _keep(self, found: Validation) -> None:
        about = {
            **self.card,
            "training": dataclasses.asdict(self.training),
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "samples": len(self.kept),
            "validation": found.to_json(),
            "cost_ratio": round(share_of(self.bare.sizes, self.kept), 4),
            "collect_seconds": round(self.kept.seconds, 1),
            "data": {
                name: self.kept.about[name]
                for name in ("model", "method", "settings", "prompts", "first_seed")
            },
        }
        save_noise_model(self.bare, self.folder / "noise_model.safetensors", card=about)

    def _check(self, loss: float) -> None:
        if math.isfinite(loss):
            return
        path = self.folder / "noise_model.safetensors"
        kept = f"the best so far is in {path}" if path.is_file() else "nothing was worth keeping"
        raise InputError(
            f"the training diverged at step {self.step} (loss {loss}); {kept}. Start it in another "
            "folder with a lower --lr, a longer --warmup, or --precision no"
        )


def _parts(batch: Batch, count: int) -> list[Batch]:
    """Equal parts of a batch."""
    if count == 1:
        return [batch]
    return [
        Batch(
            batch.c[rows],
            batch.target[rows],
            batch.given.map(lambda name, value, rows=rows: _of(name, value, rows)),  # type: ignore[misc]
            batch.step[rows],
        )
        for rows in torch.arange(len(batch.c)).chunk(count)
    ]


def _of(name: str, value: Tensor, rows: Tensor) -> Tensor:
    """The rows of a tensor; where the tokens are is the same for all."""
    return value if name == "positions" else value[rows]
