"""The exact oracle: reads a picture of the embedded world back and compares it with a caption.

Nothing here is learned. Objects are found as connected regions that differ from the background;
an object's colour is the nearest prototype in Oklab (Ottosson 2020), its shape the one whose
template, drawn at the position and size that the object's moments dictate, overlaps it best.
Whatever is not clear is refused: a picture obeys its caption only if every object is recognised,
they are exactly those demanded, and there is nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from w2sdiff.errors import InputError
from w2sdiff.shapes.captions import Caption, parse
from w2sdiff.shapes.render import BACKGROUND, COLOURS, IMAGE_SIZE, RGB, SHAPES, coverage

__all__ = ["Reading", "Seen", "Verdict", "judge", "judge_all", "look", "look_all"]

Floats = NDArray[np.float32]

_BLOCK = 64  # pictures read at once
_REACH = 2  # pixels around an object's solid part that still belong to its edge
_WINDOW = 40  # side of the square in which an object is compared with the templates
_LARGEST = 34  # an object wider than this is no object of the world

# Limits, in the units of what they limit.
_SOLID = 0.5  # share of an object's colour above which a pixel is part of it
_FAINT = 0.3  # share above which a pixel is not plain background
_SPECK = 6  # solid regions smaller than this are ignored (pixels)
_STRAY = 16  # faint pixels outside of objects that are tolerated
_DARK = 40.0  # largest distance of the background from the world's (RGB)
_COLOUR = 0.11  # largest Oklab distance from a prototype
_COLOUR_MARGIN = 1.6  # how many times farther the second nearest prototype must be
_MOTTLED = 40.0  # largest root mean square deviation of an object's inner pixels (RGB)
_OVERLAP = 0.80  # least intersection over union with the best template
_OVERLAP_MARGIN = 0.03  # by how much the best template must beat the second
_BLURS = (0.0, 0.8, 1.4)  # a soft edge is no reason for doubt: templates are also tried blurred

# Of each shape drawn at size 1: the area, and how far its centroid lies below its centre.
_AREA = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5, "cross": 1 - 0.58**2}
_CENTROID = {"circle": 0.0, "square": 0.0, "triangle": 1 / 6, "cross": 0.0}


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


@dataclass(frozen=True)
class Verdict:
    """Whether a picture obeys its caption; `why` says in words why not (or that all is well)."""

    obeyed: bool
    why: str
    objects: tuple[Seen, ...]

    def __bool__(self) -> bool:
        return self.obeyed


def look(image: Any) -> Reading:
    """Read one picture: a PIL image or a uint8 RGB array [64, 64, 3]."""
    return look_all([image])[0]


def look_all(images: Any) -> list[Reading]:
    """Read many pictures: a sequence of PIL images or arrays, or a uint8 array [n, 64, 64, 3]."""
    readings: list[Reading] = []
    for start in range(0, len(images), _BLOCK):
        readings += _read(np.stack([_as_array(i) for i in images[start : start + _BLOCK]]))
    return readings


def judge(image: Any, caption: str | Caption) -> Verdict:
    """Decide whether a picture obeys a caption.

    Obeyed means: exactly the demanded objects are there, every one recognised with confidence,
    the relation holds, and there is nothing else in the picture. "left of" holds if the first
    centre is left of the second by more than it is above or below it; so do the other three.

    Args:
        image: PIL image or uint8 RGB array [64, 64, 3].
        caption: a caption of the world, as text or parsed.

    Raises:
        InputError: the text is no caption of the world, or the picture has another size.

    Example:
        >>> from w2sdiff.shapes.oracle import judge
        >>> from w2sdiff.shapes.render import Object, Scene, render
        >>> image = render(Scene((Object("circle", "red", x=32, y=32, size=20),)))[0]
        >>> judge(image, "a red circle").obeyed, judge(image, "a blue circle").why
        (True, 'expected a blue circle, found a red circle')
    """
    return judge_all([image], [caption])[0]


def judge_all(images: Any, captions: Sequence[str | Caption]) -> list[Verdict]:
    """Decide for many pictures at once, each with its own caption; see `judge`."""
    if len(images) != len(captions):
        raise InputError(f"{len(images)} pictures, but {len(captions)} captions: one each, please")
    parsed = [parse(c) if isinstance(c, str) else c for c in captions]
    return [_decide(r, c) for r, c in zip(look_all(images), parsed, strict=True)]


def _decide(reading: Reading, caption: Caption) -> Verdict:
    seen, demands = reading.objects, caption.demands
    if reading.fault:
        return Verdict(False, reading.fault, seen)
    if len(seen) != len(demands):
        objects = "object" if len(demands) == 1 else "objects"
        return Verdict(False, f"expected {len(demands)} {objects}, found {len(seen)}", seen)
    if doubtful := [s for s in seen if s.doubt]:
        return Verdict(
            False,
            f"the object at ({doubtful[0].x:.0f}, {doubtful[0].y:.0f}) "
            f"is not clear: {doubtful[0].doubt}",
            seen,
        )
    complaints = [_complaints(order, caption) for order in itertools.permutations(seen)]
    fewest = min(complaints, key=len)
    return Verdict(not fewest, "; ".join(fewest) or "all as the caption says", seen)


def _complaints(seen: Sequence[Seen], caption: Caption) -> list[str]:
    """Return what is wrong if the i-th object is meant to be the i-th demanded."""
    wrong = [
        f"expected a {demand.phrase()}, found a {s.colour} {s.shape}"
        for s, demand in zip(seen, caption.demands, strict=True)
        if not demand.admits((s.shape or "", s.colour or ""))
    ]
    if caption.relation and (found := _relation(seen[0], seen[1])) != caption.relation:
        one, two = (d.phrase() for d in caption.demands)
        wrong.append(f"expected the {one} {caption.relation} the {two}, found it {found}")
    return wrong


def _relation(first: Seen, second: Seen) -> str:
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def _as_array(image: Any) -> NDArray[np.uint8]:
    array = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if array.shape != (IMAGE_SIZE, IMAGE_SIZE, 3) or array.dtype != np.uint8:
        raise InputError(
            f"the oracle reads uint8 RGB pictures of {IMAGE_SIZE}x{IMAGE_SIZE} pixels, "
            f"got {array.dtype} {array.shape}"
        )
    return array


# Reading a block of pictures. `b` pictures, `m` objects in all of them together.


def _read(images: NDArray[np.uint8]) -> list[Reading]:
    """Return the readings of uint8 pictures [b, 64, 64, 3]."""
    pixels = images.astype(np.float32)
    ground = np.median(pixels.reshape(len(pixels), -1, 3), axis=1)  # objects cover less than half
    away = pixels - ground[:, None, None, :]
    share = _share_of_colour(away)
    regions, solid = _regions(share > _SOLID)
    # A region and its soft edge; where two edges meet either may have the pixel.
    reach = np.where(regions, regions, ndimage.maximum_filter(regions, (1, *(2 * _REACH + 1,) * 2)))
    # Averaged over 3x3 pixels, grain cancels and a faint object does not.
    calm = _share_of_colour(ndimage.uniform_filter(away, (1, 3, 3, 1)))
    stray = ((calm > _FAINT) & (reach == 0)).sum((1, 2))
    too_bright = np.linalg.norm(ground - np.array(BACKGROUND), axis=1) > _DARK

    objects = _measure(pixels, away, ground, regions, reach, solid)
    readings = []
    for index in range(len(images)):
        found = sorted((s for i, s in objects if i == index), key=lambda s: -s.size)
        fault = ""
        if too_bright[index]:
            fault = "the background is not the world's dark one"
        elif stray[index] > _STRAY:
            fault = f"the background is not plain: {stray[index]} stray pixels"
        readings.append(Reading(tuple(found), fault))
    return readings


def _share_of_colour(away: Floats) -> Floats:
    """Return [b, 64, 64]: how much of an object's full colour each pixel holds (0 background)."""
    prototypes = np.array([RGB[c] for c in COLOURS], np.float32) - np.array(BACKGROUND, np.float32)
    lengths = np.linalg.norm(prototypes, axis=1)
    kind = (away @ (prototypes / lengths[:, None]).T).argmax(-1)
    share: Floats = np.linalg.norm(away, axis=-1) / lengths[kind]
    return share


