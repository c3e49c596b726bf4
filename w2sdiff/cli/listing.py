"""`w2sdiff list`: what there is to choose from, a line each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from w2sdiff.cli.console import Reporter

__all__ = ["list_kinds"]

Line = tuple[str, str] | tuple[str, str, dict[str, Any]]
"""A name, a line about it, and the facts for programs where the line is not all of them."""


def list_kinds(
    kind: Annotated[
        str, typer.Argument(help="methods, edits, models, families, scorers or presets.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines on stdout.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """List the methods, edits, models, pipeline families, scorers or presets there are."""
    del debug
    from w2sdiff.registry import unknown

    if kind not in _LISTS:
        raise unknown("list", kind, list(_LISTS))
    reporter = Reporter(quiet=False, as_json=as_json)
    lines = list(_LISTS[kind]())
    width = max(len(name) for name, *_ in lines)
    for name, text, *more in lines:
        facts = {"summary": text, **(more[0] if more else {})}
        reporter.result(f"{name:<{width}}  {text}", kind, name=name, **facts)


def _methods() -> Iterator[Line]:
    from w2sdiff.methods import METHODS

    for name in METHODS:
        yield name, METHODS.summary(name)


def _edits() -> Iterator[Line]:
    from w2sdiff.edits import EDITS

    for name in EDITS:
        form, _, text = EDITS.summary(name).partition("  ")
        yield form, text.strip()


def _presets() -> Iterator[Line]:
    from w2sdiff.generate import PRESETS

    for name, preset in PRESETS.items():
        model = f"{preset.model} ({preset.hub})" if preset.hub else preset.model
        needs = f"; needs {preset.needs}" if preset.needs else ""
        yield name, f"{preset.method} on {model}: {preset.source}{needs}"


def _models() -> Iterator[Line]:
    from w2sdiff import shapes
    from w2sdiff.generate import DEFAULT_MODEL, find_model

    for name in shapes.checkpoint_names():
        model = find_model(name)
        loras = ", ".join(sorted(file.stem for file in (model.folder / "loras").glob("*")))
        facts = [
            model.pipeline,
            f"weak checkpoint {model.weak.name}" if model.weak else "",
            f"LoRAs {loras}" if loras else "",
            "the default" if name == DEFAULT_MODEL else "",
        ]
        yield name, "; ".join(filter(None, facts))
    yield "FOLDER", "any stock diffusers folder with safetensors weights"
    yield "OWNER/NAME", "any such model of the hub, from the local cache or downloaded"


def _families() -> Iterator[Line]:
    from w2sdiff.drivers.families import FAMILIES, Family
    from w2sdiff.drivers.refused import REFUSED

    kinds: dict[tuple[str, str], dict[str, Family]] = {}
    for cls, family in FAMILIES.items():
        kinds.setdefault((family.name, family.layout), {})[cls] = family
    for (name, layout), members in kinds.items():
        family = next(iter(members.values()))
        facts = {
            "layout": _LAYOUTS[layout],
            "embedded_guidance": family.embedded,
            "lora": family.lora,
            "since": family.since,
            "pipelines": list(members),
        }
        columns = [
            f"{_LAYOUTS[layout]:<52}",
            f"{'embedded guidance' if family.embedded else '':<17}",
            f"{'LoRA' if family.lora else 'LoRA by load_lora':<17}",
            f"since diffusers {family.since}",
            ", ".join(members),
        ]
        yield name, "  ".join(columns), facts
    for refused in REFUSED:
        examples = f" ({', '.join(refused.examples)})" if refused.examples else ""
        facts = {"refused": True, "summary": refused.why, "pipelines": list(refused.examples)}
        yield f"refused: {refused.kind}", f"{refused.why}{examples}", facts


_LAYOUTS = {
    "uc": "one call, unconditional half first",
    "cu": "one call, conditional half first",
    "two": "two calls, conditional first",
    "ucp": "one call, unconditional, conditional, perturbed (PAG)",
}


def _scorers() -> Iterator[Line]:
    from w2sdiff.scorers import SCORERS

    for name in SCORERS:
        scorer = SCORERS[name]
        low, high = scorer.expected
        yield name, f"[{scorer.group}, {low:g} to {high:g}] {SCORERS.summary(name)}"


_LISTS: dict[str, Callable[[], Iterator[Line]]] = {
    "methods": _methods,
    "edits": _edits,
    "models": _models,
    "families": _families,
    "scorers": _scorers,
    "presets": _presets,
}
