"""Checks of the values of an experiment file: each takes a value and where it stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from w2sdiff.errors import InputError
from w2sdiff.registry import unknown

__all__ = ["Check", "choice", "items", "number", "pairs", "size", "text", "truth", "whole"]

Check = Callable[[Any, str], Any]
"""(value, where it stands) -> the value to use; `InputError` that says what was expected."""


def text(value: Any, where: str) -> str:
    """Text; a number written without quotes is none."""
    if not isinstance(value, str):
        raise _expected("text", value, where)
    return value


def truth(value: Any, where: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise _expected("true or false", value, where)
    return value


def number(value: Any, where: str) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _expected("a number", value, where)
    return float(value)


def whole(least: int, most: int) -> Check:
    """A whole number in this range."""

    def check(value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _expected(f"a whole number from {least} to {most}", value, where)
        return value

    return check


def choice(kind: str, known: Sequence[str]) -> Check:
    """One of these words."""

    def check(value: Any, where: str) -> str:
        if value not in known:
            raise InputError(f"{where}: {unknown(kind, value, list(known))}")
        return str(value)

    return check


def size(value: Any, where: str) -> tuple[int, int]:
    """Pixels: 512, "768x512" or [768, 512]."""
    parts = value
    if isinstance(value, str):
        width, x, height = value.lower().partition("x")
        parts = [width, height if x else width]
    elif isinstance(value, int) and not isinstance(value, bool):
        parts = [value, value]
    try:
        across, down = (int(str(part)) for part in parts)
    except (TypeError, ValueError):
        raise _expected("a size such as 512 or 768x512", value, where) from None
    return across, down


def items(value: Any, where: str) -> tuple[str, ...]:
    """A list of texts."""
    if not isinstance(value, list):
        raise _expected("a list", value, where)
    return tuple(text(item, f"{where}[{number}]") for number, item in enumerate(value))


def pairs(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    """A list of pairs of texts, the two of a pair different."""
    if not isinstance(value, list):
        raise _expected("a list of pairs", value, where)
    found = []
    for number, pair in enumerate(value):
        here = f"{where}[{number}]"
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
            raise _expected("two different names", pair, here)
        found.append((text(pair[0], here), text(pair[1], here)))
    return tuple(found)


def _expected(what: str, value: Any, where: str) -> InputError:
    shown = repr(value)
    return InputError(
        f"{where}: expected {what}, got {shown if len(shown) <= 60 else shown[:57] + '...'}"
    )
