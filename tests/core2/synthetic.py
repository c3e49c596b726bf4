"""Folders of collected data whose content is known: written by the ledger, as `collect` does."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2sdiff.core2.collect import MANIFEST
from w2sdiff.core2.noise_model import Given, Host
from w2sdiff.core2.record import Take
from w2sdiff.core2.shard import shard_bytes
from w2sdiff.generate import Shot
from w2sdiff.jobs import Done, Item, Ledger, Task, run_local

SHAPE = (4, 6, 6)
Target = Callable[[Tensor, Given, int], Tensor]


def mixed(c: Tensor, given: Given, _step: int) -> Tensor:
    """A guidance that can be learned exactly: channels of x exchanged, by a size per level."""
    return c + (0.2 + 0.3 * float(given.sigma)) * given.x.roll(1, 1 if c.ndim > 3 else -1)


def prompts(count: int) -> list[str]:
    """Texts that are all different."""
    return [f"prompt number {i}" for i in range(count)]


def write(
    folder: Path,
    *,
    texts: Sequence[str] | None = None,
    steps: int = 3,
    shard: int = 4,
    target: Target = mixed,
    shape: tuple[int, ...] = SHAPE,
    prediction: str = "flow",
    lengths: Sequence[int] = (5,),
    masked: bool = True,
    flops: float | None = 5e7,
    seed: int = 0,
    stop_after: int | None = None,
    **host: Any,
) -> Path:
    """Write a folder; x of prompt p at step s is filled with (p, s) in its first two values.

    Args:
        lengths: of the texts, shard by shard, over and over.
        stop_after: shards that are made; the rest is left.
    """
    texts = prompts(12) if texts is None else list(texts)
    folder.mkdir(parents=True, exist_ok=True)
    channels = shape[-1] if len(shape) == 2 else shape[0]
    about = Host("made", "0" * 64, "Net", {}, channels, prediction, 3.0, flops)
    about = Host(**{**vars(about), **host})
    tasks = [Task((Item({"n": n}),)) for n in range(-(-len(texts) // shard))]

    def work(task: Task) -> list[Done]:
        n = task.items[0].spec["n"]
        some = texts[n * shard : (n + 1) * shard]
        generator = torch.Generator().manual_seed(1000 * seed + n)
        length = lengths[n % len(lengths)]
        text = torch.randn(len(some), length, 8, generator=generator)
        mask = torch.ones(len(some), length, dtype=torch.long)
        takes = []
        for step in range(steps):
            sigma = 1 - (step + 0.5) / steps
            x, c = torch.randn(2, len(some), *shape, generator=generator).unbind()
            flat = x.flatten(1)
            flat[:, 0] = torch.arange(len(some)) + n * shard
            flat[:, 1] = step
            given = Given(
                x,
                1 - sigma,
                sigma,
                text,
                mask if masked else None,
                step=step,
                num_steps=steps,
            )
            takes.append(Take(c, target(c, given, step), given, prediction, 3.0))
        shots = [Shot(text, n * shard + i) for i, text in enumerate(some)]
        data, facts = shard_bytes(takes, shots, range(len(some)), about)
        return [Done({f"{n:04d}.safetensors": data}, facts)]

    (folder / MANIFEST).write_text(
        json.dumps(
            {
                "schema": 1,
                "decides": {"made": seed},
                "model": "made",
                "method": {"method": "plain"},
                "settings": {},
                "prompts": len(texts),
                "first_seed": 0,
                "shard": shard,
                "items": [task.items[0].key for task in tasks],
            }
        ),
        encoding="utf-8",
    )
    with Ledger(folder) as ledger:
        run_local(ledger, tasks[:stop_after], work)
    return folder
