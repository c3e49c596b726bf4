"""`conv`: the published compression, a learned mean of each cell."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
        self.sr = _Mean(channels, kernel)
        self.norm = _Norm(channels)

    def pool(self, x: Tensor, height: int, width: int, ratio: Pair) -> Tensor:
        """The convolution over whole cells, and the norm over the channels of each."""
        image = as_image(x, height, width)
        if height % ratio[0] or width % ratio[1]:
            image = _repeat_edge(image, -height % ratio[0], -width % ratio[1])
        pooled: Tensor = self.norm(as_tokens(self.sr(image)))
        return pooled


class _Following(nn.Module):
    """A layer that computes where its input is, and in its type.

    So it does not matter what came first, the compression or what moves and casts weights layer by
    layer. It is none of torch's layers, because diffusers' layerwise casting rounds those to eight
    bits, and with so few weights there is nothing to gain.
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias; where autocast chooses the types, as they are."""
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            return self.weight.to(x.device), self.bias.to(x.device)
        return self.weight.to(x), self.bias.to(x)


class _Mean(_Following):
    """A weighted sum over each cell, channel by channel: at first the mean."""

    def __init__(self, channels: int, kernel: Pair) -> None:
        super().__init__()
        mean = torch.full((channels, 1, *kernel), 1 / (kernel[0] * kernel[1]))
        self.weight, self.bias = nn.Parameter(mean), nn.Parameter(torch.zeros(channels))

    def forward(self, image: Tensor) -> Tensor:
        weight, bias = self.like(image)
        kernel = weight.shape[2:]
        return F.conv2d(image, weight, bias, stride=kernel, groups=len(weight))


class _Norm(_Following):
    """LayerNorm over the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.like(x)
        return F.layer_norm(x, weight.shape, weight, bias)


def _repeat_edge(image: Tensor, rows: int, columns: int) -> Tensor:
    # Not F.pad(mode="replicate"): it would leave the channels-last layout.
    image = torch.cat([image, *[image[:, :, -1:]] * rows], dim=2)
    return torch.cat([image, *[image[..., -1:]] * columns], dim=3)
