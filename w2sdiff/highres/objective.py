"""What a tuning minimises: the error of the network's prediction, at noise levels drawn at random.

Shapes: latents and noise [B, c, h, w]; times [B].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from w2sdiff.errors import UnsupportedError
from w2sdiff.highres.data import Batch, Encoded

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Draw", "Levels", "Objective"]


class Draw(NamedTuple):
    """What chance decides about the items of a batch."""

    items: Tensor
    dropped: Tensor
    times: Tensor
    noise: Tensor

    def part(self, rows: Tensor) -> Draw:
        """Some of them."""
        return Draw(*(values[rows] for values in self))


class Levels:
    """Noise levels and targets, as a pipeline's scheduler defines them.

    Raises:
        UnsupportedError: a scheduler without levels, or of another prediction.
    """

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
        """How many there are."""
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


class Objective:
    """Mean squared error of predictions on encoded pictures.

    Args:
        accelerator: its device and its precision.
        data: the pictures.
        levels: noise levels and targets.
        drop_caption: share of captions that are left out.
        teacher: the network whose prediction is the target; None: the scheduler's own.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        data: Encoded,
        levels: Levels,
        *,
        drop_caption: float,
        teacher: Any = None,
    ) -> None:
        self.accelerator, self.data, self.levels = accelerator, data, levels
        self.drop_caption, self.teacher = drop_caption, teacher

    def draw(self, items: Tensor, generator: torch.Generator) -> Draw:
        """Which captions are dropped, noise levels, and noise."""
        count, shape = len(items), self.data.batch([0], [True]).latents.shape[1:]
        dropped = torch.rand(count, generator=generator) < self.drop_caption
        times = torch.randint(len(self.levels), (count,), generator=generator)
        return Draw(items, dropped, times, torch.randn(count, *shape, generator=generator))

    def error(self, network: Any, draw: Draw) -> Tensor:
        """Mean squared error of the network's prediction."""
        device = self.accelerator.device
        batch = self.data.batch(draw.items.tolist(), draw.dropped.tolist())
        batch = Batch(batch.latents.to(device), batch.states.to(device), batch.mask.to(device))
        times = draw.times.to(device)
        x, target = self.levels.noised(batch.latents, draw.noise.to(device), times)
        if self.teacher is not None:
            with torch.no_grad(), self.accelerator.autocast():
                target = _predicted(self.teacher, x, times, batch).float()
        with self.accelerator.autocast():
            predicted = _predicted(network, x, times, batch)
        return (predicted.float() - target).square().mean()


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
