"""Drawing captions of the embedded world, and which combinations training never sees."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from w2sdiff.errors import InputError
from w2sdiff.shapes.captions import CATEGORIES, COUNTS, RELATIONS, Caption, Demand, Kind
from w2sdiff.shapes.render import COLOURS, SHAPES

__all__ = [
    "completions",
    "evaluation_captions",
    "is_held_out",
    "open_captions",
    "sample_caption",
]

_KINDS: tuple[Kind, ...] = tuple(itertools.product(SHAPES, COLOURS))


def is_held_out(kinds: Sequence[Kind]) -> bool:
    """Return whether this combination of objects never occurs in training.

    About a tenth of all pairs of different kinds (in either order, with any relation), and a
    twelfth of all (kind, number) combinations of two or more equal objects. Single objects are
    never held out. The rule is arithmetic on the kinds' numbers, so it can never drift.
    """
    numbers = [_KINDS.index(kind) for kind in kinds]
    if len(numbers) == 1:
        return False
    if len(set(numbers)) == 1:
        return (numbers[0] + 5 * len(numbers)) % 12 == 0
    return len(numbers) == 2 and sum(numbers) % 10 == 7


@lru_cache(maxsize=100_000)
def completions(caption: Caption) -> tuple[tuple[Kind, ...], ...]:
    """Return every way to fill in what the caption leaves open, one (shape, colour) per object.

    This is the truth about open captions: **training scenes are uniform over this list** (unless
    colours are weighted). Counted objects are all alike: "two squares" are two of one colour. The
    two objects of other captions are filled in independently. Held-out combinations are not in
    the list, unless the caption demands one by name: then that is the only entry.
    """
    if caption.category in ("single", "counting"):
        first = caption.demands[0]
        every = [(k,) * len(caption.demands) for k in _KINDS if first.admits(k)]
    else:
        every = list(
            itertools.product(*([k for k in _KINDS if d.admits(k)] for d in caption.demands))
        )
    seen = [kinds for kinds in every if not is_held_out(kinds)]
    return tuple(seen or every)


def sample_caption(
    rng: np.random.Generator,
    held_out: bool = False,
    category: str | None = None,
    *,
    open_share: float = 0.15,
    colour_weights: Mapping[str, float] | None = None,
) -> Caption:
    """Draw a caption.

    Args:
        rng: source of randomness.
        held_out: draw only captions of held-out combinations (never single objects, never open);
            False (the default) draws only captions that training may see.
        category: one of `CATEGORIES`; None draws one uniformly.
        open_share: probability that a colour or a shape is left open, each on its own.
        colour_weights: relative frequency of the colours that are named; uniform by default,
            colours not listed weigh 1.

    Raises:
        InputError: the category does not exist, or has nothing held out.
    """
    if category is not None and category not in CATEGORIES:
        raise InputError(f"unknown category {category!r}: choose from {', '.join(CATEGORIES)}")
    if held_out and category == "single":
        raise InputError("no single object is held out: choose another category")
    choices = CATEGORIES[1:] if held_out else CATEGORIES
    chosen = category or choices[int(rng.random() * len(choices))]
    share = 0.0 if held_out else open_share
    cumulated = _cumulated_weights(_freeze(colour_weights))
    while True:
        caption = _draw_caption(rng, chosen, share, cumulated)
        if caption is not None and is_held_out(completions(caption)[0]) == held_out:
            return caption


def evaluation_captions(n: int, seed: int = 0, held_out_fraction: float = 0.2) -> list[Caption]:
    """Return n fully specified captions for evaluation, the same for the same arguments.

    The categories take turns, so every prefix of the list is balanced; of each category but
    "single", `held_out_fraction` of the captions are of held-out combinations.
    """
    rng = np.random.Generator(np.random.Philox(key=(seed, 2**63)))
    captions, owed = [], dict.fromkeys(CATEGORIES, 0.0)
    for index in range(n):
        category = CATEGORIES[index % len(CATEGORIES)]
        owed[category] += held_out_fraction if category != "single" else 0.0
        held_out = owed[category] >= 1.0
        owed[category] -= held_out
        captions.append(sample_caption(rng, held_out, category, open_share=0.0))
    return captions


def open_captions(leave: str = "colour", category: str = "single") -> list[Caption]:
    """Return every caption that names one attribute and leaves the other open.

    Args:
        leave: "colour" ("a circle", ...) or "shape" ("a red shape", ...).
        category: "single" or "counting" (all counts).

    The truth about each is uniform over its `completions`: for single objects, over all colours
    or all shapes.
    """
    if leave not in ("colour", "shape") or category not in ("single", "counting"):
        raise InputError(
            f"open_captions(leave={leave!r}, category={category!r}): leave is 'colour' or "
            "'shape', category 'single' or 'counting'"
        )
    demands = [Demand(s, None) for s in SHAPES] if leave == "colour" else []
    demands += [Demand(None, c) for c in COLOURS] if leave == "shape" else []
    counts = (1,) if category == "single" else tuple(COUNTS.values())
    return [Caption(category, (d,) * n) for n in counts for d in demands]


def _freeze(weights: Mapping[str, float] | None) -> tuple[tuple[str, float], ...]:
    return tuple(sorted((weights or {}).items()))


@lru_cache(maxsize=64)
def _cumulated_weights(weights: tuple[tuple[str, float], ...]) -> tuple[float, ...]:
    given = dict(weights)
    if unknown := set(given) - set(COLOURS):
        raise InputError(f"unknown colours {sorted(unknown)}: the world has {', '.join(COLOURS)}")
    if min(given.values(), default=0.0) < 0 or not any(given.get(c, 1.0) for c in COLOURS):
        raise InputError(f"colour weights must be 0 or more, and not all 0; got {given}")
    total = sum(given.get(c, 1.0) for c in COLOURS)
    return tuple(itertools.accumulate(given.get(c, 1.0) / total for c in COLOURS))


def _draw_caption(
    rng: np.random.Generator, category: str, open_share: float, cumulated: tuple[float, ...]
) -> Caption | None:
    """Draw a caption of the category, or None where the two demands do not exclude each other."""
    u = rng.random(10)
    first = _draw_demand(u[:4], open_share, cumulated)
    if category == "single":
        return Caption(category, (first,))
    if category == "counting":
        return Caption(category, (first,) * (2 + int(u[8] * len(COUNTS))))
    second = _draw_demand(u[4:8], open_share, cumulated)
    if not first.excludes(second):
        return None
    relation = RELATIONS[int(u[9] * len(RELATIONS))] if category == "position" else None
    return Caption(category, (first, second), relation)


def _draw_demand(u: np.ndarray, open_share: float, cumulated: tuple[float, ...]) -> Demand:
    shape = SHAPES[int(u[0] * len(SHAPES))]
    colour = next(
        (c for c, upto in zip(COLOURS, cumulated, strict=True) if u[1] < upto), COLOURS[-1]
    )
    return Demand(
        None if u[2] < open_share else shape,
        None if u[3] < open_share else colour,
    )
