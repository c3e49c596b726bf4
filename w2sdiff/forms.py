"""Plain data from elsewhere (JSON, keyword arguments), checked before anything is made of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from w2sdiff.errors import InputError
from w2sdiff.registry import unknown

__all__ = [
    "check_fields",
    "check_known",
    "is_whole",
    "listed",
    "mapping",
    "text",
    "truth",
    "values",
]

_SHOWN = 60  # characters of a value in a complaint


def mapping(data: object, what: str) -> dict[str, Any]:
    """`data` as a dictionary of its own, or an InputError that names `what`."""
    if not isinstance(data, Mapping):
        raise _expected(f"{what} is names and values, {{...}}", data)
    return dict(data)


def listed(data: object, what: str) -> list[Any]:
    """`data` as a list of its own, or an InputError that names `what`."""
    if not isinstance(data, list | tuple):
        raise _expected(f"{what} is a list, [...]", data)
    return list(data)


def truth(value: object, what: str) -> bool:
    """`value` if it is True or False, or an InputError that names `what`."""
    if not isinstance(value, bool):
        raise _expected(f"{what} is True or False", value)
    return value


def text(value: object, what: str) -> str:
    """`value` if it is a text and not empty, or an InputError that names `what`."""
    if not isinstance(value, str) or not value:
        raise _expected(f"{what} is a text", value)
    return value


def is_whole(value: object) -> bool:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_known(what: str, given: Iterable[str], cls: Any) -> None:
    """Refuse a name that is no field of a dataclass.

    Args:
        what: the fields are called, such as "option of w2sd".
        given: the names.
        cls: the dataclass.

    Raises:
        InputError: names the nearest field.
    """
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    for name in given:
        if not known:
            raise InputError(f"There is no {what} {name!r}; it takes none.")
        if name not in known:
            raise unknown(what, name, known)


def check_fields(what: str, given: Iterable[str], cls: Any) -> None:
    """Refuse a name that is no field of a dataclass, and a field without a value.

    Raises:
        InputError: says which.
    """
    given = list(given)
    check_known(f"field of {what}", given, cls)
    for field in dataclasses.fields(cls):
        required = field.init and field.default is field.default_factory is dataclasses.MISSING
        if required and field.name not in given:
            raise _without(what, field.name, given)


def values(data: Mapping[str, Any], names: Iterable[str], what: str) -> list[Any]:
    """The values of these names, of which every one has to be there and no other.

    Raises:
        InputError: says which is not.
    """
    names = list(names)
    for name in names:
        if name not in data:
            raise _without(what, name, data)
    for name in data:
        if name not in names:
            raise unknown(f"field of {what}", name, names)
    return [data[name] for name in names]


def _without(what: str, name: str, given: Iterable[object]) -> InputError:
    there = ", ".join(map(str, given)) or "nothing"
    return InputError(f"{what} needs a value for {name!r}; given are: {there}.")


def _expected(what: str, value: object) -> InputError:
    shown = repr(value)
    return InputError(f"{what}; got {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '...'}.")
