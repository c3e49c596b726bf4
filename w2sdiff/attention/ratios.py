"""Compression ratios: a number, one per axis, or a schedule over the noise level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from w2sdiff.errors import InputError

Pair = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class Schedule:
    """A ratio for every noise level: strong while the layout forms, none for the detail, say.

    The level is the timestep as a fraction of the training's: 1 is pure noise, 0 is clean. (For
    flow models it is σ.) All items of a batch must be at one level.

    Args:
        steps: pairs (level, ratio) or a dictionary: from that level upwards, that ratio. Below the
            lowest level nothing is compressed.

    Raises:
        InputError: no step, two for one level, or a level outside [0, 1].

    Example:
        >>> schedule = Schedule({0.6: 2, 0.85: 4})
        >>> schedule.at(0.3), schedule.at(0.6), schedule.at(1.0)
        ((1, 1), (2, 2), (4, 4))
    """

    steps: tuple[tuple[float, int | Pair], ...] | Mapping[float, Any]

    def __post_init__(self) -> None:
        """Sort the steps and check them."""
        given = self.steps.items() if isinstance(self.steps, Mapping) else self.steps
        try:
            steps = sorted((float(level), plain_ratio(value)) for level, value in given)
        except (TypeError, ValueError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"A schedule is pairs (noise level, ratio); got {self.steps!r}."
            ) from None
        levels = [level for level, _ in steps]
        if not steps or len(set(levels)) < len(levels):
            raise InputError(f"A schedule needs steps, one per level; got {self.steps!r}.")
        if not all(0 <= level <= 1 for level in levels):
            raise InputError(f"Noise levels lie in [0, 1], 1 is pure noise; got {levels}.")
        object.__setattr__(self, "steps", tuple(steps))

    def at(self, level: float) -> Pair:
        """(height, width) ratio at a noise level."""
        steps = cast("tuple[tuple[float, int | Pair], ...]", self.steps)
        found = [value for start, value in steps if start <= level]
        return pair(found[-1]) if found else (1, 1)

    @property
    def pairs(self) -> set[Pair]:
        """All ratios that occur, (1, 1) excepted."""
        steps = cast("tuple[tuple[float, int | Pair], ...]", self.steps)
        return {pair(value) for _, value in steps} - {(1, 1)}


Ratio = int | Pair | Schedule


def plain_ratio(value: Any) -> int | Pair:
    """A ratio without schedule in its one form: equal axes are one number."""
    pairs = list(value) if isinstance(value, list | tuple) else [value, value]
    whole = all(isinstance(part, int) and not isinstance(part, bool) for part in pairs)
    if not whole or len(pairs) != 2 or min(pairs) < 1:
        raise InputError(
            "A ratio is a whole number of tokens per axis, 1 or more, or two of them "
            f"(height, width); got {value!r}."
        )
    return pairs[0] if pairs[0] == pairs[1] else (pairs[0], pairs[1])


def ratio(value: Any) -> Ratio:
    """Any ratio in its one form."""
    if isinstance(value, Schedule):
        return value
    if isinstance(value, Mapping):
        return Schedule(value.get("schedule", value))
    return plain_ratio(value)


def pair(value: int | Pair) -> Pair:
    """(height, width) of a ratio without schedule."""
    return (value, value) if isinstance(value, int) else value


def pairs(value: Ratio) -> set[Pair]:
    """All ratios that occur in `value`, (1, 1) excepted."""
    return value.pairs if isinstance(value, Schedule) else {pair(value)} - {(1, 1)}


def ratio_json(value: Ratio) -> Any:
    """Plain data from which `ratio` builds the same."""
    if isinstance(value, Schedule):
        steps = cast("tuple[tuple[float, int | Pair], ...]", value.steps)
        return {"schedule": [[level, ratio_json(own)] for level, own in steps]}
    return value if isinstance(value, int) else list(value)
