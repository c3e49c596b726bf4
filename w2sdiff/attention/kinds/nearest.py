"""`nearest`: nearest-neighbour resizing of the grid."""

from __future__ import annotations

import torch
from torch import Tensor

from w2sdiff.attention.kinds.base import KINDS, Sampler, as_grid
from w2sdiff.attention.ratios import Pair


@KINDS.register
class Nearest(Sampler):
    """nearest        the grid resized by nearest neighbour; nothing to train.

    What the published code calls `ave`, though it averages nothing: `F.interpolate` with
    `mode="nearest"`. Where R divides the grid that is `uniform`; where it does not, the kept rows
    and columns are spread over the whole grid instead of starting anew every R.
    """

    kind = "nearest"

    def pool(self, x: Tensor, height: int, width: int, ratio: Pair) -> Tensor:
        """ceil(size / R) rows and columns, the i-th at floor(i * size / their number)."""
        if height % ratio[0] == 0 and width % ratio[1] == 0:  # the same, without an index
            return as_grid(x, height, width)[:, :: ratio[0], :: ratio[1]].flatten(1, 2)
        rows, columns = _spread(height, ratio[0], x), _spread(width, ratio[1], x)
        grid = as_grid(x, height, width)
        return grid.index_select(1, rows).index_select(2, columns).flatten(1, 2)


def _spread(size: int, ratio: int, x: Tensor) -> Tensor:
    count = -(-size // ratio)
    return torch.arange(count, device=x.device) * size // count
