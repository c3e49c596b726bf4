"""Reading pictures of the embedded world back: which objects are where.

Nothing here is learned. Objects are found as connected regions that differ from the background;
`measure` names the colour and the shape of each. Whatever is not clear is refused, with the
reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from w2sdiff.errors import InputError
from w2sdiff.shapes.measure import REACH, Floats, Ints, crop, name_colours, name_shapes
from w2sdiff.shapes.render import BACKGROUND, COLOURS, IMAGE_SIZE, RGB, SHAPES

__all__ = ["Reading", "Seen", "frequencies", "look", "look_all"]

_BLOCK = 64  # pictures read at once
_SOLID = 0.5  # share of an object's colour above which a pixel is part of it
_FAINT = 0.3  # share above which a pixel is not plain background
_SPECK = 6  # solid regions smaller than this are ignored (pixels)
_STRAY = 16  # faint pixels outside of objects that are tolerated
_DARK = 40.0  # largest distance of the background from the world's (RGB)


@dataclass(frozen=True)
class Seen:
    """One object as the oracle reads it; `shape` or `colour` is None where it is not clear.

    `x, y` is the centre and `size` the side of the square it just fits in, in pixels.
    `confidence` is 0..1: how far shape and colour are from being refused (0 if either is).
    `doubt` says what is not clear, in words.
    """

    shape: str | None
    colour: str | None
    x: float
    y: float
    size: float
    confidence: float
    doubt: str = ""

    def __str__(self) -> str:
        """Return the object in words."""
        name = f"{self.colour or 'unclear'} {self.shape or 'shape'}"
        return f"{name} at ({self.x:.0f}, {self.y:.0f})"


@dataclass(frozen=True)
class Reading:
    """What is in a picture: its objects, largest first, and what else is wrong with it."""

    objects: tuple[Seen, ...]
    fault: str = ""


def look(image: Any) -> Reading:
    """Read one picture: a PIL image or a uint8 RGB array [64, 64, 3]."""
    return look_all([image])[0]


def look_all(images: Any) -> list[Reading]:
    """Read many pictures: a sequence of PIL images or arrays, or a uint8 array [n, 64, 64, 3]."""
    readings: list[Reading] = []
    for start in range(0, len(images), _BLOCK):
        readings += _read(np.stack([_as_array(i) for i in images[start : start + _BLOCK]]))
    return readings


def frequencies(readings: Sequence[Reading], attribute: str = "colour") -> dict[str, float]:
    """Return how often each colour (or shape) occurs among all objects of the readings.

    The shares sum to 1 with those under "unclear"; without any object all are 0. Compare with
    the truth, `completions(caption)`.

    Args:
        readings: from `look_all`.
        attribute: "colour" or "shape".
    """
    if attribute not in ("colour", "shape"):
        raise InputError(f"attribute={attribute!r}: expected 'colour' or 'shape'")
    found = [getattr(s, attribute) or "unclear" for r in readings for s in r.objects]
    names = (*(COLOURS if attribute == "colour" else SHAPES), "unclear")
    return {name: found.count(name) / max(len(found), 1) for name in names}


def _as_array(image: Any) -> NDArray[np.uint8]:
    array = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if array.shape != (IMAGE_SIZE, IMAGE_SIZE, 3) or array.dtype != np.uint8:
        raise InputError(
            f"the oracle reads uint8 RGB pictures of {IMAGE_SIZE}x{IMAGE_SIZE} pixels, "
            f"got {array.dtype} {array.shape}"
        )
    return array


def _read(images: NDArray[np.uint8]) -> list[Reading]:
    """Return the readings of pictures [b, 64, 64, 3]."""
    pixels = images.astype(np.float32)
    # The median colour is the background's, as objects cover less than half of the picture.
    ground = np.median(pixels.reshape(len(pixels), -1, 3), axis=1)
    away = pixels - ground[:, None, None, :]
    regions = _regions(_share_of_colour(away) > _SOLID)
    # A region and its soft edge; where two edges meet, either may have the pixel.
    grown = ndimage.maximum_filter(regions, (1, 2 * REACH + 1, 2 * REACH + 1))
    reach = np.where(regions, regions, grown)

    # Averaged over 3x3 pixels, grain cancels and a faint object does not.
    calm = _share_of_colour(ndimage.uniform_filter(away, (1, 3, 3, 1)))
    stray = ((calm > _FAINT) & (reach == 0)).sum((1, 2))
    off = np.linalg.norm(ground - np.array(BACKGROUND, np.float32), axis=1)

    found: list[list[Seen]] = [[] for _ in images]
    for picture, seen in _recognise(pixels, ground, regions, reach):
        found[picture].append(seen)
    return [
        Reading(tuple(sorted(objects, key=lambda s: -s.size)), _fault(stray[i], off[i]))
        for i, objects in enumerate(found)
    ]


def _fault(stray: int, off: float) -> str:
    if off > _DARK:
        return "the background is not the world's dark one"
    return f"the background is not plain: {stray} stray pixels" if stray > _STRAY else ""


def _share_of_colour(away: Floats) -> Floats:
    """Return [b, 64, 64]: how much of an object's full colour each pixel holds (0 background).

    `away` is pixels minus background; full is the colour of the world that it points to most.
    """
    colours = np.array([RGB[c] for c in COLOURS], np.float32) - np.array(BACKGROUND, np.float32)
    lengths = np.linalg.norm(colours, axis=1)
    nearest = (away @ (colours / lengths[:, None]).T).argmax(-1)
    share: Floats = np.linalg.norm(away, axis=-1) / lengths[nearest]
    return share


def _regions(mask: NDArray[np.bool_]) -> Ints:
    """Return the connected regions of all pictures [b, 64, 64], numbered from 1, 0 elsewhere."""
    in_plane = np.zeros((3, 3, 3), bool)  # neighbours share an edge, and the picture
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    labels, _ = ndimage.label(mask, in_plane)
    keep = np.bincount(labels.ravel()) >= _SPECK
    keep[0] = False
    renumbered: Ints = np.where(keep, np.cumsum(keep), 0).astype(np.int32)[labels]
    return renumbered


def _recognise(
    pixels: Floats, ground: Floats, regions: Ints, reach: Ints
) -> list[tuple[int, Seen]]:
    """Return (picture, object) for every region."""
    boxes = ndimage.find_objects(regions)
    if not boxes:
        return []
    crops = crop(pixels, ground, regions, reach, boxes)
    colours = name_colours(crops)
    shapes, places = name_shapes(crops)
    return [
        (
            int(picture),
            Seen(
                shape=shape.name,
                colour=colour.name,
                x=float(x),
                y=float(y),
                size=float(size),
                confidence=min(shape.confidence, colour.confidence),
                doubt=", ".join(filter(None, (colour.doubt, shape.doubt))),
            ),
        )
        for picture, colour, shape, (x, y, size) in zip(
            crops.picture, colours, shapes, places, strict=True
        )
    ]
