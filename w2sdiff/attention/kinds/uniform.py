"""`uniform`: every R-th token of every R-th row."""

from __future__ import annotations

from torch import Tensor

from w2sdiff.attention.kinds.base import KINDS, Sampler, as_grid
from w2sdiff.attention.ratios import Pair


@KINDS.register
class Uniform(Sampler):
    """uniform        the first token of each cell, the others discarded; nothing to train.

    "Token discarding" of PixArt-Σ's ablation.
    """

    kind = "uniform"

    def pool(self, x: Tensor, height: int, width: int, ratio: Pair) -> Tensor:
        """Every R-th row and column, from the first."""
        return as_grid(x, height, width)[:, :: ratio[0], :: ratio[1]].flatten(1, 2)
