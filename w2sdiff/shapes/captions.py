"""The language of the embedded world: captions and what they demand."""

from __future__ import annotations

from dataclasses import dataclass

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
    "parse",
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
    def vague(self) -> Caption:
        """The caption with its colours left open, or its shapes where only colours tell them apart.

        What a short prompt is to a detailed one: it demands a part of the same, so that a picture
        that obeys the caption obeys this one.

        Example:
            >>> from w2sdiff.shapes.captions import parse
            >>> parse("a red circle left of a blue square").vague.text
            'a circle left of a square'
        """
        pair = self.category in ("colours", "position")
        by_colour = pair and not _differ(self.demands[0].shape, self.demands[-1].shape)
        kept = [Demand(None, d.colour) if by_colour else Demand(d.shape) for d in self.demands]
        return Caption(self.category, tuple(kept), self.relation)

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
