"""Methods are values: equal after a trip through JSON text, with a key that depends on what decides
the result.
"""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from noise_models import noise_model_file

from w2sdiff import W2SD, AutoGuidance, Guidance, InputError, Lora, Plain, Prompt, Window, ZigZag
from w2sdiff.edits import Checkpoint, Edits
from w2sdiff.methods import METHODS, from_json

HASH = "0" * 64
number = st.floats(-20, 20)
text = st.text(max_size=20)
guidance = st.builds(Guidance, number)
lora = st.builds(Lora, st.text(min_size=1, max_size=8), number, st.just(HASH))
prompt = st.builds(Prompt, text, st.none() | text)


@st.composite
def roles(draw):
    kinds = draw(st.lists(st.sampled_from([guidance, lora, prompt]), unique=True, max_size=3))
    return Edits(tuple(draw(kind) for kind in kinds)) if kinds else None


@st.composite
def windows(draw):
    if draw(st.booleans()):
        return Window(steps=tuple(draw(st.lists(st.integers(0, 100), max_size=5))))
    a, b = sorted((draw(st.floats(0, 1)), draw(st.floats(0, 1))))
    return Window(a, b, draw(st.booleans()))


methods = st.one_of(
    st.builds(Plain, roles()),
    st.builds(
        W2SD,
        strong=roles(),
        weak=roles(),
        base=roles(),
        window=windows(),
        times=st.integers(1, 4),
        inversion=st.sampled_from(["exact", "reference"]),
    ),
    st.builds(ZigZag, strong=st.none() | guidance, weak=guidance, window=windows()),
    st.builds(
        AutoGuidance, strong=roles(), weak=roles(), scale=number, base=roles(), window=windows()
    ),
)


@given(methods)
def test_json_round_trip(method):
    text = json.dumps(method.to_json(), allow_nan=False)
    again = from_json(json.loads(text))
    assert again == method
    assert type(again) is type(method)
    assert hash(again) == hash(method)
    assert again.key() == method.key()


@given(methods, methods)
def test_the_key_tells_methods_apart(a, b):
    assert (a.key() == b.key()) == (a == b)


def test_every_registered_method_has_a_json_form_a_summary_and_a_cost(tmp_path):
    assert {"plain", "w2sd", "zigzag", "autoguidance", "core2", "zcore2", "stale"} <= set(METHODS)
    file = noise_model_file(tmp_path / "noise_model.safetensors")
    for name, cls in METHODS.items():
        method = cls(file) if name in ("core2", "zcore2") else cls()
        assert method.to_json()["method"] == name
        assert from_json(method.to_json()) == method
        assert METHODS.summary(name).strip()
        assert "\n" not in METHODS.summary(name)
        assert method.cost(10, 1.0) >= 10


def test_frozen():
    with pytest.raises(AttributeError):
        Plain().base = None
    with pytest.raises(AttributeError):
        W2SD().times = 2


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(InputError, match=r"w2sdd.*'w2sd'"):
        from_json({"method": "w2sdd"})
    with pytest.raises(InputError, match=r"guidence.*'guidance'"):
        from_json({"method": "plain", "base": [{"edit": "guidence", "scale": 1.0}]})


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"method": None},
        {"method": "w2sd", "strength": 3},
        {"method": "plain", "base": [{"edit": "guidance"}]},
    ],
    ids=repr,
)
def test_broken_json_is_an_input_error(data):
    with pytest.raises(InputError):
        from_json(data)


def test_what_has_no_json_form_says_so():
    with pytest.raises(InputError, match="no JSON form"):
        W2SD(weak=Guidance(1.0), window=Window(when=lambda *_: True)).to_json()
    with pytest.raises(InputError, match="no JSON form"):
        W2SD(weak=Checkpoint(torch.nn.Linear(1, 1))).to_json()
    with pytest.raises(InputError, match="no JSON form"):
        W2SD(weak=Prompt(embeddings={"prompt_embeds": torch.zeros(1)})).to_json()
    with pytest.raises(InputError, match="no JSON form"):
        W2SD(weak=Lora("dpo", 1.0)).to_json()


def test_the_key_depends_on_the_weights_of_a_lora_and_not_on_where_they_lie(tmp_path):
    a, b, c = (tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors"))
    a.write_bytes(b"one")
    b.write_bytes(b"one")
    c.write_bytes(b"two")
    key = lambda file: W2SD(weak=Lora.of_file("dpo", -1.5, file)).key()  # noqa: E731
    assert key(a) == key(b)
    assert key(a) != key(c)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: W2SD(times=0), "times"),
        (lambda: W2SD(times=1.5), "times"),
        (lambda: W2SD(inversion="exactly"), "inversion"),
        (lambda: W2SD(weak="dpo"), "Guidance"),
        (lambda: ZigZag(weak=Lora("dpo", 1.0)), "W2SD"),
        (lambda: AutoGuidance(scale="much"), "number"),
        (lambda: AutoGuidance(scale=float("nan")), "finite"),
    ],
)
def test_bad_options(make, says):
    with pytest.raises(InputError, match=says):
        make()
