"""From the words of a command line to a method."""

from __future__ import annotations

import pytest
from model_folders import model_folder

from w2sdiff import W2SD, AutoGuidance, Checkpoint, Guidance, Lora, Plain, Window, ZigZag
from w2sdiff.errors import InputError
from w2sdiff.generate import choose_method, compared, find_loras, find_model, parse_window


@pytest.fixture(scope="module")
def with_weak():
    return find_model(str(model_folder("sd", weak=True, lora=True)))


@pytest.fixture(scope="module")
def without():
    return find_model(str(model_folder("sd")))


def test_without_a_pair_the_weak_checkpoint_of_the_model(with_weak):
    weak = Checkpoint(with_weak.weak)
    method, [note] = choose_method("w2sd", {}, with_weak, 3.0)
    assert method == W2SD(strong=Guidance(1.0), weak=Guidance(1.0) | weak)
    assert "unet_weak" in note
    assert choose_method("w2sd", {}, with_weak, 1.0)[0] == W2SD(weak=weak)
    assert choose_method("autoguidance", {}, with_weak, 3.0)[0] == AutoGuidance(weak=weak)


def test_without_a_weak_checkpoint_a_guidance_pair(without):
    method, [note] = choose_method("w2sd", {}, without, 5.5)
    assert method == W2SD(strong=Guidance(5.5), weak=Guidance(0.0))
    assert "guidance 5.5 against guidance 0" in note
    assert method.cost(50, 5.5) == ZigZag().cost(50, 5.5)
    for name, guidance in (("w2sd", 1.0), ("autoguidance", 5.5)):
        with pytest.raises(InputError, match="needs a pair"):
            choose_method(name, {}, without, guidance)


def test_a_given_pair_is_taken_as_it_is(with_weak):
    options = {"weak": "lora:style=-1,guidance=1", "window": "0:0.5", "times": 2, "strong": None}
    method, notes = choose_method("w2sd", options, with_weak, 3.0)
    weak = Guidance(1.0) | Lora("style", -1.0)
    assert (method, notes) == (W2SD(weak=weak, window=Window(0, 0.5), times=2), [])
    assert choose_method("w2sd", {"strong": "guidance=5"}, with_weak, 3.0)[1] == []


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("0.2:0.8", Window(0.2, 0.8)),
        (":0.5", Window(0, 0.5)),
        ("0.5:", Window(0.5)),
        ("0:0", Window(0, 0)),
    ],
)
def test_windows(text, window):
    assert parse_window(text) == window


def test_loras_that_edits_name_and_the_model_brings_are_loaded_but_off(with_weak):
    method = W2SD(weak=Lora("style", -1.0))
    [lora] = find_loras(method, (), with_weak)
    assert (lora.name, lora.weight) == ("style", 0.0)
    assert find_loras(Plain(), (), with_weak) == ()


def test_a_comparison_of_checkpoints_is_drawn_at_the_guidance_of_the_call(with_weak):
    weak = Checkpoint(with_weak.weak)
    method = W2SD(strong=Guidance(1.0), weak=Guidance(1.0) | weak)
    arms = {arm.label: arm.method for arm in compared(method, "w2sd")}
    assert arms == {"weak": Plain(base=weak), "strong": Plain(), "w2sd": method}


def test_a_comparison_of_guidance_scales_keeps_them():
    method = ZigZag()
    arms = {arm.label: arm.method for arm in compared(method, "zigzag")}
    assert arms == {"weak": Plain(base=Guidance(0.0)), "strong": Plain(), "zigzag": method}
