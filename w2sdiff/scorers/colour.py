"""CIELAB, in which equal distances look about equally different."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["lab"]

_TO_XYZ = np.array(  # linear sRGB to XYZ (IEC 61966-2-1)
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)
_WHITE = _TO_XYZ.sum(axis=1)


def lab(srgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIELAB of coded sRGB values in 0..1, white point D65; [..., 3] to [..., 3].

    L* runs from 0 to 100; the Euclidean distance of two colours is ΔE*ab of 1976, about 2 where a
    difference is just seen.

    Example:
        >>> lab(np.array([1.0, 0.0, 0.0])).round(1).tolist()
        [53.2, 80.1, 67.2]
    """
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    t = linear @ _TO_XYZ.T / _WHITE
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
