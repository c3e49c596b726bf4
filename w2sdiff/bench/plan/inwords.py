"""An arm in words, for tables: short, without paths, in the grammar of the command line."""

from __future__ import annotations

import dataclasses
from pathlib import PurePath
from typing import Any

from w2sdiff.bench.plan.experiment import Arm
from w2sdiff.bench.results import Match
from w2sdiff.edits import Checkpoint, Edit, Edits, Guidance, Lora
from w2sdiff.edits import Prompt as PromptEdit
from w2sdiff.generate import cfg_scale
from w2sdiff.methods import ROLES, Method, Window

__all__ = ["described"]

_MATCHED: dict[Match, str] = {
    "evaluations": "as many evaluations as {arm}",
    "strength": "the guidance scale that {arm} was measured to act like, as many evaluations",
    "first order": "what {arm} is to first order, as many evaluations",
    "best of n": "as many evaluations as {arm}, spent on several pictures",
}
_LONGEST = 60  # characters of a prompt edit


def described(arm: Arm) -> str:
    """Method, settings, and what a rival was matched in. It is user text: it may hold a prompt.

    Example:
        >>> from w2sdiff import W2SD, Lora
        >>> from w2sdiff.generate import Settings, find_model
        >>> settings = Settings(steps=20, guidance=3.0, device="cpu", dtype="float32")
        >>> method = W2SD(strong=Guidance(1.0), weak=Guidance(1.0) | Lora("dpo", -1.5), times=2)
        >>> described(Arm("w2sd", method, find_model("shapes-unet"), settings))
        'w2sd (strong guidance=1; weak guidance=1,lora:dpo=-1.5; times 2), 20 steps, guidance 3'
    """
    scale = cfg_scale(arm.model, arm.settings)
    parts = [_method(arm.method), f"{arm.recipe.steps} steps"]
    parts.append(f"guidance {scale:g}" if scale > 1 else "unguided")
    if arm.candidates > 1:
        parts.insert(0, f"best of {arm.candidates} by {arm.select}")
    words = ", ".join(parts)
    if arm.match is None:
        return words
    return f"{words}: {_MATCHED[arm.match].format(arm=arm.rival_of)}"


def _method(method: Method) -> str:
    """Its roles, and those options that are not the default."""
    fields = {field.name: field for field in dataclasses.fields(method)}  # type: ignore[arg-type]
    worn = {role: edits for role, edits in method.roles.items() if role in fields}
    parts = [f"{role} {_role(edits)}" for role, edits in worn.items() if edits is not None]
    for field in fields.values():
        value = getattr(method, field.name)
        if field.name == "noise_model":
            parts.append(f"noise model {PurePath(str(value)).stem}")
        elif field.name not in ROLES and value != field.default:
            parts.append(f"{field.name} {_option(value)}")
    return f"{method.kind} ({'; '.join(parts)})" if parts else method.kind


def _role(edits: Edits) -> str:
    return ",".join(map(_edit, edits)) or "as called"


def _edit(edit: Edit) -> str:
    if isinstance(edit, Guidance):
        return f"guidance={edit.scale:g}"
    if isinstance(edit, Lora):
        return f"lora:{edit.name}={edit.scale:g}"
    if isinstance(edit, Checkpoint):
        named = isinstance(edit.source, str | PurePath)
        return f"checkpoint={PurePath(str(edit.source)).name}" if named else "checkpoint"
    if isinstance(edit, PromptEdit):
        texts = {"prompt": edit.text, "prompt:negative": edit.negative}
        words = [f'{name}="{_short(text)}"' for name, text in texts.items() if text is not None]
        return ",".join(words) or "prompt"
    return edit.kind


def _option(value: Any) -> str:
    if isinstance(value, Window):
        if value.steps is not None:
            return f"of {len(value.steps)} steps"
        if value.when is not None:
            return "given by a function"
        part = f"{value.start:g}:{value.stop:g}"
        return part if value.last or value.stop < 1 else f"{part} without the last step"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
