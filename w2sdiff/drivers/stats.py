"""`RunStats`: what the last call of an attached pipeline cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass
class RunStats:
    """Cost and size of the method's work in one call of the pipeline.

    Attributes:
        evaluations: single-branch network evaluations: a call with both branches of guidance counts
            two, however many items are in the batch.
        saved: branches that the pipeline asked for and nobody needed, so that they were not
            computed.
        calls: calls of the network.
        requests: evaluations the method asked for (each makes one or two calls).
        steps: denoising steps.
        seconds: time of the whole call, decoding included.
        notes: remarks, for example that strong and base differ in weights.
        start: [B, ...] the latents the loop began with; let go at the next call.
    """

    evaluations: int = 0
    saved: int = 0
    calls: int = 0
    requests: int = 0
    steps: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    start: torch.Tensor | None = field(default=None, repr=False)
    _sizes: list[torch.Tensor | None] = field(default_factory=list, repr=False)

    @property
    def reflection(self) -> list[float]:
        """How far the method moved x, per step: mean |x' - x| / mean |x_next - x|; else 0."""
        return [0.0 if size is None else float(size) for size in self._sizes]

    def record_step(self, x: torch.Tensor, moved: torch.Tensor, after: torch.Tensor) -> None:
        """Note a step's latents: before, as stepped from, after; waits for no device."""
        self.steps += 1
        if moved is x:
            self._sizes.append(None)
            return
        size = (moved.float() - x.float()).abs().mean() / (after.float() - x.float()).abs().mean()
        self._sizes.append(size)
