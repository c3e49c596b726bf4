"""Broken JSON forms: whatever is missing, of another type or in another container, `InputError`."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any

import pytest

from w2sdiff import (
    W2SD,
    AutoGuidance,
    Checkpoint,
    CompressedKV,
    ControlScale,
    EmbeddedGuidance,
    Experts,
    Guidance,
    InputError,
    IPAdapterScale,
    LearnedGuidance,
    Lora,
    NoControl,
    Plain,
    Prompt,
    SkipLayers,
    Window,
    ZigZag,
    shapes,
)
from w2sdiff.attention import Schedule
from w2sdiff.edits import EDITS
from w2sdiff.methods import METHODS, Core2, StaleGuidance, ZCore2, from_json

JUNK: list[Any] = [
    *(None, True, False, -1, 0, 3, 0.5, 10**400, float("nan"), "", "x", "2"),
    *([], {}, [None], ["x"], [[1, 2]], {"x": 1}, [{}]),
]


def adapter():
    return shapes.checkpoint_path("shapes-dit") / "transformer" / "kv_adapter.safetensors"


def noise_model():
    return shapes.noise_model_path("shapes-unet")


LEVELS = Schedule({0.6: 2, 0.85: (4, 2)})
OF_EDITS = {
    "guidance": lambda: Guidance(1.0),
    "lora": lambda: Lora("dpo", -1.5, "0" * 64),
    "prompt": lambda: Prompt("{prompt}", "bad"),
    "no-control": lambda: NoControl(),
    "control-scale": lambda: ControlScale((0.5, 0.0)),
    "ip-adapter-scale": lambda: IPAdapterScale(0.3),
    "embedded-guidance": lambda: EmbeddedGuidance(1.5),
    "experts": lambda: Experts("bottom", 1),
    "skip-layers": lambda: SkipLayers([1, "mid_block"]),
    "learned-guidance": lambda: LearnedGuidance(noise_model()),
    "checkpoint": lambda: Checkpoint(shapes.weak_path("shapes-unet")),
    "compressed-kv": lambda: CompressedKV("average", LEVELS, range(4), per_layer={3: 4}),
    "compressed-kv with adapter": lambda: CompressedKV(adapter=adapter()),
}
OF_METHODS = {
    "plain": lambda: Plain(Guidance(2.0)),
    "w2sd": lambda: W2SD(window=Window(steps=(0, 2))),
    "zigzag": lambda: ZigZag(),
    "autoguidance": lambda: AutoGuidance(weak=Guidance(0.0), base=Guidance(1.0)),
    "core2": lambda: Core2(noise_model()),
    "zcore2": lambda: ZCore2(noise_model(), real_scale=3.5),
    "stale": lambda: StaleGuidance(),
}
NAMES = [*OF_EDITS, *OF_METHODS]


@cache
def form_of(name: str) -> dict[str, Any]:
    method = OF_METHODS[name]() if name in OF_METHODS else W2SD(weak=OF_EDITS[name]())
    form: dict[str, Any] = json.loads(json.dumps(method.to_json()))
    return form


def test_every_method_and_edit_is_broken_here():
    assert set(OF_METHODS) == set(METHODS)
    assert {name.split()[0] for name in OF_EDITS} == set(EDITS)


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to every value in a form, the form itself included."""
    yield path
    keys = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    for key in keys:
        yield from places(data[key], (*path, key))


def broken(form: Any) -> Iterator[Any]:
    """The form with one thing wrong: a value of another kind, one wrapped, lacking or too many."""
    for path in places(form):
        root = [copy.deepcopy(form)]  # so that the form itself has a place too
        owner: Any = root
        *way, last = (0, *path)
        for key in way:
            owner = owner[key]
        value = owner[last]
        others = [*JUNK, [value], {"x": value}, *(value[:1] if isinstance(value, list) else [])]
        if isinstance(value, dict):
            others.append({**value, "foo": 1})
        for other in others:
            owner[last] = other
            yield copy.deepcopy(root[0])
        del owner[last]
        if root:
            yield root[0]


@pytest.mark.parametrize("name", NAMES)
def test_only_an_input_error_ever_comes_out_or_a_method_that_works(name):
    form, refusals = form_of(name), []
    from_json(form)
    for data in broken(form):
        try:
            method = from_json(data)
        except InputError as error:
            refusals.append(str(error))
            continue
        assert method.cost(10, 5.0) >= 0, data
        assert repr(method)
        with suppress(InputError):  # a LoRA whose hash is gone: that has no JSON form
            written = json.loads(json.dumps(method.to_json()))
            assert from_json(written).key() == method.key(), data
    assert len(refusals) > len(JUNK)
    assert all(refusals)
    assert not [said for said in refusals if "\n" in said]


W2SD_FORM = {"method": "w2sd"}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], r"A method is names and values, \{\.\.\.\}; got \[\]"),
        ({}, "Unknown method 'None'"),
        (W2SD_FORM | {"windw": {}}, "Unknown field of the method 'w2sd' 'windw'.*'window'"),
        (W2SD_FORM | {"window": {"stp": 1}}, "Unknown field of a window 'stp'.*'stop'"),
        (W2SD_FORM | {"window": None}, r"A window is names and values, \{\.\.\.\}; got None"),
        (W2SD_FORM | {"weak": {"edit": "guidance", "scale": 1}}, r"A role is a list, \[\.\.\.\]"),
        (W2SD_FORM | {"weak": "guidance=1"}, r"A role is a list, \[\.\.\.\]; got 'guidance=1'"),
        (W2SD_FORM | {"weak": ["guidance=1"]}, "An edit is names and values"),
        (W2SD_FORM | {"weak": [{"edit": "checkpoint"}]}, "'checkpoint' needs a value for 'path'"),
        (W2SD_FORM | {"weak": [{"edit": "guidance"}]}, "'guidance' needs a value for 'scale'"),
        (W2SD_FORM | {"weak": [{"edit": "guidance", "sale": 1}]}, "'sale'.*'scale'"),
        ({"method": "core2"}, "'core2' needs a value for 'noise_model'"),
        ({"method": "core2", "noise_model": {"path": "x"}}, "needs a value for 'sha256'"),
    ],
    ids=str,
)
def test_the_error_says_what_was_expected(data, says):
    with pytest.raises(InputError, match=says):
        from_json(data)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: W2SD(window="0:0.5"), "A window is a Window"),
        (lambda: Window(last="no"), "last is True or False"),
        (lambda: Window(steps=3.5), "counted from 0"),
        (lambda: Lora("", 1.0), "name of a LoRA"),
        (lambda: Prompt(3), "text of a Prompt"),
        (lambda: Checkpoint(3), "a path, a hub id or a module"),
        (lambda: Guidance(10**400), "number"),
        (lambda: SkipLayers(None), "A layer is a number"),
    ],
)
def test_so_does_that_of_the_class(make, says):
    with pytest.raises(InputError, match=says):
        make()
