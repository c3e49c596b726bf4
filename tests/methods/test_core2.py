"""`Core2`, `ZCore2` and `StaleGuidance` as values: files, keys, copies, roles, bad numbers."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import shutil

import pytest
import torch
from noise_models import Scaled, noise_model_file

from w2sdiff import W2SD, Checkpoint, Guidance, InputError, Lora
from w2sdiff.core2 import NoiseModel
from w2sdiff.edits import Edits, LearnedGuidance
from w2sdiff.levels import Levels
from w2sdiff.methods import Core2, StaleGuidance, ZCore2, from_json
from w2sdiff.methods.base import Step


@pytest.fixture
def file(tmp_path):
    return noise_model_file(tmp_path / "noise_model.safetensors")


WITH_MODEL = [
    lambda m: Core2(m, scale=1.25, slow_until=0.3, fast_scale=0.9, reference=True),
    lambda m: Core2(m, base=Lora("style", 0.5, "0" * 64)),
    lambda m: ZCore2(m, scale=0.5, real_scale=3.5, times=2, inversion="reference"),
    lambda m: ZCore2(m, base=Lora("style", 0.5, "0" * 64), weak_time="next"),
    lambda m: W2SD(weak=LearnedGuidance(m, scale=0.5)),
    lambda m: W2SD(strong=LearnedGuidance(m, slow=2.0, reference=True)),
]
IDS = ["core2", "core2 base", "zcore2", "zcore2 base", "fast edit", "slow edit"]
with_model = pytest.mark.parametrize("make", WITH_MODEL, ids=IDS)


@with_model
def test_json_round_trip(make, file):
    method = make(file)
    again = from_json(json.loads(json.dumps(method.to_json(), allow_nan=False)))
    assert type(again) is type(method)
    assert again.key() == method.key()
    assert again.to_json() == method.to_json()
    assert again.roles == method.roles
    assert again.cost(9, 4.0) == method.cost(9, 4.0)


@with_model
def test_the_key_depends_on_the_weights_and_not_on_where_they_lie(make, file, tmp_path):
    moved = tmp_path / "elsewhere" / "model.safetensors"
    moved.parent.mkdir()
    shutil.copyfile(file, moved)
    other = noise_model_file(tmp_path / "other.safetensors", seed=1)
    assert make(file).key() == make(moved).key() == make(str(moved)).key()
    assert make(file).key() != make(other).key()


@with_model
def test_another_file_in_its_place_is_noticed(make, file):
    said = make(file).to_json()
    noise_model_file(file, seed=1)
    if "noise_model" in said:
        with pytest.raises(InputError, match="not the one it was"):
            from_json(said)
    else:  # an edit checks it when it is loaded
        [edits] = [edits for edits in from_json(said).roles.values() if edits]
        [edit] = edits
        with pytest.raises(InputError, match="not the one expected"):
            edit._load(torch.zeros(1))
    file.unlink()
    with pytest.raises(InputError, match="No noise model file"):
        from_json(said)


@with_model
def test_a_model_in_memory_has_no_json_form_and_says_what_to_do(make):
    with pytest.raises(InputError, match="save_noise_model"):
        make(Scaled()).to_json()


@with_model
def test_copies_are_equal_values(make, file):
    method = make(file)
    for again in (copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        assert again == method
        assert again.roles == method.roles
        assert again.key() == method.key()
        assert hash(again) == hash(method)


@with_model
def test_every_edit_of_the_user_is_changed_and_nothing_else(make, file):
    method = make(file)
    assert method.with_edits(lambda edit: edit) == method
    assert method.with_edits(lambda edit: edit).key() == method.key()

    def rename(edit):
        return dataclasses.replace(edit, name="other") if isinstance(edit, Lora) else edit

    changed = method.with_edits(rename)
    names = {e.name for edits in changed.roles.values() for e in edits or () if e.kind == "lora"}
    before = {e.name for edits in method.roles.values() for e in edits or () if e.kind == "lora"}
    assert names == ({"other"} if before else set())


def test_numbers_tell_edits_apart(file, tmp_path):
    shutil.copyfile(file, tmp_path / "copy.safetensors")
    edit = LearnedGuidance(file)
    assert edit == LearnedGuidance(tmp_path / "copy.safetensors"), "equal weights"
    assert hash(edit) == hash(LearnedGuidance(tmp_path / "copy.safetensors"))
    different = [
        LearnedGuidance(file, scale=0.5),
        LearnedGuidance(file, slow=1.0),
        LearnedGuidance(file, reference=True),
        LearnedGuidance(noise_model_file(tmp_path / "b.safetensors", seed=2)),
        LearnedGuidance(Scaled()),
        Guidance(1.0),
    ]
    assert all(edit != other for other in different)
    model = Scaled()
    assert LearnedGuidance(model) == LearnedGuidance(model) != LearnedGuidance(Scaled())


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda m: Core2(m, slow_until=0.6), 80),
        (lambda m: Core2(m, slow_until=0), 50),
        (lambda m: Core2(m, slow_until=1), 100),
        (lambda m: Core2(m, slow_until=0.5, base=Lora("style", 1.0)), 75),
        (lambda m: ZCore2(m), 49 * 5 + 2),
        (lambda m: ZCore2(m, times=2), 49 * 8 + 2),
        (lambda m: ZCore2(m, real_scale=1.0), 49 * 4 + 1),
        (lambda _: StaleGuidance(every=1), 100),
        (lambda _: StaleGuidance(every=2), 75),
        (lambda _: StaleGuidance(every=4), 50 + 13),
    ],
)
def test_cost_of_fifty_guided_steps(make, expected):
    assert make(Scaled()).cost(num_inference_steps=50, guidance_scale=5.5) == expected


@pytest.mark.parametrize("n", [1, 2, 7, 9, 28, 50])
@pytest.mark.parametrize(
    "make",
    [
        lambda m: Core2(m, slow_until=0.6),
        lambda m: Core2(m, slow_until=0.25),
        lambda m: ZCore2(m, times=3),
        lambda _: StaleGuidance(every=3),
    ],
)
def test_cost_counts_what_the_method_asks_for(make, n):
    """A hand-turned crank, as in test_cost."""
    method, levels, spent = make(Scaled()), Levels.flow(n), 0
    for i in range(n):
        inside = method.window.contains(i, n)
        conversation = method.steps(Step(torch.ones(1, 2), i, inside, lambda: levels))
        answer = None
        while True:
            try:
                request = conversation.send(answer)
            except StopIteration:
                break
            spent += (method.roles[request.role] or Edits()).evaluations(4.0)
            answer = torch.zeros_like(request.x)
    assert spent == method.cost(n, 4.0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda m: Core2(m, scale="much"), "Core2 scale must be a number"),
        (lambda m: Core2(m, scale=float("nan")), "finite"),
        (lambda m: Core2(m, fast_scale=float("inf")), "finite"),
        (lambda m: Core2(m, slow_until=1.5), r"slow_until is a fraction.*\[0, 1\], got 1.5"),
        (lambda m: Core2(m, slow_until=-0.1), r"slow_until.*\[0, 1\]"),
        (lambda m: Core2(m, base=Guidance(3.0)), "takes no guidance of its own"),
        (lambda m: Core2(m, base=LearnedGuidance(m)), "takes no guidance of its own"),
        (lambda m: Core2(m, base="dpo"), "A role is an edit"),
        (lambda _: Core2("nowhere.safetensors"), r"No noise model file nowhere\.safetensors"),
        (lambda _: Core2(torch.nn.Linear(1, 1)), "got Linear"),
        (lambda _: Core2(None), "got NoneType"),
        (lambda m: ZCore2(m, scale=None), "ZCore2 scale must be a number"),
        (lambda m: ZCore2(m, real_scale="x"), "number"),
        (lambda m: ZCore2(m, base=Guidance(1.0)), "takes no guidance of its own"),
        (lambda m: ZCore2(m, times=0), "times"),
        (lambda m: ZCore2(m, inversion="rough"), "inversion"),
        (lambda _: ZCore2("nowhere"), "No noise model file nowhere"),
        (lambda _: StaleGuidance(every=0), "at least 1; got 0"),
        (lambda _: StaleGuidance(every=1.5), "at least 1; got 1.5"),
        (lambda _: StaleGuidance(base=Guidance(2.0)), "takes no guidance of its own"),
        (lambda m: LearnedGuidance(m, scale=0.5, slow=1.5), "not both"),
        (lambda m: LearnedGuidance(m, slow=float("inf")), "finite"),
    ],
)
def test_bad_options(make, says):
    with pytest.raises(InputError, match=says) as error:
        make(Scaled())
    assert "\n" not in str(error.value)


def test_frozen():
    for method in (Core2(Scaled()), ZCore2(Scaled()), StaleGuidance()):
        with pytest.raises(AttributeError):
            method.base = None


def test_a_noise_model_needs_a_formula_and_a_form():
    with pytest.raises(NotImplementedError, match="NoiseModel"):
        NoiseModel()(torch.zeros(1, 4, 8, 8), None)
    with pytest.raises(InputError, match="no file form"):
        Scaled().to_config()


def test_the_command_lines_form_of_the_edit(file):
    from w2sdiff.edits import parse_edits

    assert parse_edits(f"learned-guidance={file}") == Edits((LearnedGuidance(file),))
    combined = parse_edits(f"lora:style=0.5,learned-guidance={file}")
    assert combined == Lora("style", 0.5) | LearnedGuidance(file)
    for text, says in (
        (f"learned-guidance:x={file}", "means nothing"),
        ("learned-guidance=nowhere", "No noise model file nowhere"),
    ):
        with pytest.raises(InputError, match=says):
            parse_edits(text)


def test_what_a_weak_network_is_may_be_learned_too(tmp_path):
    """Edits of both kinds in one role: the checkpoint speaks, the noise model stands in."""
    edits = Checkpoint(torch.nn.Linear(1, 1)) | LearnedGuidance(Scaled())
    assert [edit.kind for edit in edits] == ["checkpoint", "learned-guidance"]
    assert edits.evaluations(5.0) == 1
    assert (Edits() | LearnedGuidance(Scaled(), slow=1.5)).evaluations(5.0) == 2
