"""A scale that is one number, or one number for each of several adapters."""

from __future__ import annotations

from collections.abc import Iterable

from w2sdiff.edits.guidance import number
from w2sdiff.errors import InputError, UnsupportedError

Scales = float | tuple[float, ...]


def scales(value: object, what: str) -> Scales:
    """`value` as a finite float or as a tuple of them, or an InputError that names `what`."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return number(value, what)
    found = tuple(number(one, what) for one in value)
    if not found:
        raise InputError(f"The {what} must be a number or several, got none.")
    return found


def scales_of_text(value: str, what: str) -> Scales:
    """`0.5`, or one number for each with a plus between them: `0.5+0`."""
    parts = value.split("+")
    return number(value, what) if len(parts) == 1 else scales(parts, what)


def one_each(value: Scales, count: int, what: str) -> list[float]:
    """A list of `count` scales; `what` names what there are so many of."""
    if not isinstance(value, tuple):
        return [value] * count
    if len(value) != count:
        raise UnsupportedError(
            f"{len(value)} scales are given for {count} {what}; give one for each, or one for all."
        )
    return list(value)
