"""The pictures of the embedded world: what a scene is, and how it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from w2sdiff.errors import InputError

__all__ = [
    "ARM",
    "BACKGROUND",
    "COLOURS",
    "IMAGE_SIZE",
    "RGB",
    "SHAPES",
    "Object",
    "Scene",
    "coverage",
    "render",
]

IMAGE_SIZE = 64
SHAPES = ("circle", "square", "triangle", "cross")
# About 60 degrees of hue apart, all far from the background, so that a blurred edge (a mix with
# the background) changes brightness but not which colour it is nearest to.
RGB: dict[str, tuple[int, int, int]] = {
    "red": (226, 58, 52),
    "yellow": (248, 208, 60),
    "green": (62, 172, 76),
    "cyan": (84, 214, 226),
    "blue": (58, 96, 236),
    "pink": (238, 110, 200),
}
COLOURS = tuple(RGB)
BACKGROUND = (30.0, 32.0, 40.0)

_BLOCK = 64  # scenes drawn at once, so that the canvas stays in the cache
ARM = 0.42  # width of a cross's arms as a share of its size


@dataclass(frozen=True)
class Object:
    """One coloured shape; `x, y` is the centre and `size` the side of the square it just fits in.

    Units are pixels, the origin is the upper left corner of the picture, `y` grows downwards.
    `tint` is added to the colour's RGB prototype (0..255 units).
    """

    shape: str
    colour: str
    x: float
    y: float
    size: float
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Scene:
    """Objects on a plain background (RGB, 0..255); later objects are drawn over earlier ones."""

    objects: tuple[Object, ...]
    background: tuple[float, float, float] = BACKGROUND


def coverage(
    shape: str, dx: NDArray[np.float32], dy: NDArray[np.float32], size: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the share (0..1) of each pixel that the shape covers.

    `dx, dy` are the pixel centres relative to the shape's centre and `size` its size, in pixels;
    the three broadcast. The edge is one pixel wide: half minus the signed distance, clipped.
    """
    half = size / 2
    if shape == "circle":
        distance = np.sqrt(dx * dx + dy * dy) - half
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - half
    elif shape == "triangle":  # apex up, base below; the sides rise two for each one across
        sides = (2 * np.abs(dx) - dy - half) * np.float32(5**-0.5)
        distance = np.maximum(sides, dy - half)
    elif shape == "cross":
        across, along = np.abs(dx), np.abs(dy)
        longer, shorter = np.maximum(across, along), np.minimum(across, along)
        distance = np.maximum(longer - half, shorter - half * np.float32(ARM))
    else:
        raise InputError(f"unknown shape {shape!r}: the world has {', '.join(SHAPES)}")
    covered: NDArray[np.float32] = np.clip(np.float32(0.5) - distance, 0, 1)
    return covered


def render(scenes: Scene | Sequence[Scene], *, side: int = IMAGE_SIZE) -> NDArray[np.uint8]:
    """Draw scenes.

    Args:
        scenes: one scene or a sequence of n.
        side: pixels per side; the scene, whose unit is a pixel of 64, is enlarged to fill them.

    Returns:
        uint8 RGB, [n, side, side, 3] (n = 1 for a single scene).

    Example:
        >>> from w2sdiff.shapes.render import Object, Scene, render
        >>> render(Scene((Object("circle", "red", x=32, y=32, size=20),))).shape
        (1, 64, 64, 3)
    """
    scenes = [scenes] if isinstance(scenes, Scene) else list(scenes)
    if side != IMAGE_SIZE:
        scenes = [_enlarged(scene, side / IMAGE_SIZE) for scene in scenes]
    pictures = np.empty((len(scenes), side, side, 3), np.uint8)
    for start in range(0, len(scenes), _BLOCK):
        block = slice(start, start + _BLOCK)
        pictures[block] = _render_block(scenes[block], side)
    return pictures


def _enlarged(scene: Scene, times: float) -> Scene:
    objects = tuple(
        replace(o, x=o.x * times, y=o.y * times, size=o.size * times) for o in scene.objects
    )
    return replace(scene, objects=objects)


def _render_block(scenes: Sequence[Scene], side: int) -> NDArray[np.uint8]:
    largest = max((obj.size for scene in scenes for obj in scene.objects), default=0.0)
    window = int(np.ceil(largest)) + 3
    # The margin lets a window hang over the edge of the picture without any special case.
    wide = side + 2 * window
    canvas = np.empty((len(scenes), wide, wide, 3), np.float32)
    canvas[:] = np.array([s.background for s in scenes], np.float32).reshape(-1, 1, 1, 3)

    # Layer by layer (the first objects of all scenes, then the second ones, ...): within a layer
    # and a shape no two objects touch the same picture, so each group is one vectorised blend.
    for layer in range(max((len(s.objects) for s in scenes), default=0)):
        for shape in sorted({s.objects[layer].shape for s in scenes if len(s.objects) > layer}):
            group = [
                (index, scene.objects[layer])
                for index, scene in enumerate(scenes)
                if len(scene.objects) > layer and scene.objects[layer].shape == shape
            ]
            _draw(canvas, group, shape, window, side)

    picture = canvas[:, window:-window, window:-window]
    return np.rint(np.clip(picture, 0, 255)).astype(np.uint8)


def _draw(
    canvas: NDArray[np.float32],
    group: list[tuple[int, Object]],
    shape: str,
    window: int,
    side: int,
) -> None:
    index = np.array([i for i, _ in group])[:, None, None]
    centre = np.array([(o.x, o.y) for _, o in group], np.float32)
    if not ((centre >= 0) & (centre <= side)).all():
        raise InputError(f"an object's centre lies outside the picture (0..{side} pixels)")
    size = np.array([o.size for _, o in group], np.float32)[:, None, None]
    try:
        colour = np.array([RGB[o.colour] for _, o in group], np.float32)
    except KeyError as error:
        raise InputError(f"unknown colour {error}: the world has {', '.join(COLOURS)}") from None
    colour += np.array([o.tint for _, o in group], np.float32)

    corner = np.floor(centre - window / 2).astype(np.int64)  # [m, 2] of each object's window
    across = corner[:, :1] + np.arange(window)  # [m, window] pixel columns
    down = corner[:, 1:] + np.arange(window)
    dx = (across + np.float32(0.5) - centre[:, :1]).astype(np.float32)[:, None, :]
    dy = (down + np.float32(0.5) - centre[:, 1:]).astype(np.float32)[:, :, None]
    covered = coverage(shape, dx, dy, size)[..., None]

    where = (index, down[:, :, None] + window, across[:, None, :] + window)
    below = canvas[where]
    canvas[where] = below + covered * (colour[:, None, None, :] - below)