def _regions(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], list[tuple[slice, ...]]]:
    """Return the connected regions of each picture, numbered from 1, and their boxes."""
    in_plane = np.zeros((3, 3, 3), bool)  # neighbours share an edge, and the picture
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    labels, number = ndimage.label(mask, in_plane)
    areas = np.bincount(labels.ravel(), minlength=number + 1)
    keep = areas >= _SPECK
    keep[0] = False
    renumbered = np.where(keep, np.cumsum(keep), 0).astype(np.int32)[labels]
    return renumbered, ndimage.find_objects(renumbered)


def _measure(
    pixels: Floats,
    away: Floats,
    ground: Floats,
    regions: NDArray[np.int32],
    reach: NDArray[np.int32],
    boxes: list[tuple[slice, ...]],
) -> list[tuple[int, Seen]]:
    """Return (picture, object) for every region."""
    if not boxes:
        return []
    m = len(boxes)
    numbers = np.arange(1, m + 1)
    picture = np.array([box[0].start for box in boxes])
    corners = np.array([[(s.start, s.stop) for s in box[1:]] for box in boxes])  # [m, (y, x), 2]

    # The window around each object, cut from padded arrays so that it may hang over the edge.
    pad = _WINDOW // 2
    origin = corners.sum(-1) // 2 - pad  # [m, (y, x)] in picture coordinates
    rows = origin[:, 0, None, None] + np.arange(_WINDOW)[:, None] + pad
    columns = origin[:, 1, None, None] + np.arange(_WINDOW) + pad
    where = (picture[:, None, None], rows, columns)
    border = ((0, 0), (pad, pad), (pad, pad))
    solid = np.pad(regions, border)[where] == numbers[:, None, None]
    within = np.pad(reach, border)[where] == numbers[:, None, None]
    colours = np.pad(pixels, (*border, (0, 0)))[where]  # [m, W, W, 3]
    contrast = np.pad(away, (*border, (0, 0)))[where]

    # Colour: the mean of the pixels whose neighbours all belong to the object as well.
    core = ndimage.minimum_filter(solid, (1, 3, 3))
    core = np.where(core.any((1, 2))[:, None, None], core, solid)
    weight = core / core.sum((1, 2), keepdims=True)
    mean = np.einsum("mij,mijc->mc", weight, colours)
    spread = ((colours - mean[:, None, None]) ** 2).sum(-1)
    mottled = np.sqrt((weight * spread).sum((1, 2)))
    names, colour_doubts, colour_confidence = _name_colours(mean, mottled)

    # Shape: how much of that colour each pixel holds, then moments, then templates.
    full = mean - ground[picture]
    share = np.einsum("mijc,mc->mij", contrast, full) / (full**2).sum(-1)[:, None, None]
    share = np.where(within, share, 0).astype(np.float32)
    area = share.sum((1, 2))
    centres = np.arange(_WINDOW, dtype=np.float32) + 0.5
    cx = (share.sum(1) * centres).sum(1) / area
    cy = (share.sum(2) * centres).sum(1) / area
    overlaps, sizes, tops = _compare(np.clip(share, 0, 1), area, cx, cy)

    order = np.argsort(-overlaps, axis=1)
    each = np.arange(m)
    best, second = overlaps[each, order[:, 0]], overlaps[each, order[:, 1]]
    extent = (corners[..., 1] - corners[..., 0]).max(-1)
    seen = []
    for i in range(m):
        s = order[i, 0]
        doubts = [colour_doubts[i]] if colour_doubts[i] else []
        clear = best[i] >= _OVERLAP and best[i] - second[i] >= _OVERLAP_MARGIN
        clear = clear and extent[i] <= _LARGEST
        if not clear:
            doubts.append(
                f"overlaps a {SHAPES[s]} by {best[i]:.2f}, "
                f"a {SHAPES[order[i, 1]]} by {second[i]:.2f}"
            )
        certainty = min((best[i] - _OVERLAP) / (1 - _OVERLAP), (best[i] - second[i]) / 0.1)
        seen.append(
            (
                int(picture[i]),
                Seen(
                    shape=SHAPES[s] if clear else None,
                    colour=names[i],
                    x=float(origin[i, 1] + cx[i]),
                    y=float(origin[i, 0] + tops[i, s]),
                    size=float(sizes[i, s]),
                    confidence=float(np.clip(min(certainty, colour_confidence[i]), 0, 1)),
                    doubt=", ".join(doubts),
                ),
            )
        )
    return seen


