"""Muon, the optimiser for the matrices inside transformer blocks (Jordan et al. 2024)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon", "orthogonalise"]


class Muon(torch.optim.Optimizer):
    """Steps along the nearest semi-orthogonal matrix of the gradients' running average.

    With Nesterov momentum, decoupled weight decay, and each step scaled to the size that AdamW's
    would have, so that both share one learning rate (Liu et al. 2025, arXiv:2502.16982, eq. 4).
    Matrices of one shape are handled together, which is what makes it cheap for small networks.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        """Take matrices only; raises `ValueError` for a parameter of another rank."""
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        if any(p.ndim != 2 for group in self.param_groups for p in group["params"]):
            raise ValueError("Muon is for matrices: give the other parameters to AdamW")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do one step with the gradients at hand."""
        assert closure is None, "Muon needs no closure"
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for shape, matrices in by_shape.items():
                update = orthogonalise(torch.stack([self._average(p, group) for p in matrices]))
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                for p, direction in zip(matrices, update, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(size * direction)

    def _average(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["average"] = torch.zeros_like(p)
        average: Tensor = state["average"]
        average.lerp_(p.grad, 1 - group["momentum"])
        return p.grad.lerp(average, group["momentum"])


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return about U V' of each matrix U S V' in a stack [n, rows, columns].

    Five steps of the quintic Newton-Schulz iteration with Jordan's coefficients, after which the
    singular values lie between about 0.7 and 1.2.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    found: Tensor = x.mT if tall else x
    return found
