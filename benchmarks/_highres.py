"""What the high-resolution benchmarks share: trainings, errors of predictions, memory, results.

The trainings take shapes-dit to 128 pixels and compress it, at 64 and at 128. Each is one command
of the package; `train` runs those that are missing.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from w2sdiff.highres import Rendered
from w2sdiff.highres.data import Batch, Encoded, encode

SMALL, LARGE = 64, 128
PICTURES = 8000  # of the renderer, seed 0; the last 160 are held back
OTHERS = 1001  # seed of the pictures on which errors are measured: none of them was trained on
TIMES = tuple(range(50, 1000, 100))


@dataclass(frozen=True)
class Training:
    """One `w2sdiff kv tune`.

    Attributes:
        size: pixels per side.
        start: name of the training whose network it starts from; empty: shapes-dit itself.
        compress: what `--kv-compress` is given; empty: nothing is compressed.
        steps: optimiser steps.
        keep: steps at which what is there is kept as well.
        only_adapter: the network stays as it is.
    """

    size: int
    start: str
    compress: str
    steps: int = 200
    keep: tuple[int, ...] = ()
    only_adapter: bool = False

    def options(self, folder: Path, name: str) -> list[str]:
        """Everything after `w2sdiff kv tune`."""
        words = ["--size", str(self.size)] if self.size != SMALL else []
        if self.start:
            words += ["--transformer", str(folder / self.start / "transformer")]
        if self.compress:
            words += ["--kv-compress", self.compress]
        # Few compressors, and nothing else to spoil: they bear a higher learning rate.
        words += ["--only-adapter", "--lr", "3e-3"] if self.only_adapter else ["--lr", "2e-4"]
        words += ["--render", str(PICTURES), "--steps", str(self.steps), "--batch", "16"]
        words += ["--warmup", "100"]
        for step in self.keep:
            words += ["--keep", str(step)]
        return [*words, "--out", str(folder / name)]


# In the order of their worth, each after what it starts from.
TRAININGS = {
    "tuned": Training(LARGE, "", "", 2000, (500,)),
    "conv64": Training(SMALL, "", "2:conv:deep", 500),
    "control64": Training(SMALL, "", "", 500),  # what as many steps do without compression
    "adapter64": Training(SMALL, "", "2:conv:deep", 2000, (500,), only_adapter=True),
    "adapter64-4": Training(SMALL, "", "4:conv:deep", 500, only_adapter=True),
    "adapter64-all": Training(SMALL, "", "4:conv:all", 500, only_adapter=True),
    "conv64-4": Training(SMALL, "", "4:conv:deep", 500),
    "conv": Training(LARGE, "tuned", "2:conv:deep", 2000, (100, 200, 500)),
    "control": Training(LARGE, "tuned", "", 2000, (100, 200, 500)),
    "shallow": Training(LARGE, "tuned", "2:conv:shallow"),
    "middle": Training(LARGE, "tuned", "2:conv:middle"),
    "average": Training(LARGE, "tuned", "2:average:deep"),
    "uniform": Training(LARGE, "tuned", "2:uniform:deep"),
    "adapter": Training(LARGE, "tuned", "2:conv:deep", only_adapter=True),
    "conv-4": Training(LARGE, "tuned", "4:conv:deep"),
    "conv-4-all": Training(LARGE, "tuned", "4:conv:all"),
    "adapter-4-all": Training(LARGE, "tuned", "4:conv:all", only_adapter=True),
}


def train(folder: Path, names: list[str]) -> None:
    """Run the trainings that are not there yet; a stopped one goes on where it was."""
    for name in names:
        training = TRAININGS[name]
        data = folder / name / "data"
        twin = next(
            (
                folder / other / "data"
                for other, its in TRAININGS.items()
                if its.size == training.size and (folder / other / "data").is_dir()
            ),
            None,
        )
        if twin is not None and not data.is_dir():  # the same pictures, encoded once
            shutil.copytree(twin, data)
        words = ["w2sdiff", "kv", "tune", *training.options(folder, name)]
        print(shlex.join(words), flush=True)
        subprocess.run([sys.executable, "-m", *words], check=True)


def trained(folder: Path, name: str, step: int | None = None) -> Path | None:
    """Where the network of a training lies, or its adapter; None: it has not come so far."""
    inner = folder / name if step is None else folder / name / "steps" / str(step)
    curves = folder / name / "curves.csv"
    if step is None and curves.is_file():  # a training that was longer once is as good
        last = curves.read_text().splitlines()[-1].partition(",")[0]
        if int(last) < TRAININGS[name].steps:
            return None
    for place in (inner / "transformer", inner / "kv_adapter.safetensors"):
        if place.exists():
            return place
    return None


def commands(folder: Path) -> str:
    """All trainings as a user would type them."""
    return "\n".join(
        shlex.join(["w2sdiff", "kv", "tune", *training.options(folder, name)])
        for name, training in TRAININGS.items()
    )


def is_known(file: Path, key: dict) -> bool:
    """Whether a file holds what was found for this key."""
    known = json.loads(file.read_text())["key"] if file.is_file() else None
    return bool(known == json.loads(json.dumps(key)))


def remembered(file: Path, key: dict, make: Callable[[], dict]) -> dict:
    """What was found before for the same key; otherwise it is made, and kept in the file."""
    if is_known(file, key):
        return dict(json.loads(file.read_text()))
    found = {**make(), "key": key}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found))
    return found


def added(new: dict, old: dict, order: Iterable[str], figures: tuple[str, ...]) -> dict:
    """What a result file has, with new entries added and those measured again replaced.

    Entries that both have must agree in `figures`: where they do not, the networks are not the same
    bits, and the file's other entries have no place beside the new ones.
    """
    new = json.loads(json.dumps(new))  # as the file would give it back
    others = [
        name
        for name in new.keys() & old.keys()
        if any(new[name][f] != old[name][f] for f in figures if f in new[name] and f in old[name])
    ]
    if others:
        raise SystemExit(
            f"Measured again, {', '.join(sorted(others))} came out otherwise than in the file: "
            "other networks. Measure everything, without --add."
        )
    both = {**old, **new}
    return {name: both[name] for name in order if name in both}


def peak_mb(call: Callable[[], Any]) -> float:
    """Most memory that torch's allocator on the CPU held during a call beyond what it held before.

    In MB of 10^6 bytes, from the profiler's record of every allocation and release, scratch memory
    of the kernels included. Unlike the resident size of the process it is the same every time.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    held = [
        (event["ts"], event["args"]["Total Allocated"], event["args"]["Bytes"])
        for event in events
        if event["name"] == "[memory]"
    ]
    _, total, own = min(held)
    return round((max(total for _, total, _ in held) - (total - own)) / 1e6, 2)


