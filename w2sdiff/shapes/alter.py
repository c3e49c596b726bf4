"""Captions that are almost right: one thing altered, so that no picture obeys both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from w2sdiff.errors import InputError
from w2sdiff.shapes.captions import COUNTS, RELATIONS, Caption, Demand
from w2sdiff.shapes.render import COLOURS, SHAPES

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ALTERATIONS", "alter"]

T = TypeVar("T")

ALTERATIONS = ("colour", "shape", "count", "relation", "swap")
"""What can be altered: a colour, a shape, the number of objects, the relation, or which of two
objects has which colour (the binding of attributes)."""


def alter(caption: Caption, kind: str, rng: np.random.Generator) -> Caption | None:
    """Return the caption with one thing altered, or None where it has no such thing to alter.

    A picture that obeys a fully specified caption never obeys the altered one. Open captions
    may have pictures that obey both.

    Args:
        caption: what to alter.
        kind: one of `ALTERATIONS`.
        rng: chooses which object is altered, and to what.

    Raises:
        InputError: an unknown kind.

    Example:
        >>> import numpy as np
        >>> from w2sdiff.shapes.alter import alter
        >>> from w2sdiff.shapes.captions import parse
        >>> caption = parse("a red circle left of a blue square")
        >>> alter(caption, "swap", np.random.default_rng(0)).text
        'a blue circle left of a red square'
    """
    if kind not in _ALTER:
        raise InputError(f"unknown alteration {kind!r}: choose from {', '.join(ALTERATIONS)}")
    return _ALTER[kind](caption, rng)


def _colour(caption: Caption, rng: np.random.Generator) -> Caption | None:
    return _demand(caption, "colour", COLOURS, rng)


def _shape(caption: Caption, rng: np.random.Generator) -> Caption | None:
    return _demand(caption, "shape", SHAPES, rng)


def _demand(
    caption: Caption, attribute: str, names: Sequence[str], rng: np.random.Generator
) -> Caption | None:
    """Give one demanded object (counted ones: all of them) another colour or shape."""
    demands = list(dict.fromkeys(caption.demands))
    index = int(rng.integers(len(demands)))
    old = getattr(demands[index], attribute)
    if old is None:
        return None
    other = _other(names, old, rng)
    demands[index] = (
        replace(demands[index], colour=other)
        if attribute == "colour"
        else replace(demands[index], shape=other)
    )
    if len(demands) == 1:
        return replace(caption, demands=tuple(demands) * len(caption.demands))
    return replace(caption, demands=tuple(demands)) if demands[0].excludes(demands[1]) else None


def _count(caption: Caption, rng: np.random.Generator) -> Caption | None:
    """Ask for another number of equal objects, or for one of two different ones."""
    if caption.category in ("colours", "position"):
        return Caption("single", (caption.demands[int(rng.integers(2))],))
    number = _other((1, *COUNTS.values()), len(caption.demands), rng)
    return Caption("single" if number == 1 else "counting", caption.demands[:1] * number)


def _relation(caption: Caption, rng: np.random.Generator) -> Caption | None:
    if caption.relation is None:
        return None
    return replace(caption, relation=_other(RELATIONS, caption.relation, rng))


def _swap(caption: Caption, rng: np.random.Generator) -> Caption | None:
    del rng
    if caption.category not in ("colours", "position"):
        return None
    first, second = caption.demands
    if first.shape is None or second.shape is None or None in (first.colour, second.colour):
        return None
    if first.colour == second.colour or (first.shape == second.shape and not caption.relation):
        return None
    swapped = (Demand(first.shape, second.colour), Demand(second.shape, first.colour))
    return replace(caption, demands=swapped)


def _other(names: Sequence[T], old: T, rng: np.random.Generator) -> T:
    others = [name for name in names if name != old]
    return others[int(rng.integers(len(others)))]


_ALTER: dict[str, Callable[[Caption, np.random.Generator], Caption | None]] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "relation": _relation,
    "swap": _swap,
}
