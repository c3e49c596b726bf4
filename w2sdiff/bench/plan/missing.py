"""What an experiment file names and is not here, and what can be said of its arms all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from w2sdiff.bench.plan.words import ArmWords, Words
from w2sdiff.edits import Checkpoint, parse_edits
from w2sdiff.edits.grammar import split_edits
from w2sdiff.edits.hub import is_hub_id, snapshot
from w2sdiff.errors import InputError, W2SDiffError
from w2sdiff.forms import check_fields
from w2sdiff.generate import LoraFile, find_model
from w2sdiff.generate.choose import read_options
from w2sdiff.methods import METHODS, ROLES
from w2sdiff.prompts import load_set
from w2sdiff.scorers import parse_scorer

__all__ = ["Missing", "evaluations_of", "missing_of"]

_MODEL = "{model}"  # in a place: the model's folder
_PAIRS = ("w2sd", "autoguidance")  # take the model's own weak checkpoint where no pair is given


@dataclass(frozen=True)
class Missing:
    """One thing that is not here.

    Attributes:
        kind: "model", "checkpoint", "edit", "file", "prompts" or "scorer".
        name: as in the experiment file.
        reason: what was looked for, and what to do.
        arms: the arms that need it; none: the whole experiment does.
    """

    kind: str
    name: str
    reason: str
    arms: tuple[str, ...] = ()


def missing_of(words: Words) -> tuple[Missing, ...]:
    """Everything that an experiment needs and is not on this machine, each thing once.

    Looks at files only: nothing is loaded, and no hub is asked. What a file names wrongly (an
    unknown edit, say) is among it, for it stops the run as well.

    Args:
        words: of the experiment file.
    """
    found: dict[tuple[str, str], Missing] = {}
    for one in _all(words):
        before = found.get((one.kind, one.name), one)
        arms = tuple(dict.fromkeys((*before.arms, *one.arms)))
        found[one.kind, one.name] = Missing(one.kind, one.name, before.reason, arms)
    return tuple(found.values())


def evaluations_of(words: ArmWords) -> int | None:
    """Single-branch evaluations of a picture of an arm, by its words alone.

    For a pipeline with classifier-free guidance at the scale that the file says; None where its
    model has to be asked: for steps, the scale or the pair.
    """
    settings = words.settings
    told = {"steps", "guidance"} <= settings.keys() and not {"image", "true_cfg"} & settings.keys()
    paired = words.method not in _PAIRS or {"strong", "weak"} & words.options.keys()
    if not told or not paired:
        return None
    cls = METHODS[words.method]
    try:
        options = read_options(words.options)
        check_fields(words.method, options, cls)
        return words.candidates * cls(**options).cost(settings["steps"], settings["guidance"])
    except InputError:  # a file of a role is not here
        return None


def _all(words: Words) -> Iterator[Missing]:
    find = cache(lambda **name: _reason(lambda: find_model(**name, download=False)))
    for arm in words.arms:
        if reason := find(**arm.model):
            yield Missing("model", arm.model["name"], reason, (arm.name,))
        yield from _of_arm(arm)
    prompts = words.run["prompts"]
    if reason := _reason(partial(load_set, prompts)):
        yield Missing("prompts", prompts, reason)
    scorers = (*words.run.get("scorers", ()), words.run.get("select"))
    for text in filter(None, scorers):
        if reason := _reason(partial(_refuse_scorer, text)):
            yield Missing("scorer", text, reason)


def _of_arm(arm: ArmWords) -> Iterator[Missing]:
    """Of the files that an arm names; those in the model's folder are the model's affair."""
    looks: list[tuple[str, str, Callable[[], Any]]] = [
        ("file", file, partial(LoraFile.parse, name, file)) for name, file in arm.loras.items()
    ]
    noise_model = str(arm.options.get("noise_model", ""))
    # One without an ending is a name, which the model knows.
    files = (arm.settings.get("image", ""), noise_model if Path(noise_model).suffix else "")
    looks += [("file", file, partial(_refuse_absent, file)) for file in files if file]
    texts = [arm.options[role] for role in ROLES if role in arm.options]
    for part in (part.strip() for text in texts for part in _parts(text)):
        head, _, value = part.partition("=")
        is_checkpoint = head == Checkpoint.kind and value
        kind, name = ("checkpoint", value) if is_checkpoint else ("edit", part)
        looks.append((kind, name, partial(_refuse_edit, part)))
    for kind, name, look in looks:
        if _MODEL not in name and (reason := _reason(look)):
            if kind == "file":
                reason += "; put it there, or say in the experiment file where it is"
            yield Missing(kind, name, reason, (arm.name,))


def _parts(text: str) -> list[str]:
    try:
        return split_edits(text)
    except InputError:  # said in full when the whole is read
        return [text]


def _refuse_edit(part: str) -> None:
    """Read one edit, which looks for its files."""
    for edit in parse_edits(part):
        if isinstance(edit, Checkpoint) and is_hub_id(edit.source):
            snapshot(str(edit.source), download=False)


def _refuse_scorer(text: str) -> None:
    parse_scorer(text).fingerprint()  # reads the weights' files, and loads nothing


def _refuse_absent(path: str) -> None:
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}")


def _reason(look: Callable[[], Any]) -> str | None:
    try:
        look()
    except W2SDiffError as error:
        return str(error)
    return None
