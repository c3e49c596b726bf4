"""Edits as values: combination, JSON, the command line's grammar, and the algebra of guidance."""

from __future__ import annotations

import contextlib
import hashlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from w2sdiff import Checkpoint, Guidance, InputError, Lora, Prompt
from w2sdiff.edits import EDITS, Edits, parse_edits
from w2sdiff.edits.base import Context

finite = st.floats(-100, 100)


def test_combination_has_no_order():
    a, b, c = Guidance(1.0), Lora("dpo", -1.5), Prompt("x")
    assert a | b == b | a
    assert (a | b) | c == a | (b | c) == Edits((c, b, a))
    assert hash(a | b) == hash(b | a)


@pytest.mark.parametrize(
    "pair",
    [
        (Guidance(1.0), Guidance(2.0)),
        (Lora("a", 1.0), Lora("a", 2.0)),
        (Prompt("a"), Prompt("b")),
        (Checkpoint(torch.nn.Linear(1, 1)), Checkpoint(torch.nn.Linear(1, 1))),
    ],
    ids=lambda pair: pair[0].kind,
)
def test_two_of_a_kind_are_an_error(pair):
    with pytest.raises(InputError, match=pair[0].kind):
        pair[0] | pair[1]


@given(finite, finite, st.text(min_size=1))
def test_json_round_trip(w, scale, name):
    edits = Guidance(scale) | Lora(name, w, "a" * 64) | Prompt(name, negative=name)
    again = Edits.from_json(json.loads(json.dumps(edits.to_json())))
    assert again == edits


def test_json_of_a_lora_holds_the_hash_of_its_file(tmp_path):
    file = tmp_path / "dpo.safetensors"
    file.write_bytes(b"weights")
    (data,) = Edits((Lora.of_file("dpo", -1.5, file),)).to_json()
    assert data["sha256"] == hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(InputError, match=r"missing\.safetensors"):
        Lora.of_file("dpo", -1.5, tmp_path / "missing.safetensors")


def test_json_of_a_checkpoint_holds_the_hash_of_its_weights(tmp_path):
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    keys = []
    for weights in (b"one", b"two"):
        file.write_bytes(weights)
        (data,) = Edits((Checkpoint(tmp_path),)).to_json()
        assert len(data["sha256"]) == 64
        keys.append(data["sha256"])
    assert keys[0] != keys[1]


@given(finite)
def test_grammar_reads_what_python_writes(w):
    assert parse_edits(f"guidance={w!r}") == Edits((Guidance(w),))
    assert parse_edits(f"lora:dpo={w!r},guidance=1") == Guidance(1.0) | Lora("dpo", w)


@pytest.mark.parametrize(
    ("text", "edits"),
    [
        ("guidance=1", Edits((Guidance(1.0),))),
        (" lora:dpo=-1.5 , guidance=1 ", Guidance(1.0) | Lora("dpo", -1.5)),
        ('prompt="a cat, a dog",guidance=0', Guidance(0.0) | Prompt("a cat, a dog")),
        ('prompt="say ""no"", twice"', Edits((Prompt('say "no", twice'),))),
        ("prompt={prompt} at night", Edits((Prompt("{prompt} at night"),))),
        ("prompt=@refined", Edits((Prompt("@refined"),))),
        ("prompt=x=y", Edits((Prompt("x=y"),))),
    ],
)
def test_grammar(text, edits):
    assert parse_edits(text) == edits


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Empty"),
        ("   ", "Empty"),
        ("guidence=1", "'guidance'"),
        ("lorra:dpo=1", "'lora'"),
        ("guidance=much", "number"),
        ("guidance=nan", "finite"),
        ("guidance=inf", "finite"),
        ("guidance=", "number"),
        ("guidance", "guidance=W"),
        ("guidance:x=1", "guidance"),
        ("lora=1", "name"),
        ("lora:=1", "name"),
        ("lora:dpo=strong", "number"),
        ("guidance=1,,lora:dpo=1", "comma"),
        ("guidance=1,", "comma"),
        (",guidance=1", "comma"),
        ('prompt="open', "quote"),
        ("guidance=1,guidance=2", "Two"),
        ("=1", "Known: checkpoint, compressed-kv, control-scale"),
    ],
)
def test_grammar_errors_are_one_line_that_helps(text, says):
    with pytest.raises(InputError) as error:
        parse_edits(text)
    assert says.lower() in str(error.value).lower()
    assert "\n" not in str(error.value)


@given(st.text(max_size=40))
def test_no_text_makes_the_grammar_fail_otherwise(text):
    with contextlib.suppress(InputError):
        assert isinstance(parse_edits(text), Edits)


def test_every_edit_has_a_summary_line_and_nothing_else_is_registered():
    assert set(EDITS) >= {"guidance", "lora", "checkpoint", "compressed-kv", "prompt"}
    for name in EDITS:
        assert EDITS.summary(name).startswith(name)


@pytest.mark.parametrize(
    "make", [lambda: Guidance("x"), lambda: Lora("a", None), lambda: Guidance(float("inf"))]
)
def test_scales_are_finite_numbers(make):
    with pytest.raises(InputError):
        make()


@pytest.mark.parametrize(
    "make", [lambda: Prompt(), lambda: Prompt("a", embeddings={"prompt_embeds": torch.zeros(1)})]
)
def test_a_prompt_has_one_source(make):
    with pytest.raises(InputError):
        make()


@given(st.floats(1.5, 15), st.floats(-3, 15), st.integers(0, 1000))
def test_guidance_rewrites_the_halves_so_that_the_pipelines_mix_gives_ours(s, w, seed):
    """u' + s (c - u') = u + w (c - u), with c untouched wherever both halves are there."""
    generator = torch.Generator().manual_seed(seed)
    c, u = torch.randn(2, 7, generator=generator, dtype=torch.float64).unbind()
    context = Context(pipe=None, denoisers=(), tap=lambda _: None, guidance_scale=s)
    edit = Guidance(w)
    needs = edit.needs(context) or {"c", "u"}
    c2, u2 = edit.halves(c if "c" in needs else None, u if "u" in needs else None, context)
    torch.testing.assert_close(u2 + s * (c2 - u2), u + w * (c - u), rtol=1e-9, atol=1e-9)
    if needs == {"c", "u"}:
        assert torch.equal(c2, c)


@pytest.mark.parametrize(("w", "needs"), [(1.0, {"c"}), (0.0, {"u"}), (3.0, {"c", "u"})])
def test_only_the_halves_that_matter_are_computed(w, needs):
    context = Context(pipe=None, denoisers=(), tap=lambda _: None, guidance_scale=5.0)
    assert Guidance(w).needs(context) == needs
    context.rescales = True  # the rescale compares with the conditional half
    assert Guidance(w).needs(context) == needs | {"c"}


def test_prompt_texts():
    assert Prompt("fixed").texts(["a", "b"], {}) == ["fixed", "fixed"]
    assert Prompt("{prompt}!").texts(["a", "b"], {}) == ["a!", "b!"]
    assert Prompt("@fine").texts(["a", "b"], {"fine": ["x", "y"]}) == ["x", "y"]
    with pytest.raises(InputError, match=r"fine.*coarse"):
        Prompt("@fine").texts(["a"], {"coarse": ["x"]})
    with pytest.raises(InputError, match="3 values for 2"):
        Prompt("@fine").texts(["a", "b"], {"fine": ["x", "y", "z"]})
