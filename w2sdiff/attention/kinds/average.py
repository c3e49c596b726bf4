"""`average`: the mean of each cell."""

from __future__ import annotations

from torch import Tensor

from w2sdiff.attention.kinds.base import KINDS, KVCompressor, mean_of_cells
from w2sdiff.attention.ratios import Pair


@KINDS.register
class Average(KVCompressor):
    """average        the mean of the R x R tokens of each cell; nothing to train.

    "Token pooling" of PixArt-Σ's ablation, and what a network trained without compression bears
    best. Done before the K and V projections, which it commutes with.
    """

    kind = "average"

    def pool(self, x: Tensor, height: int, width: int, ratio: Pair) -> Tensor:
        """Mean over the tokens each cell has; fewer than R x R at the edge."""
        return mean_of_cells(x, height, width, ratio)
