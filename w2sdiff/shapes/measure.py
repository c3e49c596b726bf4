"""Naming the colour and the shape of objects that were found in pictures.

The colour is the nearest prototype in Oklab (Ottosson 2020). The shape is the one whose template,
drawn at the position and size that the object's moments dictate, overlaps the object best. Both
are refused where the nearest is not near, or the second nearest is about as near.

`m` objects are handled at once, each in a window of `W` x `W` pixels around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from w2sdiff.shapes.render import ARM, COLOURS, RGB, SHAPES, coverage

__all__ = ["REACH", "Crops", "Floats", "Ints", "Name", "crop", "name_colours", "name_shapes"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

REACH = 2  # pixels around an object's solid part that still belong to its edge
_WINDOW = 40

_COLOUR = 0.11  # largest Oklab distance from a prototype
_COLOUR_MARGIN = 1.6  # how many times farther the second nearest prototype must be
_MOTTLED = 40.0  # largest root mean square deviation of an object's inner pixels (RGB)
_OVERLAP = 0.86  # least intersection over union with the best template
_OVERLAP_MARGIN = 0.05  # by how much the best template must beat the second
_LARGEST = 34  # an object wider than this is no object of the world
_BLURS = (0.0, 0.8, 1.4)  # a soft edge is no reason for doubt: templates are also tried blurred

# Of each shape drawn at size 1: the area, and how far its centroid lies below its centre.
_AREA = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5, "cross": 1 - (1 - ARM) ** 2}
_CENTROID = {"circle": 0.0, "square": 0.0, "triangle": 1 / 6, "cross": 0.0}


@dataclass(frozen=True)
class Name:
    """A name, or None and the doubt; `confidence` is 1 at the ideal and 0 where doubt begins."""

    name: str | None
    confidence: float
    doubt: str = ""


@dataclass(frozen=True)
class Crops:
    """Windows around m objects, cut from their pictures.

    Attributes:
        picture: [m] index of the picture each is in.
        origin: [m, 2] x, y of the window's corner in the picture.
        extent: [m] the longer side of the object's box.
        colour: [m, 3] mean inner colour (RGB 0..255).
        mottled: [m] root mean square deviation from it.
        share: [m, W, W] how much of that colour each pixel holds, 0 outside of the object.
    """

    picture: NDArray[np.int64]
    origin: NDArray[np.int64]
    extent: NDArray[np.int64]
    colour: Floats
    mottled: Floats
    share: Floats


def crop(
    pixels: Floats,
    ground: Floats,
    regions: Ints,
    reach: Ints,
    boxes: list[tuple[slice, ...]],
) -> Crops:
    """Cut the m objects out of b pictures.

    Args:
        pixels: [b, H, W, 3].
        ground: [b, 3] background colours.
        regions: [b, H, W] the objects' solid parts, numbered from 1.
        reach: the same with their soft edges.
        boxes: of each object, the slices (picture, rows, columns) it fills.
    """
    number = np.arange(1, len(boxes) + 1)[:, None, None]
    picture = np.array([box[0].start for box in boxes])
    corners = np.array([[(s.start, s.stop) for s in box[1:]] for box in boxes])  # [m, (y, x), 2]
    pad = _WINDOW // 2  # padded, so that windows may hang over the picture's edge
    origin = corners.sum(-1) // 2 - pad
    rows = origin[:, 0, None, None] + np.arange(_WINDOW)[:, None] + pad
    columns = origin[:, 1, None, None] + np.arange(_WINDOW) + pad
    where = (picture[:, None, None], rows, columns)
    border = ((0, 0), (pad, pad), (pad, pad))
    solid = np.pad(regions, border)[where] == number
    within = np.pad(reach, border)[where] == number
    window = np.pad(pixels, (*border, (0, 0)))[where]

    # Inner pixels are those whose neighbours all belong to the object as well.
    inner = ndimage.minimum_filter(solid, (1, 3, 3))
    inner = np.where(inner.any((1, 2))[:, None, None], inner, solid)
    weight = inner / inner.sum((1, 2), keepdims=True)
    colour = np.einsum("mij,mijc->mc", weight, window)
    spread = ((window - colour[:, None, None]) ** 2).sum(-1)

    full = colour - ground[picture]
    away = window - ground[picture][:, None, None]
    share = np.einsum("mijc,mc->mij", away, full)
    share /= np.maximum((full**2).sum(-1), 1)[:, None, None]
    return Crops(
        picture=picture,
        origin=origin[:, ::-1],
        extent=(corners[..., 1] - corners[..., 0]).max(-1),
        colour=colour.astype(np.float32),
        mottled=np.sqrt((weight * spread).sum((1, 2))).astype(np.float32),
        share=np.where(within, share, 0).astype(np.float32),
    )


def name_colours(crops: Crops) -> list[Name]:
    """Name the m colours."""
    prototypes = _oklab(np.array([RGB[c] for c in COLOURS], np.float32))
    distances = np.linalg.norm(_oklab(crops.colour)[:, None] - prototypes, axis=-1)
    return [_name_colour(*pair) for pair in zip(distances, crops.mottled, strict=True)]


def _name_colour(distances: Floats, mottled: float) -> Name:
    first, second = np.argsort(distances)[:2]
    if mottled > _MOTTLED:
        return Name(None, 0.0, "it has more than one colour")
    if distances[first] > _COLOUR or distances[second] < _COLOUR_MARGIN * distances[first]:
        near = " or ".join(COLOURS[i] for i in (first, second))
        return Name(None, 0.0, f"its colour is no clear {near}")
    return Name(COLOURS[first], float(1 - distances[first] / _COLOUR))


def name_shapes(crops: Crops) -> tuple[list[Name], Floats]:
    """Name the m shapes; also return [m, 3] x, y, size in the picture, as if of that shape."""
    overlaps, places = _compare(crops.share)
    best = overlaps.argmax(1)
    chosen = places[np.arange(len(best)), best]
    chosen[:, :2] += crops.origin
    return [_name_shape(*pair) for pair in zip(overlaps, crops.extent, strict=True)], chosen


def _name_shape(overlaps: Floats, extent: int) -> Name:
    second, first = np.argsort(overlaps)[-2:]
    best, margin = overlaps[first], overlaps[first] - overlaps[second]
    if extent > _LARGEST:
        return Name(None, 0.0, f"it is {extent} pixels wide")
    if best < _OVERLAP:
        return Name(None, 0.0, f"it overlaps even a {SHAPES[first]} by only {best:.2f}")
    if margin < _OVERLAP_MARGIN:
        near = " or ".join(SHAPES[i] for i in (first, second))
        return Name(None, 0.0, f"its shape is no clear {near}")
    certain = min((best - _OVERLAP) / (1 - _OVERLAP), margin / _OVERLAP_MARGIN - 1, 1)
    return Name(SHAPES[first], float(certain))


def _compare(share: Floats) -> tuple[Floats, Floats]:
    """Compare m objects [m, W, W] with the template of each shape of equal area and centroid.

    Returns [m, shapes] intersection over union (of fractional coverages), and
    [m, shapes, 3] x, y, size of the templates in the window.
    """
    grid = np.arange(_WINDOW, dtype=np.float32) + np.float32(0.5)
    area = np.maximum(share.sum((1, 2)), 1)
    x = share.sum(1) @ grid / area
    centroid = share.sum(2) @ grid / area
    share = np.clip(share, 0, 1)
    overlaps, places = [], []
    for shape in SHAPES:
        size = np.sqrt(area / np.float32(_AREA[shape]))
        y = centroid - np.float32(_CENTROID[shape]) * size
        template = coverage(
            shape,
            grid[None, None, :] - x[:, None, None],
            grid[None, :, None] - y[:, None, None],
            size[:, None, None],
        )
        overlaps.append(np.max([_overlap(share, _soften(template, b)) for b in _BLURS], axis=0))
        places.append(np.stack([x, y, size], 1))
    return np.stack(overlaps, 1), np.stack(places, 1)


def _soften(template: Floats, blur: float) -> Floats:
    soft: Floats = ndimage.gaussian_filter(template, (0, blur, blur)) if blur else template
    return soft


def _overlap(one: Floats, two: Floats) -> Floats:
    shared: Floats = np.minimum(one, two).sum((1, 2)) / np.maximum(one, two).sum((1, 2))
    return shared


def _oklab(rgb: NDArray[Any]) -> NDArray[Any]:
    """Convert sRGB (0..255, last axis) to Oklab (lightness 0..1)."""
    value = np.clip(rgb, 0, 255) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    lab: NDArray[Any] = np.cbrt(linear @ to_lms.T) @ to_lab.T
    return lab
