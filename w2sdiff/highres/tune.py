"""`tune`: adapt a network to what is new about it, with accelerate; resumable."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from w2sdiff.accelerator import accelerator_of, load_scaler, scaler_state
from w2sdiff.attention import save_adapter
from w2sdiff.curves import Curves
from w2sdiff.errors import InputError, UnsupportedError
from w2sdiff.highres.changes import Parts, Setup
from w2sdiff.highres.data import Batch, Encoded, Source, encode
from w2sdiff.highres.optimisers import build_optimiser, check_optimiser

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Progress", "Tuning", "tune"]

_STATE = "state.pt"
_HELD = 2**31 - 1  # the number of the step whose random numbers validation uses


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


class _Levels:
    """Noise levels and targets, as the pipeline's scheduler defines them."""

    def __init__(self, scheduler: Any, device: torch.device) -> None:
        kind = scheduler.config.get("prediction_type")
        if not hasattr(scheduler, "alphas_cumprod") or kind not in _TARGETS:
            raise UnsupportedError(
                f"{type(scheduler).__name__} with prediction_type {kind!r}: the recipe needs a "
                f"scheduler of noise levels that predicts {', '.join(_TARGETS)}."
            )
        squared = scheduler.alphas_cumprod.double()
        self.alpha = squared.sqrt().float().to(device)
        self.sigma = (1 - squared).sqrt().float().to(device)
        self._target = _TARGETS[kind]

    def __len__(self) -> int:
        return len(self.alpha)

    def noised(self, x0: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha x0 + sigma noise, what is to be predicted of it)."""
        alpha, sigma = (table[times][:, None, None, None] for table in (self.alpha, self.sigma))
        return alpha * x0 + sigma * noise, self._target(alpha, sigma, x0, noise)


_TARGETS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda _alpha, _sigma, _x0, noise: noise,
    "v_prediction": lambda alpha, sigma, x0, noise: alpha * noise - sigma * x0,
    "sample": lambda _alpha, _sigma, x0, _noise: x0,
}


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
        self.teacher = _teacher(setup).to(accelerator.device) if tuning.teacher else None
        self.trained = _trained(parts, tuning)
        optimiser = build_optimiser(
            tuning.optimiser,
            self.trained.values(),
            lr=tuning.lr,
            weight_decay=tuning.weight_decay,
        )
        self.network, self.optimiser = accelerator.prepare(self.bare, optimiser)
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        self.levels = _Levels(parts.pipe.scheduler, accelerator.device)
        held = max(1, round(tuning.validation * len(data)))
        if len(data) - held < 1:
            raise InputError(f"{len(data)} pictures are too few: one is held back to validate.")
        self.kept = len(data) - held  # the first ones are trained on
        self.curves = Curves(folder, ["validation"], "squared error of the prediction")
        self.step, self.seconds = 0, 0.0

    # ---- around the steps

    def resume(self) -> None:
        """Take up the state in the folder, if there is one."""
        path = self.folder / _STATE
        if not path.is_file():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            then = json.loads(state["decides"])
        except Exception as error:  # damaged bytes raise whatever the place they are in leads to
            raise InputError(
                f"{path} is damaged; take another folder: {type(error).__name__}"
            ) from error
        now = json.loads(self._described())
        names = [name for name in now if then.get(name) != now[name]]
        if names:
            raise InputError(
                f"{self.folder} has a tuning with another {', '.join(names)}; take another folder, "
                "or what it began with"
            )
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state["weights"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        load_scaler(self.accelerator, state)
        device = self.accelerator.device
        self.average = {name: t.to(device) for name, t in state["average"].items()}
        self.step, self.seconds = state["step"], state["seconds"]
        if self.accelerator.is_main_process:
            self.curves.cut(self.step)

    def save(self) -> None:
        """Write the state, as a whole or not at all."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "decides": self._described(),
            "weights": {name: p.detach().cpu() for name, p in self.trained.items()},
            "optimiser": self.optimiser.state_dict(),
            **scaler_state(self.accelerator),
            "average": self.average,
            "step": self.step,
            "seconds": self.seconds,
        }
        temporary = self.folder / f".{_STATE}.tmp"
        torch.save(state, temporary)
        temporary.replace(self.folder / _STATE)

    def _described(self) -> str:
        tuning = dataclasses.asdict(self.tuning)
        for name in ("steps", "keep", "validate_every", "checkpointing"):  # decide no weight
            del tuning[name]
        return json.dumps({**tuning, **self.decides}, sort_keys=True)

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
            self._follow()
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
        drawn = self._drawn(items, generator)
        every = torch.arange(tuning.batch).chunk(count)
        rows = every[accelerator.process_index :: accelerator.num_processes]
        total = 0.0
        for part in rows:
            loss = self._error(items[part], *(values[part] for values in drawn)) / len(rows)
            accelerator.backward(loss)
            total += float(loss.detach())
        mean: Tensor = accelerator.reduce(torch.tensor(total, device=accelerator.device), "mean")
        return float(mean)

    def _drawn(self, items: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Which captions are dropped, noise levels, and noise."""
        count, shape = len(items), self._shape()
        dropped = torch.rand(count, generator=generator) < self.tuning.drop_caption
        times = torch.randint(len(self.levels), (count,), generator=generator)
        return dropped, times, torch.randn(count, *shape, generator=generator)

    def _shape(self) -> Sequence[int]:
        return self.data.batch([0], [True]).latents.shape[1:]

    def _error(self, items: Tensor, dropped: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the network's prediction."""
        device = self.accelerator.device
        batch = self.data.batch(items.tolist(), dropped.tolist())
        batch = Batch(batch.latents.to(device), batch.states.to(device), batch.mask.to(device))
        times = times.to(device)
        x, target = self.levels.noised(batch.latents, noise.to(device), times)
        if self.teacher is not None:
            with torch.no_grad(), self.accelerator.autocast():
                target = _predicted(self.teacher, x, times, batch).float()
        with self.accelerator.autocast():
            predicted = _predicted(self.network, x, times, batch)
        return (predicted.float() - target).square().mean()

    def _follow(self) -> None:
        """Let the average follow the weights."""
        decay = self.tuning.ema_at(self.step)
        with torch.no_grad():
            for name, parameter in self.trained.items():
                self.average[name].lerp_(parameter.detach().to(self.average[name]), 1 - decay)

    # ---- the average

    def _validate(self) -> float:
        """The average's error on the pictures held back, at the same noise every time."""
        items = torch.arange(self.kept, len(self.data))
        generator = torch.Generator().manual_seed((self.tuning.seed << 32) + _HELD)
        drawn = self._drawn(items, generator)
        errors = []
        own = self._swap(self.average)
        try:
            with torch.no_grad():
                for part in torch.arange(len(items)).chunk(-(-len(items) // self.tuning.batch)):
                    error = self._error(items[part], *(values[part] for values in drawn))
                    errors.append(float(error) * len(part))
        finally:
            self._swap(own)
        found = sum(errors) / len(items)
        self._check(found)
        return found

    def _swap(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put weights into the network; those that were there."""
        own = {name: p.detach().clone() for name, p in self.trained.items()}
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(weights[name])
        return own

    def _write(self, folder: Path) -> Path:
        """The averaged weights as stock folders."""
        patch, own = self.parts.patch, self._swap(self.average)
        place = folder / "transformer"
        try:
            if not self.accelerator.is_main_process:
                return place
            if self.tuning.only_adapter:
                assert patch is not None
                return save_adapter(patch, folder)
            if patch is not None:
                patch.disable()  # what is saved is a stock network, and its adapter beside it
            try:
                self.bare.save_pretrained(place, safe_serialization=True)
            finally:
                if patch is not None:
                    patch.enable()
            if patch is not None:
                save_adapter(patch, place)
            return place
        finally:
            self._swap(own)

    def write_pipeline(self) -> Path:
        """The whole stock pipeline around the averaged weights."""
        patch, place, own = self.parts.patch, self.folder / "pipeline", self._swap(self.average)
        try:
            if patch is not None:
                patch.disable()
            self.parts.pipe.save_pretrained(place, safe_serialization=True)
            if patch is not None:
                save_adapter(patch, place / "transformer")
                patch.enable()
        finally:
            self._swap(own)
        return place

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


def _predicted(network: Any, x: Tensor, times: Tensor, batch: Batch) -> Tensor:
    """The prediction [B, c, h, w]; a predicted variance, the second half, is left out."""
    bare = getattr(network, "module", network)
    added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if bare.use_additional_conditions:
        pixels = torch.tensor([8.0 * x.shape[-2], 8.0 * x.shape[-1]], device=x.device)
        added["resolution"] = pixels.repeat(len(x), 1)
        added["aspect_ratio"] = (pixels[:1] / pixels[1:]).repeat(len(x), 1)
    output: Tensor = network(
        x,
        encoder_hidden_states=batch.states,
        timestep=times,
        encoder_attention_mask=batch.mask,
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
    return output[:, : x.shape[1]]
