"""Arms in words: what differs shows, and where a file lies does not."""

from __future__ import annotations

import dataclasses

import pytest

from w2sdiff import W2SD, AutoGuidance, Checkpoint, Guidance, Lora, Plain, Prompt, Window, ZigZag
from w2sdiff import shapes as world
from w2sdiff.bench.plan.experiment import Arm
from w2sdiff.bench.plan.inwords import described
from w2sdiff.edits import Edits
from w2sdiff.generate import Settings, find_model

MODEL = find_model("shapes-unet")
WEAK = Checkpoint(world.weak_path("shapes-unet"))
SETTINGS = Settings(steps=20, guidance=3.0, device="cpu", dtype="float32")


def words(method, **changes):
    return described(dataclasses.replace(Arm("arm", method, MODEL, SETTINGS), **changes))


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (Plain(), "plain"),
        (ZigZag(), "zigzag (weak guidance=0)"),
        (W2SD(weak=WEAK), "w2sd (weak checkpoint=unet_weak)"),
        (W2SD(weak=WEAK, base=Lora("a", 0.5)), "w2sd (weak checkpoint=unet_weak; base lora:a=0.5)"),
        (
            W2SD(weak=WEAK, inversion="reference", window=Window(0.25, 0.5)),
            "w2sd (weak checkpoint=unet_weak; window 0.25:0.5; inversion reference)",
        ),
        (
            AutoGuidance(weak=Guidance(1.0) | WEAK, base=Edits(), scale=2.5, window=Window()),
            "autoguidance (weak checkpoint=unet_weak,guidance=1; base as called; "
            "scale 2.5; window 0:1 without the last step)",
        ),
        (Plain(Prompt("bad", negative="good")), 'plain (base prompt="bad",prompt:negative="good")'),
        (ZigZag(window=Window(steps=(1, 2))), "zigzag (weak guidance=0; window of 2 steps)"),
    ],
)
def test_a_method(method, said):
    assert words(method) == f"{said}, 20 steps, guidance 3"


def test_no_path_and_no_long_prompt():
    text = words(W2SD(strong=Prompt("x" * 10_000), weak=WEAK))
    assert len(text) < 200
    assert "/" not in text
    assert str(MODEL.folder) not in text


def test_settings_and_candidates():
    unguided = dataclasses.replace(SETTINGS, guidance=1.0)
    assert words(Plain(), settings=unguided) == "plain, 20 steps, unguided"
    several = words(Plain(), candidates=3, select="sharpness")
    assert several == "best of 3 by sharpness, plain, 20 steps, guidance 3"


@pytest.mark.parametrize("match", ["evaluations", "strength", "first order", "best of n"])
def test_what_a_rival_was_matched_in(match):
    text = words(Plain(), rival_of="my {arm}", match=match)
    assert text.startswith("plain, 20 steps, guidance 3: ")
    assert "my {arm}" in text
    assert "as many evaluations" in text
