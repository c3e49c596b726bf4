"""The exact oracle: decides whether a picture of the embedded world obeys a caption.

`look` reads the picture; here what it saw is compared with what the caption demands. A picture
obeys only if every object is recognised, they are exactly those demanded, and there is nothing
else. No part is learned, so no model can flatter it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from w2sdiff.errors import InputError
from w2sdiff.shapes.captions import Caption, parse
from w2sdiff.shapes.look import Reading, Seen, frequencies, look, look_all

__all__ = [
    "Reading",
    "Seen",
    "Verdict",
    "frequencies",
    "judge",
    "judge_all",
    "look",
    "look_all",
]


@dataclass(frozen=True)
class Verdict:
    """Whether a picture obeys its caption; `why` says in words why not (or that all is well)."""

    obeyed: bool
    why: str
    objects: tuple[Seen, ...]

    def __bool__(self) -> bool:
        return self.obeyed


def judge(image: Any, caption: str | Caption) -> Verdict:
    """Decide whether a picture obeys a caption.

    Obeyed means: exactly the demanded objects are there, every one recognised with confidence,
    the relation holds, and there is nothing else in the picture. "left of" holds if the first
    centre is left of the second by more than it is above or below it; so do the other three.

    Args:
        image: PIL image or uint8 RGB array [64, 64, 3].
        caption: a caption of the world, as text or parsed.

    Raises:
        InputError: the text is no caption of the world, or the picture has another size.

    Example:
        >>> from w2sdiff.shapes.oracle import judge
        >>> from w2sdiff.shapes.render import Object, Scene, render
        >>> image = render(Scene((Object("circle", "red", x=32, y=32, size=20),)))[0]
        >>> judge(image, "a red circle").obeyed, judge(image, "a blue circle").why
        (True, 'expected a blue circle, found a red circle')
    """
    return judge_all([image], [caption])[0]


def judge_all(images: Any, captions: Sequence[str | Caption]) -> list[Verdict]:
    """Decide for many pictures at once, each with its own caption; see `judge`."""
    if len(images) != len(captions):
        raise InputError(f"{len(images)} pictures, but {len(captions)} captions: one each, please")
    parsed = [parse(c) if isinstance(c, str) else c for c in captions]
    return [_decide(r, c) for r, c in zip(look_all(images), parsed, strict=True)]


def _decide(reading: Reading, caption: Caption) -> Verdict:
    seen, demands = reading.objects, caption.demands
    if reading.fault:
        return Verdict(False, reading.fault, seen)
    if len(seen) != len(demands):
        objects = "object" if len(demands) == 1 else "objects"
        return Verdict(False, f"expected {len(demands)} {objects}, found {len(seen)}", seen)
    if doubtful := [s for s in seen if s.doubt]:
        return Verdict(
            False,
            f"the object at ({doubtful[0].x:.0f}, {doubtful[0].y:.0f}) "
            f"is not clear: {doubtful[0].doubt}",
            seen,
        )
    complaints = [_complaints(order, caption) for order in itertools.permutations(seen)]
    fewest = min(complaints, key=len)
    return Verdict(not fewest, "; ".join(fewest) or "all as the caption says", seen)


def _complaints(seen: Sequence[Seen], caption: Caption) -> list[str]:
    """Return what is wrong if the i-th object is meant to be the i-th demanded."""
    wrong = [
        f"expected a {demand.phrase()}, found a {s.colour} {s.shape}"
        for s, demand in zip(seen, caption.demands, strict=True)
        if not demand.admits((s.shape or "", s.colour or ""))
    ]
    if caption.relation and (found := _relation(seen[0], seen[1])) != caption.relation:
        one, two = (d.phrase() for d in caption.demands)
        wrong.append(f"expected the {one} {caption.relation} the {two}, found it {found}")
    return wrong


def _relation(first: Seen, second: Seen) -> str:
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"
