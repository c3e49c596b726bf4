"""Which start noise a run really began with, as a hash: the evidence that arms are paired."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["noise_sha256"]


def noise_sha256(start: torch.Tensor, seed: int, scheduler: Any) -> str:
    """The sha256 of the start noise of one picture, in float32 bytes.

    The noise of a seed is drawn anew; if the run began with it, times the scheduler's first sigma
    (which may depend on the number of steps), its hash is the same for every arm that started from
    this seed. A run that began with something else (packed latents, or a noised image) has the
    hash of what it began with.

    Args:
        start: [1, ...] the latents the loop began with.
        seed: of the picture.
        scheduler: the pipeline's, after the run.
    """
    import torch

    start = start.cpu()
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn(start.shape, generator=generator, dtype=start.dtype).float()
    scale = float(getattr(scheduler, "init_noise_sigma", 1.0))
    tolerance = 1e-4 if start.dtype == torch.float32 else 2e-2
    same = torch.allclose(start.float(), noise * scale, rtol=tolerance, atol=tolerance * scale)
    found = noise if same else start.float()
    return hashlib.sha256(found.contiguous().numpy().tobytes()).hexdigest()
