"""`tune`: adapt a network to what is new about it, with accelerate; resumable."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from w2sdiff.accelerator import accelerator_of, load_scaler, scaler_state
from w2sdiff.attention import save_adapter
from w2sdiff.average import Average
from w2sdiff.curves import Curves
from w2sdiff.errors import InputError
from w2sdiff.highres.changes import Parts, Setup
from w2sdiff.highres.data import Encoded, Source, encode
from w2sdiff.highres.objective import Levels, Objective
from w2sdiff.highres.optimisers import build_optimiser
from w2sdiff.highres.tuning import Progress, Tuning, load_state, save_state

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["tune"]

_HELD = 2**31 - 1  # the number of the step whose random numbers validation uses


def tune(
    setup: Setup,
    source: Source,
    folder: Path,
    tuning: Tuning | None = None,
    *,
    pipeline: bool = False,
    on_encoded: Callable[[int, int], None] = lambda _done, _total: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Path | None:
    """Adapt a network, or go on with a tuning that was stopped: bit for bit as if it never was.

    Chen et al. 2024, arXiv 2403.04692, section 3.3. The loss is the squared error of what the
    network predicts (noise, v or x0, as its scheduler says) at uniform noise levels; of a network
    that also predicts a variance, that half is left as it is, which diffusers does not read.

    Args:
        setup: which network, and what is new about it.
        source: pictures with captions, of the size the network is for.
        folder: gets `transformer/` (a stock folder with the averaged weights, and
            `kv_adapter.safetensors` in it; with `only_adapter` that file alone), `data/` (encoded
            pictures), `curves.csv`, `curves.png`, `steps/N/` for kept ones, and the state.
        tuning: how; a resumed one must be tuned as it began, but may be longer.
        pipeline: at the end also write `pipeline/`, the whole stock pipeline.
        on_encoded: told about the pictures while they are encoded.
        on_progress: told every 10 steps and at every validation.
        stopping: asked after every step; the state is saved when it says yes.

    Returns:
        `transformer/`, or the adapter's file; None if it was stopped before the end.

    Cost: per step, forward and backward on `batch` pictures.

    Raises:
        InputError: nothing to train, a folder with another tuning, or a loss that is no number.
        UnsupportedError: not a PixArt-class network, or a scheduler of another kind.

    Example:
        >>> import tempfile
        >>> from w2sdiff.attention import KVCompression
        >>> from w2sdiff.generate import find_model
        >>> from w2sdiff.highres import Rendered
        >>> setup = Setup(find_model("shapes-dit"), compression=KVCompression("conv", 2))
        >>> tuning = Tuning(steps=1, batch=2, only_adapter=True)
        >>> with tempfile.TemporaryDirectory() as out:
        ...     file = tune(setup, Rendered(4, 64), Path(out), tuning)
        >>> file.name
        'kv_adapter.safetensors'
    """
    tuning = tuning or Tuning()
    if tuning.only_adapter and setup.compression is None:
        raise InputError("only_adapter trains compressors, and nothing is compressed.")
    accelerator = accelerator_of(tuning.precision)
    folder.mkdir(parents=True, exist_ok=True)
    parts = setup.build()
    decides = {"setup": setup.to_json(), "data": source.to_json()}
    with accelerator.main_process_first():
        data = encode(
            source,
            parts.pipe,
            folder / "data",
            {name: decides["setup"][name] for name in ("model", "vae")},
            device=accelerator.device,
            on_progress=on_encoded,
        )
    for name in ("vae", "text_encoder"):  # not needed any more
        getattr(parts.pipe, name).to("cpu")
    run = _Run(accelerator, setup, parts, data, folder, tuning, decides)
    run.resume()
    done = run.go(on_progress, stopping)
    if done is not None and pipeline and accelerator.is_main_process:
        run.write_pipeline()
    return done


class _Run:
    """One tuning in one process."""

    def __init__(
        self,
        accelerator: Accelerator,
        setup: Setup,
        parts: Parts,
        data: Encoded,
        folder: Path,
        tuning: Tuning,
        decides: dict[str, Any],
    ) -> None:
        self.accelerator, self.tuning, self.folder = accelerator, tuning, folder
        self.parts, self.data, self.decides = parts, data, decides
        self.bare = parts.transformer.train()
        if tuning.checkpointing:
            self.bare.enable_gradient_checkpointing()
        self.trained = _trained(parts, tuning)
        optimiser = build_optimiser(
            tuning.optimiser,
            self.trained.values(),
            lr=tuning.lr,
            weight_decay=tuning.weight_decay,
        )
        self.network, self.optimiser = accelerator.prepare(self.bare, optimiser)
        self.average = Average(self.trained)
        self.objective = Objective(
            accelerator,
            data,
            Levels(parts.pipe.scheduler, accelerator.device),
            drop_caption=tuning.drop_caption,
            teacher=_teacher(setup).to(accelerator.device) if tuning.teacher else None,
        )
        held = max(1, round(tuning.validation * len(data)))
        if len(data) - held < 1:
            raise InputError(f"{len(data)} pictures are too few: one is held back to validate.")
        self.kept = len(data) - held  # the first ones are trained on
        self.curves = Curves(folder, ["validation"], "squared error of the prediction")
        self.step, self.seconds = 0, 0.0

    # ---- around the steps

    def resume(self) -> None:
        """Take up the state in the folder, if there is one."""
        state = load_state(self.folder, self.tuning, self.decides)
        if state is None:
            return
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state["weights"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        load_scaler(self.accelerator, state)
        self.average.load(state["average"])
        self.step, self.seconds = state["step"], state["seconds"]
        if self.accelerator.is_main_process:
            self.curves.cut(self.step)

    def save(self) -> None:
        """Keep the state, so that it can go on from here."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "weights": {name: p.detach().cpu() for name, p in self.trained.items()},
            "optimiser": self.optimiser.state_dict(),
            **scaler_state(self.accelerator),
            "average": self.average.weights,
            "step": self.step,
            "seconds": self.seconds,
        }
        save_state(self.folder, self.tuning, self.decides, state)

    # ---- the steps

    def go(
        self, on_progress: Callable[[Progress], None], stopping: Callable[[], bool]
    ) -> Path | None:
        """Train to the end, or until it is to stop."""
        tuning, losses = self.tuning, 0.0
        since, began, before = self.step, time.monotonic(), self.seconds
        if self.step == 0:
            self._tell(on_progress, None, self._validate())
        while self.step < tuning.steps:
            for group in self.optimiser.param_groups:
                group["lr"] = tuning.lr_at(self.step)
            loss = self._gradients()
            self._check(loss)
            losses += loss
            self.accelerator.clip_grad_norm_(self.trained.values(), 1.0)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            self.average.follow(tuning.ema_at(self.step))
            self.step += 1
            self.seconds = before + time.monotonic() - began
            last = self.step == tuning.steps
            found = None
            if last or self.step % tuning.validate_every == 0:
                found = self._validate()
            if last or found is not None or self.step % 10 == 0:
                self._tell(on_progress, losses / (self.step - since), found)
                losses, since = 0.0, self.step
            if self.step in tuning.keep and not last:
                self._write(self.folder / "steps" / str(self.step))
            if last or found is not None:
                self.save()
            if not last and stopping():
                self.save()
                return None
        if self.accelerator.is_main_process:
            self.curves.draw()
        return self._write(self.folder)

    def _tell(
        self, on_progress: Callable[[Progress], None], loss: float | None, error: float | None
    ) -> None:
        if self.accelerator.is_main_process:
            self.curves.add(
                self.step, self.seconds, loss, {} if error is None else {"validation": error}
            )
        on_progress(Progress(self.step, self.tuning.steps, loss, error))

    def _gradients(self) -> float:
        """Add up the gradients of this process's part of a batch; the mean loss of all."""
        tuning, accelerator = self.tuning, self.accelerator
        count = accelerator.num_processes * tuning.accumulate
        if tuning.batch % count:
            raise InputError(f"a batch of {tuning.batch} does not go into {count} parts")
        # A function of seed and step, so that going on after a stop is exact.
        generator = torch.Generator().manual_seed((tuning.seed << 32) + self.step)
        items = torch.randint(self.kept, (tuning.batch,), generator=generator)
        draw = self.objective.draw(items, generator)
        every = torch.arange(tuning.batch).chunk(count)
        rows = every[accelerator.process_index :: accelerator.num_processes]
        total = 0.0
        for part in rows:
            loss = self.objective.error(self.network, draw.part(part)) / len(rows)
            accelerator.backward(loss)
            total += float(loss.detach())
        mean: Tensor = accelerator.reduce(torch.tensor(total, device=accelerator.device), "mean")
        return float(mean)

    # ---- the average

    def _validate(self) -> float:
        """The average's error on the pictures held back, at the same noise every time."""
        items = torch.arange(self.kept, len(self.data))
        generator = torch.Generator().manual_seed((self.tuning.seed << 32) + _HELD)
        draw, errors = self.objective.draw(items, generator), []
        with self.average.worn(), torch.no_grad():
            for part in torch.arange(len(items)).chunk(-(-len(items) // self.tuning.batch)):
                error = self.objective.error(self.network, draw.part(part))
                errors.append(float(error) * len(part))
        found = sum(errors) / len(items)
        self._check(found)
        return found

    def _write(self, folder: Path) -> Path:
        """The averaged weights as stock folders."""
        patch, place = self.parts.patch, folder / "transformer"
        with self.average.worn():
            if not self.accelerator.is_main_process:
                return place
            if self.tuning.only_adapter:
                assert patch is not None
                return save_adapter(patch, folder)
            with self._stock():  # what is saved is a stock network, and its adapter beside it
                self.bare.save_pretrained(place, safe_serialization=True)
            if patch is not None:
                save_adapter(patch, place)
            return place

    def write_pipeline(self) -> Path:
        """The whole stock pipeline around the averaged weights."""
        patch, place = self.parts.patch, self.folder / "pipeline"
        with self.average.worn():
            with self._stock():
                self.parts.pipe.save_pretrained(place, safe_serialization=True)
            if patch is not None:
                save_adapter(patch, place / "transformer")
        return place

    @contextmanager
    def _stock(self) -> Iterator[None]:
        """The network without compressors."""
        patch = self.parts.patch
        if patch is not None:
            patch.disable()
        try:
            yield
        finally:
            if patch is not None:
                patch.enable()

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise InputError(
                f"the tuning diverged at step {self.step} (loss {loss}). Start it in another "
                "folder with a lower --lr, a longer --warmup, or --precision no"
            )


def _teacher(setup: Setup) -> Any:
    """The network as it was before the change, at its own positions."""
    plain = dataclasses.replace(setup, size=None, compression=None, adapter=None)
    return plain.build().transformer.eval().requires_grad_(False)


def _trained(parts: Parts, tuning: Tuning) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name; the others are frozen."""
    network = parts.transformer
    if tuning.only_adapter:
        assert parts.patch is not None
        network.requires_grad_(False)
        for compressor in parts.patch.compressors.values():
            compressor.requires_grad_(True)
    found = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if not found:
        kind = parts.patch.compression.kind if parts.patch else "none"
        raise InputError(f"Compressors of the kind {kind} have nothing to train; take conv.")
    return found
