"""What the judge is trained on: right and partly wrong pictures, and what the oracle sees there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from w2sdiff.shapes.alter import ALTERATIONS, alter
from w2sdiff.shapes.captions import RELATIONS, SLOT_SIZES, Caption, parse
from w2sdiff.shapes.look import Reading, look_all
from w2sdiff.shapes.render import COLOURS, IMAGE_SIZE, SHAPES, render
from w2sdiff.shapes.sampling import completions, is_held_out, sample_caption
from w2sdiff.shapes.train.vae import decode, encode
from w2sdiff.shapes.world import sample_scene

__all__ = ["GROUP", "Pictures", "altered", "make_pictures", "obeys", "obeys_slots"]

GROUP = 4  # a caption and its alterations, each with a picture: the hard negatives of one another
_CHUNK = 256
_MOST = 4  # objects in a picture


@dataclass(frozen=True)
class Pictures:
    """Pictures with their captions and readings.

    Attributes:
        pixels: uint8 [n, 64, 64, 3]; every `GROUP` in a row belong together.
        captions: what each was meant to show; a partly wrong picture does not.
        objects: int64 [n]: how many the oracle sees; -1 where anything is not clear.
        kinds: int64 [n, 4, 2]: shape and colour of each object, -1 where there is none.
        places: float32 [n, 4, 3]: centre (x, y) and size of each object, in pixels.
    """

    pixels: Tensor
    captions: list[Caption]
    objects: Tensor
    kinds: Tensor
    places: Tensor

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.objects)


def altered(
    caption: Caption, rng: np.random.Generator, kinds: tuple[str, ...] = ALTERATIONS
) -> Caption:
    """Return a caption with one thing altered, of these kinds, never of a held-out combination."""
    while True:
        other = alter(caption, kinds[int(rng.integers(len(kinds)))], rng)
        if other is not None and not is_held_out(completions(other)[0]):
            return other


def make_pictures(vae: Any, size: int, file: Path, *, seed: int) -> Pictures:
    """Make `size` pictures, or read them from `file`.

    Two fifths are as rendered. A third went through the codec, with some noise on the latents; the
    rest are latents of two pictures mixed, in a rectangle or all over, so that objects are cut,
    faint, missing or too many. What is in each is what the oracle reads off it.
    """
    if not file.is_file():
        parts = [
            _chunk(vae, min(_CHUNK, size - start), seed=seed, start=start)
            for start in range(0, size, _CHUNK)
        ]
        tensors = {
            name: torch.cat([getattr(p, name) for p in parts])
            for name in ("pixels", "objects", "kinds", "places")
        }
        captions = "\n".join(c.text for p in parts for c in p.captions)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(file.name + ".part")
        save_file(tensors, part, metadata={"captions": captions})
        part.replace(file)
    with safe_open(file, framework="pt") as opened:
        captions = opened.metadata()["captions"]
    return Pictures(captions=[parse(text) for text in captions.split("\n")], **load_file(file))


def obeys(pictures: Pictures, captions: list[Caption]) -> Tensor:
    """Return which picture obeys which caption, bool [n, m]: the oracle's rule on its readings."""
    return obeys_slots(
        pictures.objects,
        pictures.kinds,
        pictures.places,
        torch.tensor([c.slots for c in captions]),
    )


