"""Numbers that describe a picture and need no model: saturation, clipping, contrast, sharpness.

They are neither good nor bad. Beside a learned score they show at what price it was won: guidance
that is too strong shows up as saturation and clipping long before a preference model minds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from w2sdiff.errors import InputError
from w2sdiff.scorers.base import SCORERS, Scorer

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Clipping", "Contrast", "Saturation", "Sharpness"]

_Pixels = NDArray[np.float64]
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, of the coded (gamma) values


class _Statistic(Scorer):
    """A formula over the pixels, RGB [h, w, 3] in 0..255."""

    group = "statistic"
    higher_is_better = None
    needs_prompt = False
    formula: ClassVar[str]

    def fingerprint(self) -> dict[str, Any]:
        """The formula; there are no weights."""
        return {
            "scorer": self.kind,
            "weights": {},
            "preprocessing": "8-bit RGB, full size",
            "dtype": "float64",
            "formula": self.formula,
        }

    def score(
        self, images: Sequence[Image], prompts: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        """The formula for each picture, float32 [n]; prompts are ignored."""
        from w2sdiff.scorers.preprocess import rgb

        self._check_prompts(images, prompts)
        pixels = (np.asarray(rgb(image), np.float64) for image in images)
        return np.array([self._value(p) for p in pixels], np.float32)

    def _value(self, pixels: _Pixels) -> float:
        raise NotImplementedError


@SCORERS.register
@dataclass(frozen=True)
class Saturation(_Statistic):
    """Mean saturation of the pixels: 0 grey, 1 pure colours.

    mean over pixels of (max(R, G, B) - min(R, G, B)) / max(R, G, B), and 0 where the maximum is 0:
    the S of HSV.

    Example:
        >>> from PIL import Image
        >>> Saturation().score([Image.new("RGB", (8, 8), (200, 100, 100))]).tolist()
        [0.5]
    """

    kind = "saturation"
    expected = (0.05, 0.7)
    formula = "mean((max - min) / max)"

    def _value(self, pixels: _Pixels) -> float:
        highest, lowest = pixels.max(axis=2), pixels.min(axis=2)
        return float(np.mean((highest - lowest) / np.maximum(highest, 1.0)))


@SCORERS.register
@dataclass(frozen=True)
class Clipping(_Statistic):
    """Share of the pixels with a channel at 0 or at 255: where colour was lost.

    Example:
        >>> from PIL import Image
        >>> Clipping().score([Image.new("RGB", (8, 8), (255, 100, 100))]).tolist()
        [1.0]
    """

    kind = "clipping"
    expected = (0.0, 0.2)
    formula = "share of pixels with min == 0 or max == 255"

    def _value(self, pixels: _Pixels) -> float:
        return float(np.mean((pixels.min(axis=2) == 0) | (pixels.max(axis=2) == 255)))


@SCORERS.register
@dataclass(frozen=True)
class Contrast(_Statistic):
    """Standard deviation of the luma over the pixels (RMS contrast), 0 to 0.5.

    std(Y) with Y = (0.299 R + 0.587 G + 0.114 B) / 255 of the coded values (ITU-R BT.601).

    Example:
        >>> from PIL import Image
        >>> Contrast().score([Image.new("L", (8, 8), 200)]).tolist()
        [0.0]
    """

    kind = "contrast"
    expected = (0.1, 0.35)
    formula = "std(0.299 R + 0.587 G + 0.114 B) / 255"

    def _value(self, pixels: _Pixels) -> float:
        return float((_luma(pixels) / 255).std())


@SCORERS.register
@dataclass(frozen=True)
class Sharpness(_Statistic):
    """Variance of the Laplacian of the luma: how much fine detail (or noise) there is.

    var(4 Y[i, j] - Y[i-1, j] - Y[i+1, j] - Y[i, j-1] - Y[i, j+1]) over the inner pixels, with
    Y = 0.299 R + 0.587 G + 0.114 B in 0..255 (Pech-Pacheco et al. 2000). It depends on the size of
    the picture: compare equal sizes only.

    Raises (from `score`):
        InputError: a picture is smaller than 3 by 3 pixels.

    Example:
        >>> from PIL import Image
        >>> Sharpness().score([Image.new("L", (8, 8), 200)]).tolist()
        [0.0]
    """

    kind = "sharpness"
    expected = (20.0, 5000.0)
    formula = "var(4-neighbour Laplacian of 0.299 R + 0.587 G + 0.114 B in 0..255, inner pixels)"

    def _value(self, pixels: _Pixels) -> float:
        y = _luma(pixels)
        if min(y.shape) < 3:
            raise InputError(
                f"sharpness needs pictures of at least 3x3 pixels, got {y.shape[1]}x{y.shape[0]}"
            )
        around = y[:-2, 1:-1] + y[2:, 1:-1] + y[1:-1, :-2] + y[1:-1, 2:]
        return float((4 * y[1:-1, 1:-1] - around).var())


def _luma(pixels: _Pixels) -> _Pixels:
    luma: _Pixels = pixels @ np.array(_LUMA)
    return luma.round(9)  # far below a grey level, so that grey keeps its own value
