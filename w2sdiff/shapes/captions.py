"""The language of the embedded world: captions, what they demand, and which are held out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from w2sdiff.errors import InputError
from w2sdiff.shapes.render import COLOURS, SHAPES

__all__ = [
    "CATEGORIES",
    "COUNTS",
    "RELATIONS",
    "SLOT_SIZES",
    "VOCABULARY",
    "Caption",
    "Demand",
    "Kind",
    "completions",
    "evaluation_captions",
    "is_held_out",
    "open_captions",
    "parse",
    "sample_caption",
]

CATEGORIES = ("single", "counting", "colours", "position")
RELATIONS = ("left of", "right of", "above", "below")
COUNTS = {"two": 2, "three": 3, "four": 4}
VOCABULARY = (
    *("a", *COUNTS, "and", "left", "right", "of", "above", "below"),
    *COLOURS,
    *(*SHAPES, "shape"),
    *("circles", "squares", "triangles", "crosses", "shapes"),
)
SLOT_SIZES = (
    len(CATEGORIES),
    1 + max(COUNTS.values()),
    *(1 + len(SHAPES), 1 + len(COLOURS)) * 2,
    1 + len(RELATIONS),
)

Kind = tuple[str, str]  # (shape, colour)
_KINDS: tuple[Kind, ...] = tuple(itertools.product(SHAPES, COLOURS))
_PLURALS = {"shape": "shapes", "cross": "crosses"} | {s: f"{s}s" for s in SHAPES if s != "cross"}
_SINGULARS = {plural: singular for singular, plural in _PLURALS.items()}


@dataclass(frozen=True)
class Demand:
    """What a caption asks of one object; None leaves the attribute open."""

    shape: str | None = None
    colour: str | None = None

    def admits(self, kind: Kind) -> bool:
        """Return whether an object of this (shape, colour) answers the demand."""
        return self.shape in (None, kind[0]) and self.colour in (None, kind[1])

    def excludes(self, other: Demand) -> bool:
        """Return whether no object can answer both demands."""
        return _differ(self.shape, other.shape) or _differ(self.colour, other.colour)

    def phrase(self, *, plural: bool = False) -> str:
        """Return the demand in words: "red circle", "circles", "red shape"."""
        noun = self.shape or "shape"
        noun = _PLURALS[noun] if plural else noun
        return f"{self.colour} {noun}" if self.colour else noun


@dataclass(frozen=True)
class Caption:
    """A caption and what it demands: exactly these objects, and nothing else in the picture.

    Attributes:
        category: one of `CATEGORIES`.
        demands: one `Demand` for each object; in counting captions, n equal ones.
        relation: where the first object is as seen from the second, one of `RELATIONS`, or None.
    """

    category: str
    demands: tuple[Demand, ...]
    relation: str | None = None

    @property
    def text(self) -> str:
        """The caption in words; `parse(caption.text) == caption`."""
        first, last = self.demands[0], self.demands[-1]
        if self.category == "single":
            return f"a {first.phrase()}"
        if self.category == "counting":
            number = next(w for w, n in COUNTS.items() if n == len(self.demands))
            return f"{number} {first.phrase(plural=True)}"
        return f"a {first.phrase()} {self.relation or 'and'} a {last.phrase()}"

    def __str__(self) -> str:
        """Return the caption in words."""
        return self.text

    @property
    def is_open(self) -> bool:
        """Whether a colour or a shape is left open."""
        return any(d.shape is None or d.colour is None for d in self.demands)

    @property
    def slots(self) -> tuple[int, ...]:
        """The meaning as class indices, one below each entry of `SLOT_SIZES`.

        (category, number of objects, shape and colour of the first, shape and colour of the
        second, relation); 0 stands for open or absent, except in the category. This is what a
        text encoder can be taught to read off before any picture is seen.
        """
        first = self.demands[0]
        second = self.demands[1] if self.category in ("colours", "position") else Demand()
        return (
            CATEGORIES.index(self.category),
            len(self.demands),
            _slot(SHAPES, first.shape),
            _slot(COLOURS, first.colour),
            _slot(SHAPES, second.shape),
            _slot(COLOURS, second.colour),
            _slot(RELATIONS, self.relation),
        )


def parse(text: str) -> Caption:
    """Read a caption of this world; the inverse of `Caption.text`.

    Case and outer punctuation do not matter. Raises `InputError` with what was expected when the
    text is not a caption of this world.

    Example:
        >>> from w2sdiff.shapes.captions import parse
        >>> parse("a red circle left of a square").relation
        'left of'
    """
    words = text.lower().strip(" .!\n").split()
    if unknown := [w for w in words if w not in VOCABULARY]:
        raise InputError(
            f"the world of shapes has no word {unknown[0]!r} (in {text!r}); it knows: "
            + " ".join(VOCABULARY)
        )
    sentence = " ".join(words)
    if words[:1] and words[0] in COUNTS:
        demand = _parse_phrase(words[1:], plural=True, text=text)
        return Caption("counting", (demand,) * COUNTS[words[0]])
    for joint in (*RELATIONS, "and"):
        first, found, second = sentence.partition(f" {joint} ")
        if found:
            pair = (_parse_object(first, text), _parse_object(second, text))
            if not pair[0].excludes(pair[1]):
                raise InputError(
                    f"one object could answer both halves of {text!r}: name two different "
                    "colours or two different shapes"
                )
            relation = None if joint == "and" else joint
            return Caption("position" if relation else "colours", pair, relation)
    return Caption("single", (_parse_object(sentence, text),))


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


def _differ(a: str | None, b: str | None) -> bool:
    return a is not None and b is not None and a != b


def _slot(names: tuple[str, ...], name: str | None) -> int:
    return 0 if name is None else 1 + names.index(name)


def _parse_object(phrase: str, text: str) -> Demand:
    words = phrase.split()
    if words[:1] != ["a"]:
        raise InputError(f"expected 'a' before each object in {text!r}, as in 'a red circle'")
    return _parse_phrase(words[1:], plural=False, text=text)


def _parse_phrase(words: list[str], *, plural: bool, text: str) -> Demand:
    colour = words[0] if len(words) == 2 else None
    noun = words[-1] if words else ""
    shape = _SINGULARS.get(noun, "") if plural else noun
    if len(words) > 2 or shape not in _PLURALS or (colour and colour not in COLOURS):
        example = "'two red circles'" if plural else "'a red circle'"
        raise InputError(
            f"cannot read {text!r}: expected a colour (or none) and a shape, as in {example}; "
            f"colours: {', '.join(COLOURS)}; shapes: {', '.join(_PLURALS)}"
        )
    return Demand(None if shape == "shape" else shape, colour)


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