def obeys_slots(objects: Tensor, kinds: Tensor, places: Tensor, slots: Tensor) -> Tensor:
    """Return which reading obeys which caption, bool [n, m], all at once.

    Args:
        objects: int64 [n].
        kinds: int64 [n, 4, 2].
        places: float32 [n, 4, 3].
        slots: `Caption.slots` of m captions, int64 [m, 7].
    """
    assert slots.shape[1] == len(SLOT_SIZES)
    category, number = slots[:, 0], slots[:, 1]
    first, second, relation = slots[:, 2:4], slots[:, 4:6], slots[:, 6]

    def admits(demand: Tensor, index: int) -> Tensor:
        seen = kinds[:, None, index] + 1  # 0 stands for open in a demand
        return ((demand == 0) | (demand == seen)).all(-1)

    def related(one: int, two: int) -> Tensor:
        dx, dy = (places[:, one, :2] - places[:, two, :2]).unbind(-1)
        found = torch.where(dx.abs() > dy.abs(), (dx >= 0).long(), 2 + (dy >= 0).long())
        return (relation == 0) | (relation == 1 + found[:, None])

    equal = torch.stack([admits(first, i) | (objects[:, None] <= i) for i in range(_MOST)]).all(0)
    either = (admits(first, 0) & admits(second, 1) & related(0, 1)) | (
        admits(first, 1) & admits(second, 0) & related(1, 0)
    )
    pair = category >= 2  # "colours" and "position"
    return (objects[:, None] == number) & torch.where(pair, either, equal)


def _chunk(vae: Any, size: int, *, seed: int, start: int) -> Pictures:
    rng = np.random.Generator(np.random.Philox(key=(seed, start)))
    captions: list[Caption] = []
    while len(captions) < size:
        caption = sample_caption(rng)
        captions += [caption, *(altered(caption, rng) for _ in range(GROUP - 1))]
    captions = captions[:size]
    pixels = render([sample_scene(caption, rng) for caption in captions])
    spoilt = _spoil(vae, pixels, rng)
    readings = look_all(spoilt)
    # What is held out must never be seen, not even by an accident of mixing.
    taken = [i for i, r in enumerate(readings) if _held_out(r)]
    spoilt[taken] = pixels[taken]
    for i, reading in zip(taken, look_all(pixels[taken]) if taken else [], strict=True):
        readings[i] = reading
    return Pictures(torch.from_numpy(spoilt), captions, *_as_tensors(readings))


def _held_out(reading: Reading) -> bool:
    kinds = [(s.shape, s.colour) for s in reading.objects if s.shape and s.colour]
    return len(kinds) in (2, 3, 4) and is_held_out(kinds)


def _spoil(vae: Any, pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Send three fifths of the pictures [n, 64, 64, 3] through the codec, two fifths mixed."""
    fate = rng.random(len(pixels))
    chosen = np.flatnonzero(fate > 0.4)
    if not len(chosen):
        return pixels.copy()
    latents = encode(vae, pixels[chosen])
    others = latents[torch.from_numpy(rng.permutation(len(chosen)))]
    share = torch.ones(len(chosen), 1, 8, 8)
    for row, index in enumerate(chosen):
        if fate[index] < 0.73:
            continue
        if rng.random() < 0.5:  # all over
            share[row] = float(rng.uniform(0.5, 0.9))
        else:  # a rectangle of the other picture
            x, y = rng.integers(0, 5, 2)
            w, h = rng.integers(2, 6, 2)
            share[row, :, y : y + h, x : x + w] = float(rng.uniform(0.0, 0.4))
    noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
    strength = torch.from_numpy(rng.uniform(0.0, 0.3, (len(chosen), 1, 1, 1)).astype(np.float32))
    made = pixels.copy()
    made[chosen] = decode(vae, share * latents + (1 - share) * others + strength * noise)
    return made


def _as_tensors(readings: list[Reading]) -> tuple[Tensor, Tensor, Tensor]:
    objects = torch.full((len(readings),), -1)
    kinds = torch.full((len(readings), _MOST, 2), -1)
    places = torch.zeros(len(readings), _MOST, 3)
    for row, reading in enumerate(readings):
        seen = reading.objects
        if reading.fault or len(seen) > _MOST or any(s.doubt for s in seen):
            continue
        objects[row] = len(seen)
        for column, s in enumerate(seen):
            assert s.shape is not None
            assert s.colour is not None
            kinds[row, column] = torch.tensor([SHAPES.index(s.shape), COLOURS.index(s.colour)])
            places[row, column] = torch.tensor([s.x, s.y, s.size])
    return objects, kinds, places


assert RELATIONS == ("left of", "right of", "above", "below")  # the order that `related` counts in
assert IMAGE_SIZE == 64
