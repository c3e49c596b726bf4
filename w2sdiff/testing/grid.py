"""The replay's noise levels, derived from the schedulers' tables and not from `w2sdiff.levels`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

__all__ = ["Grid", "grid"]

Kind = Literal["vp", "ve", "flow"]


@dataclass(frozen=True)
class Grid:
    """x = alpha[i] * x0 + sigma[i] * noise in the scheduler's own latents, i = 0 (noise) to n."""

    kind: Kind
    prediction: str
    alpha: list[float]
    sigma: list[float]

    def split(self, x: Tensor, prediction: Tensor, at: int) -> tuple[Tensor, Tensor]:
        """The (x0, noise) that a prediction for x at level `at` stands for, in float64."""
        x, m = x.double(), prediction.double()
        a, s = self.alpha[at], self.sigma[at]
        if self.kind == "flow":  # dx/dsigma = noise - x0
            return x - s * m, x + (1 - s) * m
        if self.prediction == "epsilon":
            return (x - s * m) / a, m
        if self.prediction == "sample":
            return m, (x - a * m) / s
        # v = cos * noise - sin * x0, with (cos, sin) the level normalised to unit variance
        r = math.hypot(a, s)
        cos, sin = a / r, s / r
        return cos * (x / r) - sin * m, sin * (x / r) + cos * m

    def move(self, x: Tensor, prediction: Tensor, *, at: int, to: int) -> Tensor:
        """X carried from one level to another along (x0, noise)."""
        x0, noise = self.split(x, prediction, at)
        return (self.alpha[to] * x0 + self.sigma[to] * noise).to(x.dtype)

    def network_input(self, x: Tensor, at: int) -> Tensor:
        """What the network is shown for x: scaled to unit variance *at its own level*, if VE."""
        return x / math.sqrt(self.sigma[at] ** 2 + 1) if self.kind == "ve" else x


def grid(scheduler: Any) -> Grid:
    """The levels of a scheduler whose timesteps are set."""
    name = type(scheduler).__name__
    prediction = getattr(scheduler.config, "prediction_type", "flow")
    if name.startswith("FlowMatch") or getattr(scheduler.config, "use_flow_sigmas", False):
        s = scheduler.sigmas.double().tolist()
        return Grid("flow", "flow", [1 - v for v in s], s)
    if name in (
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "LMSDiscreteScheduler",
    ):
        s = scheduler.sigmas.double().tolist()
        return Grid("ve", prediction, [1.0] * len(s), s)
    if name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"):
        s = scheduler.sigmas.double().tolist()
        return Grid(
            "vp", prediction, [(1 + v * v) ** -0.5 for v in s], [v * (1 + v * v) ** -0.5 for v in s]
        )
    if name in (
        "DDIMScheduler",
        "CogVideoXDDIMScheduler",
        "CogVideoXDPMScheduler",
        "DDPMScheduler",
    ):
        table = scheduler.alphas_cumprod.double().tolist()
        t = [int(v) for v in scheduler.timesteps]
        last = t[-1] - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        # DDPM ends at the clean picture, the others at a level of the table if there is one left.
        clean = 1.0 if name == "DDPMScheduler" else float(scheduler.final_alpha_cumprod)
        ends = table[last] if last >= 0 and name != "DDPMScheduler" else clean
        kept = [*(table[v] for v in t), ends]
        return Grid("vp", prediction, [v**0.5 for v in kept], [(1 - v) ** 0.5 for v in kept])
    raise NotImplementedError(f"the replay has no levels for {name}")
