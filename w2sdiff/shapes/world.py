"""The embedded world: endless true pictures of coloured shapes with captions that compose.

Sixty-four by sixty-four pixels, one to four objects on a dark ground, captions in the four
categories that GenEval (Ghosh et al. 2023, arXiv:2310.11513) made customary: a single object,
counting, colours of two objects, position. The language is in `captions` and `sampling`, the
drawing in `render`; here is what connects them: the distribution of scenes given a caption, and
`batch`, the data set.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from w2sdiff.errors import InputError
from w2sdiff.shapes.captions import (
    CATEGORIES,
    COUNTS,
    RELATIONS,
    SLOT_SIZES,
    VOCABULARY,
    Caption,
    Demand,
    Kind,
    parse,
)
from w2sdiff.shapes.render import (
    BACKGROUND,
    COLOURS,
    IMAGE_SIZE,
    RGB,
    SHAPES,
    Object,
    Scene,
    coverage,
    render,
)
from w2sdiff.shapes.sampling import (
    completions,
    evaluation_captions,
    is_held_out,
    open_captions,
    sample_caption,
)

__all__ = [
    "BACKGROUND",
    "CATEGORIES",
    "COLOURS",
    "COUNTS",
    "IMAGE_SIZE",
    "RELATIONS",
    "RGB",
    "SHAPES",
    "SLOT_SIZES",
    "STYLES",
    "VOCABULARY",
    "Caption",
    "Demand",
    "Kind",
    "Object",
    "Scene",
    "batch",
    "completions",
    "coverage",
    "evaluation_captions",
    "is_held_out",
    "open_captions",
    "parse",
    "render",
    "sample_caption",
    "sample_scene",
    "size_range",
]

# A style is the slice of the sizes' range that a scene uses: a narrower world inside the world,
# which the oracle measures exactly.
STYLES = {"any": (0.0, 1.0), "small": (0.0, 0.2), "large": (0.8, 1.0)}

_MARGIN = 2.0  # pixels between an object and the edge of the picture
_GAP = 3.0  # pixels between the boxes of two objects
_CLEAR = 6.0  # by how many pixels the direction that a relation names outweighs the other one
_TINT = 10.0  # the largest change of a colour's R, G and B
_SHADE = 5.0  # the largest change of the background's brightness
_CANDIDATES = {1: 1, 2: 24, 3: 32, 4: 256}  # layouts tried at once; cost only, not distribution


def size_range(number: int, style: str = "any") -> tuple[float, float]:
    """Return the smallest and largest size (pixels) in a scene of this many objects and style.

    Sizes are uniform and independent in this range. Raises `InputError` for an unknown style.
    """
    if style not in STYLES:
        raise InputError(f"unknown style {style!r}: choose from {', '.join(STYLES)}")
    low, high = (16.0, 26.0) if number <= 2 else (16.0, 20.0)
    return tuple(low + share * (high - low) for share in STYLES[style])  # type: ignore[return-value]


def sample_scene(
    caption: Caption,
    rng: np.random.Generator,
    *,
    style: str = "any",
    colour_weights: Mapping[str, float] | None = None,
) -> Scene:
    """Draw a scene that obeys the caption.

    What the caption leaves open is uniform over `completions(caption)`, or, with
    `colour_weights` (colours not listed weigh 1), proportional to the product of the weights of
    the kinds in it. Positions are uniform over all layouts without overlap in which the relation
    holds clearly. `style` is one of `STYLES`.
    """
    kinds = _choose(completions(caption), rng, colour_weights)
    number = len(kinds)
    low, high = size_range(number, style)
    sizes = low + (high - low) * rng.random(number)
    places = _layout(sizes, caption.relation, rng)
    tints = _TINT * (2 * rng.random((number, 3)) - 1)
    shade = _SHADE * (2 * rng.random() - 1)
    return Scene(
        tuple(
            Object(shape, colour, x, y, size, (r, g, b))
            for (shape, colour), (x, y), size, (r, g, b) in zip(
                kinds, places.tolist(), sizes.tolist(), tints.tolist(), strict=True
            )
        ),
        (BACKGROUND[0] + shade, BACKGROUND[1] + shade, BACKGROUND[2] + shade),
    )


def batch(
    seed: int,
    n: int,
    *,
    start: int = 0,
    style: str = "any",
    category: str | None = None,
    open_share: float = 0.15,
    colour_weights: Mapping[str, float] | None = None,
    side: int = IMAGE_SIZE,
) -> tuple[list[str], NDArray[np.uint8]]:
    """Return items `start` .. `start + n - 1` of the endless training set with this seed.

    Item i of a seed is the same whatever the batch it comes in. Held-out combinations never
    occur. `side` is that of `render`; the other arguments are those of `sample_caption` and
    `sample_scene`.

    Returns:
        n captions, and their pictures: uint8 RGB, [n, side, side, 3].

    Example:
        >>> from w2sdiff.shapes.world import batch
        >>> captions, images = batch(seed=0, n=4)
        >>> images.shape
        (4, 64, 64, 3)
    """
    captions, scenes = [], []
    for index in range(start, start + n):
        rng = np.random.Generator(np.random.Philox(key=(seed, index)))
        caption = sample_caption(
            rng, category=category, open_share=open_share, colour_weights=colour_weights
        )
        captions.append(caption.text)
        scenes.append(sample_scene(caption, rng, style=style, colour_weights=colour_weights))
    return captions, render(scenes, side=side)


def _choose(
    options: tuple[tuple[Kind, ...], ...],
    rng: np.random.Generator,
    colour_weights: Mapping[str, float] | None,
) -> tuple[Kind, ...]:
    u = rng.random()
    if colour_weights is None or len(options) == 1:
        return options[int(u * len(options))]
    # Counted objects are alike and share one draw: their colour weighs once.
    weights = [
        math.prod(colour_weights.get(colour, 1.0) for _, colour in set(kinds)) for kinds in options
    ]
    if not any(weights):  # the caption names a colour of weight 0
        return options[int(u * len(options))]
    upto = list(itertools.accumulate(weights))
    return options[bisect.bisect_right(upto, u * upto[-1], hi=len(upto) - 1)]


@lru_cache(maxsize=8)
def _pairs(number: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return np.triu_indices(number, 1)


def _layout(
    sizes: NDArray[np.float64], relation: str | None, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return centres [number, 2], uniform over the layouts that are allowed (by rejection)."""
    number = len(sizes)
    low, room = (_MARGIN + sizes / 2)[:, None], (IMAGE_SIZE - 2 * _MARGIN - sizes)[:, None]
    one, two = _pairs(number)
    apart = (sizes[one] + sizes[two]) / 2 + _GAP
    while True:
        places = low + room * rng.random((_CANDIDATES[number], number, 2))
        if number == 1:
            return np.asarray(places[0])
        offset = places[:, one] - places[:, two]  # [candidates, pairs, 2]
        fits = (np.abs(offset).max(-1) >= apart).all(-1)
        if relation is not None:
            fits &= _holds(relation, offset[:, 0])
        if fits.any():
            first: NDArray[np.float64] = places[np.argmax(fits)]
            return first


def _holds(relation: str, offset: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether the relation holds clearly; `offset` [..., 2] is first minus second."""
    axis = 0 if relation in ("left of", "right of") else 1
    sign = -1.0 if relation in ("left of", "above") else 1.0
    clearly: NDArray[np.bool_] = sign * offset[..., axis] >= np.abs(offset[..., 1 - axis]) + _CLEAR
    return clearly
