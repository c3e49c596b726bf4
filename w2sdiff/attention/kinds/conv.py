"""`conv`: the published compression, a learned mean of each cell."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from w2sdiff.attention.kinds.base import KINDS, KVCompressor, as_image, as_tokens
from w2sdiff.attention.ratios import Pair, Ratio, pairs
from w2sdiff.errors import InputError


@KINDS.register
class Conv(KVCompressor):
    """conv           a learned mean of each cell, then LayerNorm (published); has parameters.

    PixArt-Σ (arXiv 2403.04692, section 3.2): a depthwise convolution whose kernel and stride are R
    ("Conv Avg Init": it starts as the mean), then a LayerNorm, both shared by K and V. Because of
    the LayerNorm it is not the mean at initialisation, and does not fit an untrained network.

    Where R does not divide the grid, the last row and column are repeated until it does: the kernel
    has R x R weights and needs as many tokens.
    """

    kind = "conv"
    commutes = False  # weights differ between channels

    @classmethod
    def check(cls, ratio: Ratio) -> None:
        """A kernel has one size."""
        if len(pairs(ratio)) > 1:
            raise InputError(
                "conv has one kernel per layer, so its schedule may hold one ratio beside 1; "
                f"got {ratio}. Take average, or one ratio."
            )

    def build(self, ratio: Ratio, channels: int) -> None:
        """The convolution, starting as the mean, and the norm."""
        (kernel,) = pairs(ratio) or {(1, 1)}
        # skip_init: no random numbers are drawn for weights that are filled at once.
        self.sr: nn.Module = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Conv2d, channels, channels, kernel, stride=kernel, groups=channels
        )
        self.norm = nn.LayerNorm(channels)
        with torch.no_grad():
            self.sr.weight.fill_(1 / (kernel[0] * kernel[1]))
            self.sr.bias.zero_()

    def pool(self, x: Tensor, height: int, width: int, ratio: Pair) -> Tensor:
        """The convolution over whole cells, and the norm over the channels of each."""
        image = as_image(x, height, width)
        if height % ratio[0] or width % ratio[1]:
            image = _repeat_edge(image, -height % ratio[0], -width % ratio[1])
        pooled: Tensor = self.norm(as_tokens(self.sr(image)))
        return pooled


def _repeat_edge(image: Tensor, rows: int, columns: int) -> Tensor:
    # Not F.pad(mode="replicate"): it would leave the channels-last layout.
    image = torch.cat([image, *[image[:, :, -1:]] * rows], dim=2)
    return torch.cat([image, *[image[..., -1:]] * columns], dim=3)
