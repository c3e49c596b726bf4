"""`KVCompressor`: from N keys and values to n, on a grid of height x width tokens.

A kind is a subclass in a file of its own, registered with `@KINDS.register`. It says three things:
`pool` (the tokens of a cell -> one token), `place` (where on the grid that token is, for rotary
embeddings) and `visible` (whether a mask hides it). `commutes` is true where `pool` is the same
weighted mean in every channel, because then it may be done before the K and V projections, which
are affine and n/N as expensive there.

Everything stays in the layout [B, N, C] that the projections return. Seen as an image that is
"channels last", for which torch has fast pooling and depthwise kernels; a transposition to
[B, C, H, W] would cost more than the compression (20 times, on a CPU).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2sdiff.attention.ratios import Pair, Ratio
from w2sdiff.errors import InputError
from w2sdiff.registry import Registry

if TYPE_CHECKING:
    from w2sdiff.attention.compression import KVCompression

KINDS: Registry[KVCompressor] = Registry("compression kind", "w2sdiff.attention.kinds")


class KVCompressor(nn.Module):
    """Makes few keys and values of many: `k, v = compressor(k, v, height, width)`.

    `KVCompressor(compression, channels)` is an instance of the compression's kind. Its parameters,
    if any, have the published names: `sr.weight`, `sr.bias`, `norm.weight`, `norm.bias`.

    Args:
        compression: what to do.
        channels: C, heads times channels per head.
        layer: index of the attention layer, where the ratio depends on it.

    Shapes: k, v [B, height * width, C] -> [B, n, C]; row by row, n = ceil(height / R) * ceil(width
    / R).

    Cost: reads k and v once; a hundredth of the attention at 4,096 tokens.

    Raises:
        InputError: k and v are not on that grid, or the ratio is larger than the grid.

    Example:
        >>> import torch
        >>> from w2sdiff.attention import KVCompression
        >>> compressor = KVCompressor(KVCompression("conv", ratio=2), channels=8)
        >>> k, v = compressor(torch.ones(1, 24, 8), torch.ones(1, 24, 8), height=4, width=6)
        >>> tuple(k.shape), sorted(compressor.state_dict())
        ((1, 6, 8), ['norm.bias', 'norm.weight', 'sr.bias', 'sr.weight'])
    """

    kind: ClassVar[str]
    commutes: ClassVar[bool] = True

    def __new__(
        cls, compression: KVCompression | None = None, *args: Any, **kwargs: Any
    ) -> KVCompressor:
        """The class of the compression's kind (copying and unpickling name theirs)."""
        del args, kwargs
        if cls is KVCompressor and compression is not None:
            cls = KINDS[compression.kind]
        return super().__new__(cls)

    def __init__(
        self, compression: KVCompression, channels: int, *, layer: int | None = None
    ) -> None:
        super().__init__()
        self.compression, self.channels, self.layer = compression, channels, layer
        self.build(compression.ratio_of(layer), channels)

    def build(self, ratio: Ratio, channels: int) -> None:
        """Create the parameters, in a kind that has some."""

    @classmethod
    def check(cls, ratio: Ratio) -> None:
        """Refuse a ratio this kind cannot do."""

    def forward(
        self, k: Tensor, v: Tensor, height: int, width: int, level: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compress both; `level` is the noise level, for a ratio that follows it."""
        ratio = self.compression.at(self.layer, level)
        for name, x in (("k", k), ("v", v)):
            if x.dim() != 3 or x.shape[1:] != (height * width, self.channels):
                raise InputError(
                    f"{name} must be [B, {height} * {width}, {self.channels}], got {list(x.shape)}."
                )
        self.check_grid(ratio, height, width)
        if ratio == (1, 1):
            return k, v
        return self.pool(k, height, width, ratio), self.pool(v, height, width, ratio)

    @classmethod
    def check_grid(cls, ratio: Pair, height: int, width: int) -> None:
        """Refuse a ratio larger than the grid."""
        if ratio[0] > height or ratio[1] > width:
            raise InputError(
                f"A ratio of {ratio[0]} x {ratio[1]} is larger than the grid of {height} x {width} "
                "tokens; lower the ratio or raise the resolution."
            )

    def pool(self, x: Tensor, height: int, width: int, ratio: Pair) -> Tensor:
        """[B, height * width, C] -> [B, n, C]; differentiable."""
        raise NotImplementedError

    def place(
        self, cos: Tensor, sin: Tensor, height: int, width: int, ratio: Pair
    ) -> tuple[Tensor, Tensor]:
        """Rotary tables of the tokens [F, height * width, D] -> of the compressed ones [F, n, D].

        A mean of tokens stands at the centre of its cell. The table holds angles of whole tokens,
        and an angle is linear in the position, so the centre's is the mean of the two (on two axes:
        four) tokens around the centre. Their unit vectors are summed and normalised, which needs no
        knowledge of the frequencies and is exact while neighbours are less than half a turn apart.
        """
        height_of, width_of = _around_centre(height, ratio[0]), _around_centre(width, ratio[1])
        summed = []
        for table in (cos, sin):
            grid = as_grid(table, height, width)
            rows = [grid.index_select(1, at.to(grid.device)) for at in height_of]
            lines = rows[0] + rows[1]
            columns = [lines.index_select(2, at.to(grid.device)) for at in width_of]
            summed.append((columns[0] + columns[1]).flatten(1, 2))
        length = torch.rsqrt(summed[0] ** 2 + summed[1] ** 2)
        return summed[0] * length, summed[1] * length

    def visible(self, bias: Tensor, height: int, width: int, ratio: Pair) -> Tensor:
        """Bias of the scores [B, N, 1] -> [B, n, 1]: a cell is seen while any of its tokens is."""
        image = as_image(bias, height, width)
        return as_tokens(F.max_pool2d(image, ratio, ceil_mode=True))

    def without(self, x: Tensor, bias: Tensor, height: int, width: int, ratio: Pair) -> Tensor:
        """Keep hidden tokens out of the cells they share with visible ones.

        They get the mean of the visible tokens of the cell, so that the cell's own mean is that of
        the visible ones. bias: [B, N, 1], 0 where visible and -10,000 where hidden.
        """
        seen = (bias > -1).to(x.dtype)
        share = mean_of_cells(seen, height, width, ratio)
        mean = mean_of_cells(x * seen, height, width, ratio)
        mean = mean / share.clamp_min(torch.finfo(x.dtype).tiny)
        grid = as_grid(mean, -(-height // ratio[0]), -(-width // ratio[1]))
        spread = grid.repeat_interleave(ratio[0], 1)[:, :height].repeat_interleave(ratio[1], 2)
        return torch.where(seen > 0, x, spread[:, :, :width].flatten(1, 2))

    def extra_repr(self) -> str:
        """What `print(denoiser)` shows of it."""
        return f"{self.kind}, ratio={self.compression.ratio_of(self.layer)}"


class Sampler(KVCompressor):
    """A kind that keeps some tokens as they are and discards the others.

    A token that is kept stays where it is, so it keeps its own rotary position: the layer computes
    exactly what full attention would with the discarded keys hidden.
    """

    def place(
        self, cos: Tensor, sin: Tensor, height: int, width: int, ratio: Pair
    ) -> tuple[Tensor, Tensor]:
        """The rows of the kept tokens."""
        return self.pool(cos, height, width, ratio), self.pool(sin, height, width, ratio)

    def visible(self, bias: Tensor, height: int, width: int, ratio: Pair) -> Tensor:
        """The bias of the kept tokens."""
        return self.pool(bias, height, width, ratio)

    def without(self, x: Tensor, bias: Tensor, height: int, width: int, ratio: Pair) -> Tensor:
        """Nothing is mixed."""
        del bias, height, width, ratio
        return x


def as_grid(x: Tensor, height: int, width: int) -> Tensor:
    """[B, height * width, C] as [B, height, width, C]."""
    return x.reshape(x.shape[0], height, width, x.shape[2])


def as_image(x: Tensor, height: int, width: int) -> Tensor:
    """[B, height * width, C] as a channels-last image [B, C, height, width]: a view."""
    return as_grid(x.contiguous(), height, width).permute(0, 3, 1, 2)


def as_tokens(image: Tensor) -> Tensor:
    """[B, C, h, w] as [B, h * w, C]; a view of a channels-last image."""
    return image.permute(0, 2, 3, 1).flatten(1, 2)


def mean_of_cells(x: Tensor, height: int, width: int, ratio: Pair) -> Tensor:
    """Mean over each cell of R x R tokens; at the edge over the tokens that are left."""
    image = as_image(x, height, width)
    return as_tokens(F.avg_pool2d(image, ratio, ceil_mode=True, count_include_pad=False))


def _around_centre(size: int, ratio: int) -> tuple[Tensor, Tensor]:
    """The tokens before and after the centre of each cell of an axis; the middle one twice."""
    first = torch.arange(0, size, ratio)
    last = (first + ratio - 1).clamp(max=size - 1)
    return (first + last) // 2, (first + last + 1) // 2
