"""Matched arms: equal evaluations, equal strength, and first-order forms from the algebra."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from model_folders import model_folder

from w2sdiff import (
    W2SD,
    AutoGuidance,
    Checkpoint,
    Guidance,
    Lora,
    Plain,
    Prompt,
    Window,
    ZigZag,
    shapes,
)
from w2sdiff.bench.plan.experiment import Arm
from w2sdiff.bench.rivals.matched import rivals_of
from w2sdiff.drivers.function import drive
from w2sdiff.edits import Edits
from w2sdiff.generate import Settings, find_model
from w2sdiff.levels import Levels

MODEL = find_model("shapes-unet")
WEAK = Checkpoint(shapes.weak_path("shapes-unet"))
COND = Guidance(1.0)


def arm(method, name="arm", **changes):
    settings = {"steps": 20, "guidance": 3.0, "device": "cpu", "dtype": "float32"}
    return Arm(name, method, MODEL, Settings(**settings | changes))


def rivals(method, *, strength=None, select="sharpness", **changes):
    """By what they are matched in, with the notes of those that were left out."""
    notes = []
    found = rivals_of(
        arm(method, **changes), strength=strength, select=select, on_note=notes.append
    )
    return {rival.match: rival for rival in found}, notes


CASES = {
    "w2sd": (W2SD(strong=COND, weak=COND | WEAK), {}),
    "w2sd, guided pair": (W2SD(weak=WEAK), {}),
    "w2sd, another base": (W2SD(strong=COND | Lora("a", 1.0), weak=COND | Lora("a", -1.0)), {}),
    "w2sd twice": (W2SD(strong=COND, weak=COND | WEAK, times=2), {}),
    "w2sd, a window": (W2SD(weak=WEAK, window=Window(0.3, 0.7)), {}),
    "w2sd, steps": (W2SD(weak=WEAK, window=Window(steps=(2, 3, 4, 19))), {}),
    "zigzag": (ZigZag(), {}),
    "zigzag, a window": (ZigZag(window=Window(stop=0.5)), {}),
    "autoguidance": (AutoGuidance(weak=WEAK), {}),
    "autoguidance, a base": (AutoGuidance(strong=COND, weak=COND | WEAK, base=Edits()), {}),
    "prompts": (W2SD(strong=COND | Prompt("{prompt}, fine"), weak=COND | Prompt("bad")), {}),
    "no guidance": (W2SD(weak=WEAK), {"guidance": 1.0}),
    "one step": (W2SD(weak=WEAK), {"steps": 1}),
    "three steps": (W2SD(weak=WEAK), {"steps": 3}),
}


@pytest.fixture
def picture(tmp_path):
    from PIL import Image

    path = tmp_path / "start.png"
    Image.new("RGB", (64, 64), "red").save(path)
    return path


@pytest.mark.parametrize("name", CASES)
def test_equal_evaluations(name):
    method, settings = CASES[name]
    ours = arm(method, **settings)
    found = rivals_of(ours, strength=4.5, select="sharpness")
    assert found
    for rival in found:
        scale = rival.settings.guidance
        one_step = rival.candidates * max(
            rival.method.evaluations(inside, scale) for inside in (True, False)
        )
        assert ours.evaluations - one_step < rival.evaluations <= ours.evaluations
        assert rival.rival_of == "arm"
        assert rival.name.startswith("arm: ")


@pytest.mark.parametrize("strength", [0.1, 0.37, 0.5, 0.9, 1.0])
def test_equal_evaluations_from_an_image(strength, picture):
    """Only the last part of a run is made: int(steps × strength) of it, for arm and rival alike."""
    found, _ = rivals(W2SD(weak=WEAK), strength=4.0, image=picture, image_strength=strength)
    made = max(1, int(20 * strength))
    budget = 2 * made + 4 * (made - 1)
    plain = found["evaluations"]
    assert max(1, int(plain.settings.steps * strength)) == budget // 2
    assert plain.evaluations == budget // 2 * 2
    assert plain.settings.image == picture


@pytest.mark.parametrize("name", CASES)
def test_no_rival_twice_and_none_of_a_rival(name):
    method, settings = CASES[name]
    found = rivals_of(arm(method, **settings), strength=3.0, select="sharpness")
    what = [(rival.method, rival.settings, rival.candidates) for rival in found]
    assert all(what.count(one) == 1 for one in what)
    assert len({rival.name for rival in found}) == len(found)
    for rival in found:
        assert rivals_of(rival, strength=3.0, select="sharpness") == []


def test_a_plain_arm_has_no_rivals():
    assert rivals_of(arm(Plain()), strength=3.0, select="sharpness") == []
    assert rivals_of(arm(Plain(base=WEAK)), strength=3.0, select="sharpness") == []


def test_the_best_of_several_plain_pictures_rivals_one_of_more_steps():
    ours = dataclasses.replace(arm(Plain()), candidates=4, select="sharpness")
    [rival] = rivals_of(ours, select="sharpness")
    assert (rival.match, rival.candidates, rival.settings.steps) == ("evaluations", 1, 80)


def test_a_method_with_candidates_is_matched_in_all_of_them():
    ours = dataclasses.replace(arm(ZigZag()), candidates=2, select="sharpness")
    found = {rival.match: rival for rival in rivals_of(ours, select="sharpness")}
    assert found["evaluations"].evaluations == 2 * 97
    assert found["best of n"].candidates == 5


# ---- plain sampling


def test_plain_with_more_steps():
    found, _ = rivals(W2SD(strong=COND, weak=COND | WEAK))
    plain = found["evaluations"]
    assert plain.method == Plain()
    assert (plain.settings.steps, plain.settings.guidance) == (39, 3.0)
    assert plain.name == "arm: plain, 39 steps"
    assert (plain.evaluations, arm(W2SD(strong=COND, weak=COND | WEAK)).evaluations) == (78, 78)


def test_the_base_model_keeps_its_edits():
    tuned = Lora("a", 0.8)
    found, _ = rivals(W2SD(strong=COND | tuned, weak=COND, base=tuned), strength=4.0)
    assert found["evaluations"].method == Plain(tuned)
    assert found["strength"].method == Plain(tuned)
    assert found["best of n"].method == Plain(tuned)


def test_the_scale_of_half_a_pair_is_not_one_to_draw_with():
    found, _ = rivals(AutoGuidance(strong=COND | Lora("a", 0.8), weak=COND), strength=4.0)
    assert found["evaluations"].method == Plain(Lora("a", 0.8))
    assert found["evaluations"].settings.guidance == 3.0


def test_plain_at_the_measured_scale():
    found, _ = rivals(W2SD(weak=WEAK), strength=4.56789)
    strength = found["strength"]
    assert (strength.method, strength.settings.guidance) == (Plain(), 4.568)
    assert strength.evaluations == found["evaluations"].evaluations


def test_a_measured_scale_that_is_the_called_one_is_the_rival_there_is_already():
    found, _ = rivals(W2SD(weak=WEAK), strength=3.0001)
    assert "strength" not in found


def test_a_scale_that_pipelines_take_for_no_guidance_is_an_edit():
    """`guidance_scale=0.7` turns guidance off; the mix at 0.7 needs the pipeline to run with it."""
    found, _ = rivals(W2SD(weak=WEAK), strength=0.7)
    assert found["strength"].method == Plain(Guidance(0.7))
    assert found["strength"].settings.guidance == 3.0


def test_without_guidance_there_is_no_scale_to_match():
    found, _ = rivals(W2SD(weak=WEAK), strength=None, guidance=1.0)
    assert set(found) == {"evaluations", "first order", "best of n"}


def test_where_there_are_two_kinds_of_guidance_the_true_one_is_matched():
    """FLUX: `guidance` is an input of the network; classifier-free guidance is `true_cfg`."""
    model = find_model(str(model_folder("flux-true-cfg")))
    settings = Settings(
        steps=20, guidance=3.5, true_cfg=4.0, negative="", device="cpu", dtype="float32"
    )
    found = rivals_of(Arm("zigzag", ZigZag(), model, settings), strength=7.0)
    scales = {rival.match: rival.settings.true_cfg for rival in found}
    assert scales == {"evaluations": 4.0, "strength": 7.0, "first order": 8.0}
    assert {rival.settings.guidance for rival in found} == {3.5}


# ---- first order


@pytest.mark.parametrize("times", [1, 2])
def test_with_base_equal_to_strong_it_is_autoguidance_in_two_models(times):
    found, _ = rivals(W2SD(weak=WEAK, times=times))
    rival = found["first order"].method
    assert rival == AutoGuidance(weak=WEAK, scale=1 + times, window=Window())


def test_a_role_as_called_is_the_role_with_the_called_scale():
    found, _ = rivals(W2SD(strong=Guidance(3.0), weak=Guidance(3.0) | WEAK))
    assert found["first order"].method.base is None


def test_with_another_base_it_keeps_the_base():
    method = W2SD(strong=COND | Lora("a", 0.8), weak=COND | Lora("a", -1.5), base=Lora("a", 0.8))
    found, _ = rivals(method)
    rival = found["first order"].method
    assert (rival.strong, rival.weak, rival.base) == (method.strong, method.weak, method.base)
    assert rival.scale == 2.0
    assert rivals(W2SD(strong=COND, weak=COND | WEAK))[0]["first order"].method.base == Edits()


@pytest.mark.parametrize(
    ("method", "scale"),
    [
        (ZigZag(), 2 * 3 - 0),
        (ZigZag(strong=Guidance(5.5), weak=Guidance(1.0), base=Guidance(5.5)), 2 * 5.5 - 1),
        (ZigZag(times=2), 3 + 2 * 3),
        (W2SD(strong=Guidance(4.0), weak=Guidance(2.0)), 3 + 4 - 2),
    ],
)
def test_a_guidance_pair_is_plain_guidance(method, scale):
    found, _ = rivals(method)
    rival = found["first order"]
    assert (rival.method, rival.settings.guidance) == (Plain(), scale)


def test_a_guidance_pair_on_other_words_keeps_them():
    words = Prompt(negative="blurry")
    method = W2SD(strong=words | Guidance(4.0), weak=words | Guidance(1.0), base=words)
    found, _ = rivals(method)
    assert found["first order"].method == Plain(words)
    assert found["first order"].settings.guidance == 6.0


def test_a_pair_that_does_not_differ_has_no_first_order():
    found, notes = rivals(W2SD(strong=WEAK, weak=WEAK))
    assert "first order" not in found
    assert any("does not differ" in note for note in notes)


def mixes(seed=0, width=4):
    """Linear networks: strong, weak and base of W2SD, and mixes of a guidance pair."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, width, width)
    c, u, w = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return c, u, w, torch.randn(2, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("stop", [1.0, 0.5])
def test_the_first_order_of_a_pair_of_networks_is_an_order_closer(stop):
    """W2SD and its rival differ by O(h); W2SD and plain sampling do not come closer at all."""
    c, u, w, x = mixes()
    method = W2SD(strong=COND, weak=COND | WEAK, times=2, window=Window(stop=stop))
    rival = rivals(method)[0]["first order"].method
    models = {
        "strong": lambda x, *_: x @ c.T,
        "weak": lambda x, *_: x @ w.T,
        "base": lambda x, *_: x @ (u + 3 * (c - u)).T,
    }

    def gap(n, other):
        levels = Levels.flow(n)
        return float((drive(method, models, x, levels) - drive(other, models, x, levels)).norm())

    assert 0.4 < gap(160, rival) / gap(80, rival) < 0.6
    assert gap(160, Plain()) / gap(80, Plain()) > 0.9


@pytest.mark.parametrize("window", [Window(0.0, 0.5), Window(0.25, 0.75)])
def test_the_first_order_of_a_guidance_pair_acts_in_its_window(window):
    c, u, _, x = mixes()
    method = ZigZag(window=window)
    rival = rivals(method)[0]["first order"].method

    def mix(scale):
        return lambda x, *_: x @ (u + scale * (c - u)).T

    models = {"strong": mix(3.0), "weak": mix(0.0), "base": mix(3.0)}

    def gap(n):
        levels = Levels.flow(n)
        return float((drive(method, models, x, levels) - drive(rival, models, x, levels)).norm())

    assert rival.window == window
    assert 0.4 < gap(160) / gap(80) < 0.6


def test_the_mean_scale_is_the_measured_one_in_a_window_too():
    """10 of 20 steps act: a mean of 4.5 around 3 is 6 inside, scale 2 of the pair (0, 3)."""
    found, _ = rivals(W2SD(weak=WEAK, window=Window(stop=0.5)), strength=4.5)
    rival = found["strength"].method
    assert (rival.scale, rival.weak, rival.window) == (2.0, Edits((Guidance(0.0),)), Window(0, 0.5))


def test_numbered_steps_become_the_same_part_of_a_longer_run():
    found, _ = rivals(W2SD(weak=WEAK, window=Window(steps=(0, 1, 2, 3, 4))))
    longer = found["first order"]
    assert longer.settings.steps > 20
    part = longer.method.window.count(longer.settings.steps) / longer.settings.steps
    assert part == pytest.approx(0.25, abs=1 / longer.settings.steps)


# ---- best of n


def test_the_last_step_does_not_cost_a_picture():
    """W2SD leaves its last step out: two plain pictures would be two evaluations too dear."""
    found, _ = rivals(W2SD(strong=COND, weak=COND | WEAK))
    best = found["best of n"]
    assert (best.candidates, best.settings.steps, best.evaluations) == (2, 19, 76)
    assert best.select == "sharpness"


def test_what_is_left_over_is_spent_on_steps():
    best = rivals(ZigZag())[0]["best of n"]
    assert (best.candidates, best.settings.steps, best.evaluations) == (2, 24, 96)


def test_too_little_for_two_pictures_is_said():
    found, notes = rivals(AutoGuidance(strong=COND, weak=COND | WEAK))
    assert "best of n" not in found
    assert any("do not pay for two plain pictures" in note for note in notes)


def test_nothing_to_choose_by_is_said():
    found, notes = rivals(ZigZag(), select=None)
    assert "best of n" not in found
    assert any("no scorer to choose by" in note for note in notes)
