"""Pictures small enough to lie inside a page."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from w2sdiff.errors import InputError
from w2sdiff.imaging import open_image

__all__ = ["Thumbnail", "edge_for", "thumbnail", "thumbnails"]

_EDGES = ((1000, 256), (2500, 192))  # up to so many pictures, this many pixels a side
_SMALLEST = 128
_EXACT = 128  # pictures up to here are kept to the pixel, if they are few
_AHEAD = 64  # pictures in hand at once: their bytes wait in memory until the page takes them


@dataclass(frozen=True)
class Thumbnail:
    """A picture as a data URL, and whether it is smaller than the one in the file."""

    url: str
    shrunk: bool


def edge_for(pictures: int) -> int:
    """The longest side of the thumbnails of a page with so many pictures, in pixels.

    Example:
        >>> edge_for(24), edge_for(6000)
        (256, 128)
    """
    return next((edge for most, edge in _EDGES if pictures <= most), _SMALLEST)


def thumbnail(path: Path, edge: int = 256, *, quality: int = 80) -> Thumbnail:
    """The picture of a file, made smaller if its longest side is above `edge` pixels.

    A picture that is small even beside its thumbnail (half of `edge`, at most 128 pixels) is kept
    to the pixel. Any other loses what the eye does not miss, for a tenth of the bytes. Either way
    it is written anew: what a file says about how it was made (text fields, camera data) does not
    come along.

    Raises:
        InputError: the file is missing, or is no picture.
    """
    image = open_image(path)
    longest = max(image.size)
    # The gap lets whole factors go first, which costs a third and cannot be seen.
    image.thumbnail((edge, edge), reducing_gap=2.0)
    file = io.BytesIO()
    if longest <= min(edge // 2, _EXACT):
        image.save(file, "WEBP", lossless=True, quality=0, method=0)
    else:
        image.save(file, "WEBP", quality=quality, method=0)  # 2: a sixth smaller and slower
    url = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    return Thumbnail(url, longest > edge)


def thumbnails(
    paths: Sequence[Path | None], edge: int, on_done: Callable[[], object] = lambda: None
) -> Iterator[Thumbnail | None]:
    """One thumbnail per path, in order; None where there is no path or no readable picture.

    Made by as many threads as there are cores (reading and writing pictures lets go of Python's
    lock), and no further ahead of whoever takes them than a few dozen, so that memory stays flat.
    """

    def make(path: Path | None) -> Thumbnail | None:
        try:
            return None if path is None else thumbnail(path, edge)
        except InputError:
            return None

    with ThreadPoolExecutor(os.cpu_count() or 1, "thumbnail") as pool:
        ahead = [pool.submit(make, path) for path in paths[:_AHEAD]]
        for n in range(len(paths)):
            made = ahead[n % _AHEAD].result()
            if n + _AHEAD < len(paths):
                ahead[n % _AHEAD] = pool.submit(make, paths[n + _AHEAD])
            on_done()
            yield made
