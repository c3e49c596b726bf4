"""Small YAML and JSON files that strangers wrote: plain data, or one clear error."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from w2sdiff.errors import InputError

__all__ = ["read_mapping"]

MAX_BYTES = 1_000_000
_KINDS = (".yaml", ".yml", ".json")


def read_mapping(path: Path) -> dict[Any, Any]:
    """The names and values of a file, as plain data.

    YAML is read as version 1.2 does, without aliases and tags: `no` is a word, `0:0.5` is text and
    not the number of minutes and seconds that YAML 1.1 takes it for.

    Raises:
        InputError: no such file, too large, not of the kind its ending says, or a name twice.
    """
    if path.suffix.lower() not in _KINDS:
        raise InputError(f"expected a file ending in {', '.join(_KINDS)}, got {path.name!r}")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InputError(f"{path} has more than {MAX_BYTES} bytes; it is no experiment")
        content = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"the file {path} does not exist") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text: {error.reason}") from None
    try:
        value = _json(content) if path.suffix.lower() == ".json" else _yaml(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except RecursionError:
        raise InputError(f"{path} is nested too deeply") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected names and values, got {type(value).__name__}")
    return value


def _json(content: str) -> Any:
    try:
        return json.loads(content, object_pairs_hook=_once, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise InputError(f"no JSON: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InputError(f"{name!r} is there twice")
        found[name] = value
    return found


def _no_number(name: str) -> Any:
    raise InputError(f"no JSON: {name} is not a number of JSON")


def _yaml(content: str) -> Any:
    import yaml

    try:
        return yaml.load(content, Loader=_loader())  # a SafeLoader, made stricter
    except InputError:
        raise
    except yaml.YAMLError as error:
        raise InputError(f"no YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # a number of more digits than Python takes
        raise InputError(f"no YAML: {error}") from None


@cache
def _loader() -> Any:
    """PyYAML's safe loader with the plain words of YAML 1.2, no aliases, and no name twice."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise InputError("no aliases here (*name): a few of them make a huge file")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            found: dict[Any, Any] = {}
            for key, value in node.value:
                name = self.construct_object(key, deep=True)
                if not isinstance(name, str | int | float | bool | None):
                    raise InputError(f"expected a name, got {name!r}")
                if name in found:
                    raise InputError(f"{name!r} is there twice")
                found[name] = self.construct_object(value, deep=deep)
            return found

    for kind, pattern, first in (
        ("null", r"~|null|", ["~", "n", ""]),
        ("bool", r"true|false", list("tf")),
        ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
        ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ):
        Loader.add_implicit_resolver(
            f"tag:yaml.org,2002:{kind}", re.compile(rf"^(?:{pattern})$"), first
        )
    return Loader
