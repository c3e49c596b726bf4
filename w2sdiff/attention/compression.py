"""`KVCompression`: which keys and values are compressed, how and how far; a value."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from w2sdiff.attention.kinds.base import KINDS
from w2sdiff.attention.ratios import Pair, Ratio, Schedule, pair, ratio, ratio_json
from w2sdiff.errors import InputError
from w2sdiff.registry import unknown

__all__ = ["NAMES", "KVCompression", "Schedule", "indices_of"]

NAMES = ("all", "deep", "middle", "shallow")
_PART = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class KVCompression:
    """How keys and values are compressed (PixArt-Σ, arXiv 2403.04692, section 3.2).

    Edges: where the ratio does not divide the grid, the last cells of a row or column hold the
    tokens that are left, so that no token is lost; such a cell counts as much as a whole one.

    Args:
        kind: `conv` (the published one), `average`, `uniform`, `uniform_every` or `nearest`; see
            `w2sdiff.attention.kinds`.
        ratio: R, tokens per axis that become one: 2 means a quarter of the keys. Two numbers are
            (height, width), a `Schedule` changes with the noise level; 1 is no compression.
        layers: indices, a range, text such as "14-27" or "0+3+5-7", or a name. Of L layers, h =
            L/2: "deep" is the last h (the published choice: 14 to 27 of 28), "middle" the h around
            the middle (7 to 20), "shallow" the first h (1 to 14; up to 27 layers, from 0), "all".
        per_layer: ratios of single layers, by index, in place of `ratio`; R(noise level, layer).

    Raises:
        InputError: an unknown kind or name, a ratio below 1, negative indices, or a ratio that the
            kind cannot do (`conv` has one kernel per layer; `uniform_every` one number).

    Example:
        >>> KVCompression("average", ratio=2).layers_of(6)
        (3, 4, 5)
        >>> KVCompression("average", ratio=Schedule({0.6: 2, 0.85: 4}), layers="all").at(3, 0.7)
        (2, 2)
    """

    kind: str = "conv"
    ratio: Ratio | Mapping[float, Any] = 2
    layers: str | tuple[int, ...] | Iterable[int] = "deep"
    per_layer: tuple[tuple[int, Ratio], ...] | Mapping[int, Any] = ()

    def __post_init__(self) -> None:
        """Bring every field to its one form, and let the kind object."""
        if self.kind not in KINDS:
            raise unknown("compression kind", self.kind, sorted(KINDS))
        object.__setattr__(self, "ratio", ratio(self.ratio))
        object.__setattr__(self, "layers", _layers(self.layers))
        own = _by_layer(self.per_layer)
        items = ((index, ratio(own[index])) for index in _indices(own))
        object.__setattr__(self, "per_layer", tuple(items))
        for value in (self.ratio, *(value for _, value in self._own)):
            KINDS[self.kind].check(cast("Ratio", value))

    def ratio_of(self, layer: int | None) -> Ratio:
        """The ratio of one layer, or of every layer without one of its own."""
        own: dict[int | None, Ratio] = {**dict(self._own)}
        return own.get(layer, cast("Ratio", self.ratio))

    def at(self, layer: int | None, level: float | None) -> Pair:
        """(height, width) ratio of a layer at a noise level in [0, 1] (1: pure noise).

        Raises:
            InputError: the ratio follows the noise level, and no level is given.
        """
        value = self.ratio_of(layer)
        if not isinstance(value, Schedule):
            return pair(value)
        if level is None:
            raise InputError(f"The ratio follows the noise level ({value}); say at which it is.")
        return value.at(level)

    def layers_of(self, count: int) -> tuple[int, ...]:
        """Indices of the layers that are compressed, in a network of `count` layers.

        Raises:
            InputError: an index that the network does not have.
        """
        indices = _named(self.layers, count) if isinstance(self.layers, str) else self.layers
        indices = tuple(cast("tuple[int, ...]", indices))
        for index in (*indices, *(index for index, _ in self._own)):
            if index >= count:
                raise InputError(
                    f"The network has {count} layers, 0 to {count - 1}; there is no layer {index}."
                )
        strangers = [index for index, _ in self._own if index not in indices]
        if strangers:
            raise InputError(
                f"per_layer gives ratios for the layers {strangers}, which are not among the "
                f"compressed ones {list(indices)}; add them to layers=."
            )
        return indices

    @property
    def _own(self) -> tuple[tuple[int, Ratio], ...]:
        return cast("tuple[tuple[int, Ratio], ...]", self.per_layer)

    @property
    def follows_noise(self) -> bool:
        """Whether some ratio depends on the noise level."""
        values = (self.ratio, *(value for _, value in self._own))
        return any(isinstance(value, Schedule) for value in values)

    def to_json(self) -> dict[str, Any]:
        """Plain data from which `from_json` builds this value again."""
        layers = self.layers if isinstance(self.layers, str) else list(self.layers)
        data = {"kind": self.kind, "ratio": ratio_json(cast("Ratio", self.ratio)), "layers": layers}
        own = [[index, ratio_json(value)] for index, value in self._own]
        return {**data, "per_layer": own} if own else data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> KVCompression:
        """Inverse of `to_json`."""
        try:
            return cls(**{**data, "per_layer": tuple(map(tuple, data.get("per_layer", ())))})
        except TypeError as error:
            raise InputError(f"A KVCompression does not take {sorted(data)}: {error}.") from None


def _by_layer(value: Any) -> dict[Any, Any]:
    try:
        own = dict(value)
    except (TypeError, ValueError):
        raise InputError(
            f"per_layer= takes ratios by layer, such as {{20: 4, 21: (2, 1)}}; got {value!r}."
        ) from None
    # In JSON a mapping has keys of text.
    digits = {key: int(key) for key in own if isinstance(key, str) and key.isdecimal()}
    return {digits.get(key, key): ratio for key, ratio in own.items()}


def _layers(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, str):
        return value if value in NAMES else indices_of(value)
    if not isinstance(value, Iterable):
        raise InputError(
            f"layers= takes indices, a range or one of {', '.join(NAMES)}; got {value!r}."
        )
    if isinstance(value, range) and not value and value.start != value.stop:
        low, high = sorted((value.start, value.stop))
        raise InputError(
            f"{value} holds no layer: a step of {value.step} leads away from its end. Write "
            f"range({low}, {high}), or () for no layer at all."
        )
    return _indices(value)


def _indices(values: Iterable[Any]) -> tuple[int, ...]:
    indices = list(values)
    for index in indices:
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise InputError(f"A layer is an index 0, 1, 2, ...; got {index!r}.")
    return tuple(sorted(set(indices)))


def indices_of(text: str) -> tuple[int, ...]:
    """Indices from text such as "14-27" or "0+3+5-7".

    Raises:
        InputError: the text is not of that form, or goes downwards.
    """
    indices: list[int] = []
    for part in text.split("+"):
        match = _PART.fullmatch(part.strip())
        if match is None:
            error = unknown("layer set", text, list(NAMES))
            raise InputError(f"{error} Or indices such as 14-27 or 0+3+5-7.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise InputError(f"The layers {part.strip()} go downwards; write {last}-{first}.")
        indices += range(first, last + 1)
    return _indices(indices)


def _named(name: str, count: int) -> Sequence[int]:
    half = max(1, count // 2)
    if name == "all":
        return range(count)
    if name == "deep":
        return range(count - half, count)
    # Published for 28 layers: middle 7 to 20, shallow 1 to 14 (the very first stays whole).
    first = (count - half) // 2 if name == "middle" else math.floor(count / 28)
    return range(first, min(first + half, count))
