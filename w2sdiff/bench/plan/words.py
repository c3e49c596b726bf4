"""Experiment files: YAML or JSON in, plain checked words out. No model is looked for here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2sdiff.bench.plan.checks import Check, choice, items, number, pairs, size, text, truth, whole
from w2sdiff.bench.plan.textfile import read_mapping
from w2sdiff.errors import InputError
from w2sdiff.generate import DEFAULT_MODEL, DTYPES, OFFLOADS, SCHEDULERS, preset
from w2sdiff.methods import METHODS
from w2sdiff.registry import unknown

__all__ = ["ArmWords", "Words", "read_words"]

_SETTINGS: dict[str, Check] = {
    "steps": whole(1, 10_000),
    "guidance": number,
    "true_cfg": number,
    "negative": text,
    "size": size,
    "scheduler": choice("scheduler", sorted(SCHEDULERS)),
    "image": text,
    "image_strength": number,
    "device": text,
    "dtype": choice("dtype", ["auto", *DTYPES]),
    "offload": choice("offload", OFFLOADS),
    "compile": truth,
    "attention_backend": text,
}
_MODEL: dict[str, Check] = {"model": text, "variant": text, "revision": text}
_OPTIONS: dict[str, Check] = {
    "strong": text,
    "weak": text,
    "base": text,
    "window": text,
    "times": whole(0, 1000),
    "inversion": text,
    "weak_time": text,
    "scale": number,
    "real_scale": number,
    "noise_model": text,
    "slow_until": number,
    "fast_scale": number,
    "reference": truth,
    "every": whole(1, 10_000),
}
_RUN: dict[str, Check] = {
    "title": text,
    "prompts": text,
    "limit": whole(1, 10_000_000),
    "replicates": whole(1, 10_000),
    "seeds": choice("way to seed", ["hash", "index"]),
    "batch": whole(1, 10_000),
    "scorers": items,
    "select": text,
    "rivals": truth,
    "compare": pairs,
}
_NESTED = ("loras", "arms")


@dataclass(frozen=True)
class ArmWords:
    """One arm of the file, what it leaves out filled in from the top level.

    Attributes:
        name: as in the file.
        method: a name of `METHODS`.
        model: `name`, and `variant` and `revision` where they are given, for `find_model`.
        settings: those fields of `Settings` that the file gives.
        loras: name -> file.
        options: of the method, for `choose_method`.
        candidates: pictures of which the best one counts.
    """

    name: str
    method: str
    model: Mapping[str, str]
    settings: Mapping[str, Any]
    loras: Mapping[str, str]
    options: Mapping[str, Any]
    candidates: int


@dataclass(frozen=True)
class Words:
    """An experiment file: `run` holds its other keys, those that were given."""

    path: Path
    arms: tuple[ArmWords, ...]
    run: Mapping[str, Any] = field(default_factory=dict)


def read_words(path: Path) -> Words:
    """Read an experiment file and check every word of it, without looking for models.

    Args:
        path: a ``.yaml``, ``.yml`` or ``.json`` file.

    Raises:
        InputError: not such a file, an unknown key, or a value of the wrong kind; names the file
            and the key.
    """
    data = read_mapping(path)
    try:
        known = {**_RUN, **_SETTINGS, **_MODEL}
        given = _checked({k: v for k, v in data.items() if k not in _NESTED}, known, "", _NESTED)
        loras = _loras(data.get("loras", {}), "loras")
        arms = data.get("arms")
        if not isinstance(arms, Mapping) or not arms:
            raise InputError("arms: expected at least one arm, as NAME: {method: ...}")
        if "prompts" not in given:
            raise InputError("prompts: expected the name of a prompt set, or a prompt file")
        read = tuple(_arm(name, arm, given, loras) for name, arm in arms.items())
        run = {name: value for name, value in given.items() if name in _RUN}
        _check_pairs(run.get("compare", ()), [arm.name for arm in read])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return Words(path, read, run)


def _arm(name: object, data: Any, top: Mapping[str, Any], loras: Mapping[str, str]) -> ArmWords:
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > 100:
        raise InputError(f"arms: expected a name of 1 to 100 characters, got {name!r}")
    where = f"arms.{name}"
    if not isinstance(data, Mapping):
        raise InputError(f"{where}: expected options such as {{method: w2sd}}, got {data!r}")
    rest = {key: value for key, value in data.items() if key != "loras"}
    if "preset" in rest:
        published = preset(text(rest.pop("preset"), f"{where}.preset"))
        rest = {"method": published.method, **published.settings, **published.options, **rest}
    method = choice("method", sorted(METHODS))(rest.pop("method", None), f"{where}.method")
    options = _options_of(method)
    known = {**_SETTINGS, **_MODEL, **options, "candidates": whole(1, 10_000)}
    own = _checked(rest, known, where, ("method", "loras", "preset"))
    both = {**top, **own}
    model = {"name": both.get("model", DEFAULT_MODEL)}
    return ArmWords(
        name=name,
        method=method,
        model=model | {key: both[key] for key in ("variant", "revision") if key in both},
        settings={key: both[key] for key in _SETTINGS if key in both},
        loras={**loras, **_loras(data.get("loras", {}), f"{where}.loras")},
        options={key: own[key] for key in options if key in own},
        candidates=own.get("candidates", 1),
    )


def _options_of(method: str) -> dict[str, Check]:
    fields = {field.name for field in dataclasses.fields(METHODS[method])}  # type: ignore[arg-type]
    return {name: check for name, check in _OPTIONS.items() if name in fields}


def _checked(
    data: Mapping[Any, Any], known: Mapping[str, Check], where: str, also: tuple[str, ...]
) -> dict[str, Any]:
    """The values, each by its check; None stands for not given."""
    found = {}
    for key, value in data.items():
        if key not in known:
            at = f"{where}: " if where else ""
            raise InputError(f"{at}{unknown('key', key, sorted([*known, *also]))}")
        if value is not None:
            found[key] = known[key](value, f"{where}.{key}" if where else key)
    return found


def _loras(data: Any, where: str) -> dict[str, str]:
    if not isinstance(data, Mapping):
        raise InputError(f"{where}: expected NAME: FILE for each LoRA, got {data!r}")
    return {text(name, where): text(file, f"{where}.{name}") for name, file in data.items()}


def _check_pairs(compare: tuple[tuple[str, str], ...], arms: list[str]) -> None:
    for name in (name for pair in compare for name in pair):
        if name not in arms:
            raise InputError(f"compare: {unknown('arm', name, arms)}")
