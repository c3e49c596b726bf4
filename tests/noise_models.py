"""Noise models to test with: a formula, and one that returns the guided prediction exactly."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tiny
import torch
from torch import Tensor

from w2sdiff.core2 import Given, NoiseModel, save_noise_model

GUIDED = ("sd", "sdxl", "sd3", "flux-true-cfg", "pixart")
TWO_CALLS = ("flux-true-cfg",)
_SAMPLE = {"sd": "sample", "sdxl": "sample"}
_SCALE = {"flux-true-cfg": "true_cfg_scale"}


class Scaled(NoiseModel):
    """g(c) = share c, and what it was given."""

    def __init__(self, share: float = 0.9) -> None:
        super().__init__()
        self.share = share
        self.seen: list[Given] = []

    def forward(self, c: Tensor, given: Given) -> Tensor:
        self.seen.append(given)
        return self.share * c


class Exact(NoiseModel):
    """The guided prediction itself.

    The unconditional half is evaluated here, by the network's own `forward` (which no driver sees),
    with the inputs that the stock pipeline gave it at that step in a run before: so this model
    knows what no noise model is given, and is right at whatever latents it is asked.
    """

    def __init__(self, pipe: Any, family: str, **call: Any) -> None:
        super().__init__()
        self._network = [tiny.denoiser(pipe, family)]  # in a list: it is no part of this module
        arguments = tiny.call_kwargs(family, **call)
        self._scale = arguments[_SCALE.get(family, "guidance_scale")]
        self._rescale = arguments.get("guidance_rescale", 0.0)
        self._sample = _SAMPLE.get(family, "hidden_states")
        self._steps = self._listen(pipe, family, call)
        self.calls = 0

    def forward(self, c: Tensor, given: Given) -> Tensor:
        self.calls += 1
        arguments = {**self._steps[given.step], self._sample: given.x}
        u = self._network[0].forward(**arguments)[0]
        u = u if u.ndim < 4 else u[:, : c.shape[1]]
        guided = u + self._scale * (c - u)
        return rescaled(guided, c, self._rescale)

    def _listen(self, pipe: Any, family: str, call: Mapping[str, Any]) -> list[dict[str, Any]]:
        network, calls = self._network[0], []
        signature = inspect.signature(type(network).forward)

        def look(module: Any, args: Any, kwargs: Any) -> None:
            bound = signature.bind(module, *args, **kwargs).arguments
            calls.append({name: value for name, value in bound.items() if name != "self"})

        handle = network.register_forward_pre_hook(look, with_kwargs=True)
        try:
            tiny.latents(pipe, family, **call)
        finally:
            handle.remove()
        if family in TWO_CALLS:
            return calls[1::2]
        batch = len(calls[0][self._sample])
        return [_first_half(arguments, batch) for arguments in calls]


def compact(seed: int = 0, **sizes: Any) -> Any:
    """A compact noise model with random weights, which predicts some guidance."""
    from w2sdiff.core2.compact import CompactConfig, CompactNoiseModel

    sizes = {"channels": 4, "prediction": "epsilon", "text_width": 32, "width": 16} | sizes
    model = tiny.randomise(CompactNoiseModel(CompactConfig(**sizes)), seed)
    model.calibrate([-4.0, 0.0, 4.0], [0.5, 0.3, 0.1], 1.0)
    return model


def noise_model_file(path: Path, seed: int = 0, **sizes: Any) -> Path:
    """The file of a `compact` one."""
    save_noise_model(compact(seed, **sizes), path)
    return path


def rescaled(guided: Tensor, c: Tensor, phi: float) -> Tensor:
    """Lin et al. 2023, arXiv 2305.08891, section 3.4."""
    if not phi:
        return guided
    over = tuple(range(1, c.ndim))
    like_c = guided * c.std(over, keepdim=True) / guided.std(over, keepdim=True)
    return phi * like_c + (1 - phi) * guided


class Probe:
    """Batch sizes of the calls that reach a network."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    @property
    def evaluations(self) -> int:
        """Single-branch evaluations, for calls of one item."""
        return sum(self.batches)


@contextmanager
def probed(network: Any) -> Any:
    """Count the calls of a network in the `with`."""
    probe = Probe()

    def look(_module: Any, args: Any, kwargs: Any) -> None:
        sample = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        probe.batches.append(len(sample))

    handle = network.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield probe
    finally:
        handle.remove()


def close(found: Tensor, expected: Tensor, *, scheduler: Any = None, by: float = 1e-5) -> None:
    """Equal but for rounding, which goes with the largest latents on the way (see test_replay)."""
    start = float(getattr(scheduler, "init_noise_sigma", 1.0))
    size = max(1.0, float(expected.abs().max()), start)
    difference = float((found - expected).abs().max())
    assert difference <= by * size, f"{difference:.2e} of {size:.2g}"


def _first_half(value: Any, batch: int) -> Any:
    if torch.is_tensor(value):
        return value.chunk(2)[0] if value.ndim and len(value) == batch else value
    if isinstance(value, dict):
        return {name: _first_half(item, batch) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_first_half(item, batch) for item in value)
    return value
