"""`uniform_every`: every R-th token of the flat sequence."""

from __future__ import annotations

from torch import Tensor

from w2sdiff.attention.kinds.base import KINDS, Sampler
from w2sdiff.attention.ratios import Pair, Ratio, pairs
from w2sdiff.errors import InputError


@KINDS.register
class UniformEvery(Sampler):
    """uniform_every  every R-th token, row after row: R times fewer, not R²; nothing to train.

    Published beside the others; n = ceil(N / R). Where R divides the width it keeps whole columns.
    """

    kind = "uniform_every"

    @classmethod
    def check(cls, ratio: Ratio) -> None:
        """The sequence has one axis."""
        uneven = sorted(pair for pair in pairs(ratio) if pair[0] != pair[1])
        if uneven:
            raise InputError(
                "uniform_every takes every R-th token of the whole sequence, so its ratio is one "
                f"number; got {uneven[0]}. Take uniform for a ratio per axis."
            )

    @classmethod
    def check_grid(cls, ratio: Pair, height: int, width: int) -> None:
        """Refuse a ratio larger than the sequence."""
        super().check_grid((1, ratio[1]), 1, height * width)

    def pool(self, x: Tensor, height: int, width: int, ratio: Pair) -> Tensor:
        """Every R-th token, from the first."""
        del height, width
        return x[:, :: ratio[0]]
