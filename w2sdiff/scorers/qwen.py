"""How Qwen2-VL reads a picture: a size in whole patches, and the patches in the order it wants."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from w2sdiff.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

__all__ = ["PATCH", "fitting_size", "patches"]

PATCH, _MERGE, _FRAMES = 14, 2, 2
_CELL = PATCH * _MERGE  # one token of the language model stands for a square of this side


def fitting_size(width: int, height: int, pixels: int) -> tuple[int, int]:
    """The (width, height) in whole cells of 28 that is nearest to `pixels` pixels in this shape.

    Both sides are rounded to cells; if that gives too many pixels, they are scaled and rounded
    down, if too few, scaled and rounded up (the published rule, with its two bounds equal).

    Raises:
        InputError: one side is more than 200 times the other.

    Example:
        >>> fitting_size(1024, 1024, 200_704), fitting_size(1024, 768, 200_704)
        ((448, 448), (504, 364))
    """
    if max(width, height) > 200 * min(width, height):
        raise InputError(f"a picture of {width}x{height} is too long for Qwen2-VL: at most 200:1")
    sides = [max(_CELL, round(side / _CELL) * _CELL) for side in (width, height)]
    if math.prod(sides) == pixels:
        return sides[0], sides[1]
    if math.prod(sides) > pixels:
        shrink = math.sqrt(width * height / pixels)
        sides = [math.floor(side / shrink / _CELL) * _CELL for side in (width, height)]
    else:
        grow = math.sqrt(pixels / (width * height))
        sides = [math.ceil(side * grow / _CELL) * _CELL for side in (width, height)]
    return max(_CELL, sides[0]), max(_CELL, sides[1])


def patches(image: Image, pixels: int) -> tuple[Tensor, tuple[int, int, int]]:
    """A picture as Qwen2-VL's patches, and their grid (1, rows, columns).

    Bicubic by PIL to `fitting_size`, OpenAI mean and std, shown in two equal frames. Patches of
    one cell of 2x2 lie together: [rows * columns, 3 * 2 * 14 * 14].
    """
    import numpy as np
    import torch
    from PIL.Image import Resampling

    from w2sdiff.scorers.preprocess import normalise, rgb

    picture = rgb(image)
    size = fitting_size(*picture.size, pixels)
    picture = picture.resize(size, Resampling.BICUBIC)
    values = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    columns, rows = (side // PATCH for side in size)
    cells = normalise(values).reshape(
        3, rows // _MERGE, _MERGE, PATCH, columns // _MERGE, _MERGE, PATCH
    )
    ordered = cells.permute(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, 3, 1, PATCH * PATCH)
    frames = ordered.expand(-1, -1, _FRAMES, -1).reshape(rows * columns, -1)
    return frames, (1, rows, columns)
