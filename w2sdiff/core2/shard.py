"""One file of collected steps: several prompts, each with the same steps of its run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from w2sdiff.core2.noise_model import Host

if TYPE_CHECKING:
    from w2sdiff.core2.record import Take
    from w2sdiff.generate import Shot

__all__ = ["PER_PROMPT", "PER_STEP", "shard_bytes"]

PER_STEP = ("c", "target", "x")  # [P, S, C, ...]
PER_PROMPT = ("text", "mask", "negative", "pooled", "negative_pooled")  # [P, ...]


def shard_bytes(
    takes: Sequence[Take], shots: Sequence[Shot], kept: Sequence[int], host: Host
) -> tuple[bytes, dict[str, Any]]:
    """A safetensors file, and the facts of its record.

    Args:
        takes: the recorded steps of the batch.
        shots: its prompts.
        kept: which of them are stored.
        host: the network.
    """
    from safetensors.torch import save

    rows = torch.tensor(list(kept), dtype=torch.long)
    given = takes[0].given
    stacks = {
        "c": [take.c for take in takes],
        "target": [take.target for take in takes],
        "x": [take.given.x for take in takes],
    }
    tensors = {name: torch.stack([_half(t, rows) for t in s], 1) for name, s in stacks.items()}
    for name in PER_PROMPT:
        value = getattr(given, name)
        if value is not None:
            # The negative prompt is mostly one for all: stored once, and spread again on reading.
            alike = name.startswith("negative") and bool((value == value[:1]).all())
            tensors[name] = _half(value, rows[:1] * 0 if alike else rows)
    if given.mask is not None:
        longest = max(1, int(given.mask.sum(1).max()))  # what is padding in all of them
        for name in ("text", "mask"):
            tensors[name] = tensors[name][:, :longest]
    if given.positions is not None:
        tensors["positions"] = given.positions.detach().cpu().float()
    for name in ("alpha", "sigma", "step"):
        values = [getattr(take.given, name) for take in takes]
        tensors[name] = torch.tensor(values, dtype=torch.float64)
    about = {
        "host": asdict(host),
        "shots": [shots[i].to_json() for i in kept],
        "num_steps": given.num_steps,
    }
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    data = save(tensors, metadata={"w2sdiff": json.dumps(about, sort_keys=True)})
    facts = {"prompts": len(kept), "left_out": len(shots) - len(kept), "steps": len(takes)}
    return data, facts


def _half(tensor: Tensor, rows: Tensor) -> Tensor:
    """Some rows in float16 (masks keep their kind), on the CPU."""
    chosen = tensor.detach()[rows.to(tensor.device)].cpu()
    if not chosen.is_floating_point():
        return chosen
    half = chosen.half()
    if not half.isfinite().all():  # the shard fails and says so; the others go on
        raise ValueError(
            "the numbers overflowed, or do not fit float16, in which they are stored; "
            "try dtype float32"
        )
    return half