def others(pipe: Any, size: int, count: int, folder: Path) -> Batch:
    """Encoded pictures that nothing was trained on."""
    source = Rendered(count, size, seed=OTHERS)
    data: Encoded = encode(source, pipe, folder / f"others{size}", {"size": size})
    return data.batch(range(count), [False] * count)


def noised(pipe: Any, latents: Tensor, time: int) -> tuple[Tensor, Tensor]:
    """(latents at a noise level, the v that is to be predicted); the noise is always the same."""
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(time))
    squared = float(pipe.scheduler.alphas_cumprod[time])
    alpha, sigma = squared**0.5, (1 - squared) ** 0.5
    return alpha * latents + sigma * noise, alpha * noise - sigma * latents


@torch.no_grad()
def predicted(network: Any, x: Tensor, time: int, batch: Batch, chunk: int = 32) -> Tensor:
    """The network's prediction for every item."""
    parts = [
        network(
            x[start : start + chunk],
            encoder_hidden_states=batch.states[start : start + chunk],
            timestep=torch.full((len(x[start : start + chunk]),), time),
            encoder_attention_mask=batch.mask[start : start + chunk],
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        for start in range(0, len(x), chunk)
    ]
    return torch.cat(parts)[:, : x.shape[1]]


def errors(pipe: Any, batch: Batch) -> np.ndarray:
    """Mean squared error of the prediction, [pictures, noise levels]."""
    columns = []
    for time in TIMES:
        x, target = noised(pipe, batch.latents, time)
        difference = predicted(pipe.transformer.eval(), x, time, batch) - target
        columns.append(difference.flatten(1).square().mean(1))
    return torch.stack(columns, 1).numpy()
