"""What is measured of a variant: calls counted outside of the driver, and the driver against it.

`tests/families` and `benchmarks/families.py` go over the table with these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from w2sdiff.drivers import attach
from w2sdiff.drivers.attach import DENOISERS
from w2sdiff.edits import Guidance
from w2sdiff.methods import W2SD
from w2sdiff.testing import replay
from w2sdiff.testing.variants import Variant

__all__ = ["Counted", "counting", "oracle_difference", "together"]


@dataclass
class Counted:
    """What happened in a pipeline, seen from its networks and its scheduler.

    Attributes:
        calls: of any denoiser.
        items: in their batches; for one picture, these are the single-branch evaluations.
        steps: of the scheduler.
    """

    calls: int = 0
    items: int = 0
    steps: int = 0


@contextmanager
def counting(pipe: Any) -> Iterator[Counted]:
    """Count by hooks on the denoisers and a wrapped `scheduler.step`."""
    counted = Counted()
    scheduler, step = pipe.scheduler, pipe.scheduler.step

    def called(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        sample = args[0] if args else next(kwargs[n] for n in _SAMPLES if n in kwargs)
        counted.calls += 1
        counted.items += len(sample)

    @wraps(step)  # pipelines ask for its signature
    def stepped(*args: Any, **kwargs: Any) -> Any:
        counted.steps += 1
        return step(*args, **kwargs)

    found = (getattr(pipe, name, None) for name in DENOISERS)
    networks = [network for network in found if network is not None]
    hooks = [network.register_forward_pre_hook(called, with_kwargs=True) for network in networks]
    scheduler.step = stepped
    try:
        yield counted
    finally:
        del scheduler.step
        for hook in hooks:
            hook.remove()


_SAMPLES = ("sample", "hidden_states", "x")


def together(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of one call for the items of two, made of the arguments of a call for each.

    What is the same object in both holds for both items.
    """
    assert one.keys() == other.keys()
    return {name: _together(name, one[name], other[name]) for name in one}


def _together(name: str, a: Any, b: Any) -> Any:
    if torch.is_tensor(a) and a is not b:
        return torch.cat([a, b])
    if isinstance(a, torch.Generator) or name in ("prompt", "negative_prompt"):
        return [a, b]
    if name == "class_labels":
        return [*a, *b]
    assert a is b or a == b, f"{name} holds for both"
    return a


def oracle_difference(
    variant: Variant, pipe: Any, *, steps: int = 4, weak: float = 1.5
) -> float | None:
    """How far W2SD with a guidance pair is from `replay`: the largest difference of the latents.

    In units of the largest latents on the way, to which rounding is proportional: random networks
    blow them up, and Karras-type schedulers start at 15 times the noise.

    Args:
        variant: a row of the table.
        pipe: its pipeline.
        steps: of the call.
        weak: guidance scale of the weak role.

    Returns:
        None where the replay has no facts about the variant.
    """
    if variant.name not in replay.FAMILIES:
        return None
    with attach(pipe, W2SD(weak=Guidance(weak))):
        driven = variant.latents(pipe, steps=steps)
    role = replay.Role(guidance=weak)
    expected: Tensor = replay.replay(pipe, variant.name, variant.call(steps=steps), weak=role)
    start = float(getattr(pipe.scheduler, "init_noise_sigma", 1.0))
    size = max(1.0, float(expected.abs().max()), start)
    assert torch.isfinite(driven).all()
    return float((driven - expected).abs().max()) / size
