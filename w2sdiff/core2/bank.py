"""Linear layers with one low-rank set per step, and which set a step uses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from w2sdiff.errors import InputError

__all__ = ["Bank", "BankedLinear", "LowRank", "bank_linears", "lora_index"]


@dataclass(eq=False)
class Bank:
    """The sets of a whole network: how many, how large, and which one is on.

    Every `BankedLinear` of a network holds the same `Bank`, so choosing a set is one assignment,
    and the diffusers blocks between, which call their layers with one argument, need not know.

    Attributes:
        sets: How many.
        rank: Of each.
        alpha: What the low-rank part is multiplied by.
        index: The set that is on.
    """

    sets: int
    rank: int
    alpha: float = 1.0
    index: int = 0


class LowRank(nn.Module):
    """x A B, zero until trained. A is [in, rank], B is [rank, out]."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(inputs, rank) / math.sqrt(rank))
        self.B = nn.Parameter(torch.zeros(rank, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return x @ self.A @ self.B


class BankedLinear(nn.Module):
    """A linear layer plus the low-rank set that its bank has chosen.

    Example:
        >>> bank = Bank(sets=3, rank=2)
        >>> layer = BankedLinear(nn.Linear(4, 5), bank)
        >>> sorted(layer.state_dict())[:4]
        ['linear.bias', 'linear.weight', 'lora.0.A', 'lora.0.B']
        >>> bank.index = 2
        >>> layer(torch.ones(1, 4)).shape
        torch.Size([1, 5])
    """

    def __init__(self, linear: nn.Linear, bank: Bank) -> None:
        super().__init__()
        self.bank = bank
        self.linear = linear
        self.lora = nn.ModuleList(
            LowRank(linear.in_features, linear.out_features, bank.rank) for _ in range(bank.sets)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        low_rank = self.lora[self.bank.index](x)
        return torch.add(self.linear(x), low_rank, alpha=self.bank.alpha)


def bank_linears(module: nn.Module, bank: Bank) -> None:
    """Put a `BankedLinear` in the place of every linear layer below a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, BankedLinear(child, bank))
        else:
            bank_linears(child, bank)


def lora_index(step: int, num_steps: int, sets: int, *, reference: bool = False) -> int:
    """Return which of the sets, one per step of the run they were trained on, a step uses.

    Step i of n is as far along as step i * sets / n of the trained run. The default is the nearest
    set. The published rule rounds down, and does so in floating point: at its own 50 steps, step 22
    comes out as 21.999... and uses set 21.

    Args:
        step: number of the step, from 0.
        num_steps: of this run.
        sets: how many there are.
        reference: whether to choose as the published code does.

    Raises:
        InputError: the step is not one of the run.

    Example:
        >>> [lora_index(i, 5, 50) for i in range(5)]
        [0, 10, 20, 30, 40]
        >>> lora_index(22, 50, 50), lora_index(22, 50, 50, reference=True)
        (22, 21)
    """
    if not 0 <= step < num_steps:
        raise InputError(f"step {step} is not one of a run of {num_steps}, which start at 0")
    if reference:
        # Term by term as published: another order of operations rounds differently.
        index = math.floor(sets - (num_steps - step) / num_steps * sets)
        return min(max(0, index), sets - 1)
    # Halves round up, in integers; the last of many steps would round to one past the end.
    return min((2 * step * sets + num_steps) // (2 * num_steps), sets - 1)