def _compare(share: Floats, area: Floats, cx: Floats, cy: Floats) -> tuple[Floats, Floats, Floats]:
    """Compare m objects [m, W, W] with every template.

    Returns three [m, shapes] arrays: intersection over union with the template of the same area
    and centroid, the template's size, and the y of its centre.
    """
    grid = np.arange(_WINDOW, dtype=np.float32) + np.float32(0.5)
    dx = grid[None, None, :] - cx[:, None, None]
    overlaps, sizes, middles = [], [], []
    for shape in SHAPES:
        size = np.sqrt(np.maximum(area, 1) / np.float32(_AREA[shape]))
        middle = cy - np.float32(_CENTROID[shape]) * size
        dy = grid[None, :, None] - middle[:, None, None]
        template = coverage(shape, dx, dy, size[:, None, None])
        tried = []
        for blur in _BLURS:
            soft = ndimage.gaussian_filter(template, (0, blur, blur)) if blur else template
            tried.append(np.minimum(share, soft).sum((1, 2)) / np.maximum(share, soft).sum((1, 2)))
        overlaps.append(np.max(tried, axis=0))
        sizes.append(size)
        middles.append(middle)
    return np.stack(overlaps, 1), np.stack(sizes, 1), np.stack(middles, 1)


def _name_colours(mean: Floats, mottled: Floats) -> tuple[list[str | None], list[str], Floats]:
    """Return for m mean colours [m, 3] (RGB 0..255): name or None, doubt, confidence."""
    prototypes = _oklab(np.array([RGB[c] for c in COLOURS], np.float32))
    distance = np.linalg.norm(_oklab(mean)[:, None] - prototypes, axis=-1)
    order = np.argsort(distance, axis=1)
    names: list[str | None] = []
    doubts = []
    for row, (first, second), rough in zip(distance, order[:, :2], mottled, strict=True):
        near, next_near = row[first], row[second]
        if rough > _MOTTLED:
            doubt = "more than one colour"
        elif near > _COLOUR or next_near < _COLOUR_MARGIN * near:
            doubt = f"its colour is {near:.2f} from {COLOURS[first]}"
        else:
            doubt = ""
        names.append(None if doubt else COLOURS[first])
        doubts.append(doubt)
    return names, doubts, 1 - distance.min(1) / np.float32(_COLOUR)


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
