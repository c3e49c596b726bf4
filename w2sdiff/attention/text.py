"""The command line's words for a compression: how far, and where.

    ratio   =  R | HEIGHT "x" WIDTH                     everywhere
            |  LEVEL "/" ratio { "+" LEVEL "/" ratio }  from that noise level upwards
    layers  =  part { "+" part }
    part    =  INDEX [ "-" INDEX ] [ "/" ratio ]        these, perhaps at a ratio of their own
            |  "all" | "deep" | "middle" | "shallow"    at first; then of them some at another ratio

So what stands before a slash is a place, and what stands behind it the ratio there. Layers that
follow the noise each in its own way are for Python and JSON to say.
"""

from __future__ import annotations

from w2sdiff.attention.compression import NAMES, indices_of
from w2sdiff.attention.ratios import Pair, Ratio, Schedule, plain_ratio
from w2sdiff.errors import InputError

__all__ = ["parse_layers", "parse_plain_ratio", "parse_ratio"]


def parse_ratio(text: str) -> Ratio:
    """A ratio, the same at every noise level or not.

    Raises:
        InputError: the text is none.

    Example:
        >>> parse_ratio("2x4")
        (2, 4)
        >>> parse_ratio("0.6/2+0.85/4") == Schedule({0.6: 2, 0.85: 4})
        True
    """
    if "/" not in text:
        return parse_plain_ratio(text)
    steps = []
    for part in text.split("+"):
        level, slash, ratio = part.partition("/")
        try:
            start = float(level)
        except ValueError:
            slash = ""
        if not slash:
            raise InputError(
                "Write a ratio that follows the noise as LEVEL/R+LEVEL/R, such as 0.6/2+0.85/4: "
                f"from level 0.6 upwards 2, from 0.85 upwards 4; got {text!r}."
            )
        steps.append((start, parse_plain_ratio(ratio)))
    return Schedule(tuple(steps))


def parse_plain_ratio(text: str) -> int | Pair:
    """`2`, or `2x4` for height and width.

    Raises:
        InputError: the text is neither.
    """
    try:
        parts = [int(part) for part in text.split("x")]
    except ValueError:
        raise InputError(
            f"A ratio is R, or HEIGHTxWIDTH, in whole numbers, such as 2 or 2x4; got {text!r}."
        ) from None
    return plain_ratio(parts[0] if len(parts) == 1 else parts)


def parse_layers(text: str) -> tuple[str, dict[int, int | Pair]]:
    """Layers as `KVCompression` takes them, and the ratios of those that have their own.

    Raises:
        InputError: a ratio of its own for something that is no index.

    Example:
        >>> parse_layers("14-20+26-27/4")
        ('14-20+26-27', {26: 4, 27: 4})
        >>> parse_layers("deep+27/1")
        ('deep', {27: 1})
    """
    places: list[str] = []
    own: dict[int, int | Pair] = {}
    parts = text.split("+")
    for part in parts:
        place, slash, ratio = part.partition("/")
        if slash and place in NAMES:
            raise InputError(
                f"{part!r} gives a set of layers a ratio of its own; that is for layers by index, "
                "such as 20-27/4."
            )
        if slash:
            own |= dict.fromkeys(indices_of(place), parse_plain_ratio(ratio))
        if not slash or parts[0] not in NAMES:  # those of a name are in the set already
            places.append(place)
    return "+".join(places), own
