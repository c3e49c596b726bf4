"""Callbacks that change latents, switch guidance off or interrupt, while a method reflects."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch

from w2sdiff import W2SD, AutoGuidance, Guidance, Plain, Prompt, UnsupportedError, attach
from w2sdiff.edits import Edits
from w2sdiff.testing import VARIANTS
from w2sdiff.testing.replay import FAMILIES, Role, replay

STEPS = 4
PAIR = W2SD(weak=Guidance(1.0))


def drawn(pipe, method, callback, inputs=("latents",), family="sdxl"):
    with attach(pipe, method) as run:
        latents = tiny.latents(
            pipe,
            family,
            steps=STEPS,
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=list(inputs),
        )
    return latents, run.stats


def test_latents_that_a_callback_changes_are_reflected_next():
    def shrink(_pipe, i, _t, kwargs):
        return {"latents": kwargs["latents"] * (0.8 if i == 1 else 1.0)}

    pipe = tiny.build("sdxl")
    found, _ = drawn(pipe, PAIR, shrink)
    call = tiny.call_kwargs("sdxl", steps=STEPS, callback_on_step_end=shrink)
    expected = replay(pipe, "sdxl", call, weak=Role(guidance=1.0))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(found.abs().max()))
    untouched, _ = drawn(pipe, PAIR, lambda *_: {})
    assert not torch.allclose(found, untouched, atol=1e-2)


def test_a_callback_is_called_once_per_step_with_the_real_latents():
    seen = []

    def look(_pipe, i, _t, kwargs):
        seen.append((i, kwargs["latents"].clone()))
        return {}

    found, _ = drawn(tiny.build("sdxl"), PAIR, look)
    assert [i for i, _ in seen] == list(range(STEPS))
    assert torch.equal(seen[-1][1], found)


# --- guidance switched off on the way -------------------------------------------------------------

# What the network is told per branch, by the names that the pipeline hands to a callback.
TOLD = {
    "sd": ("prompt_embeds",),
    "sdxl": ("prompt_embeds", "add_text_embeds", "add_time_ids"),
    "sd3": ("prompt_embeds", "pooled_prompt_embeds"),
    "sd3-skip-layers": ("prompt_embeds", "pooled_prompt_embeds"),
    "wan-2.1": (),  # two calls, of which the second is left out
}
every_family = pytest.mark.parametrize("family", TOLD)
either_scale = pytest.mark.parametrize("off", [0.0, 1.0])


def without_guidance_after(step, family="sdxl", off=1.0):
    """The recipe of diffusers' documentation, with the scale that means "off"."""

    def callback(pipe, i, _t, kwargs):
        if i != step:
            return {}
        pipe._guidance_scale = off
        return {name: kwargs[name].chunk(2)[-1] for name in TOLD[family]}

    return callback


def call_without_guidance_after(step, family, off):
    return VARIANTS[family].call(
        steps=STEPS,
        callback_on_step_end=without_guidance_after(step, family, off),
        callback_on_step_end_tensor_inputs=list(TOLD[family]),
    )


def latents(family, pipe, call):
    with torch.no_grad():
        return getattr(pipe(**call), VARIANTS[family].output)


def attached(family, pipe, call, method):
    with attach(pipe, method) as run:
        return latents(family, pipe, call), run.stats


def close(found, expected, pipe):
    start = float(getattr(pipe.scheduler, "init_noise_sigma", 1.0))
    size = max(1.0, float(expected.abs().max()), start)
    return float((found - expected).abs().max()) <= 1e-5 * size


@every_family
@either_scale
def test_plain_follows_a_callback_that_switches_guidance_off(family, off):
    pipe = VARIANTS[family].build()
    stock = latents(family, pipe, call_without_guidance_after(1, family, off))
    found, stats = attached(family, pipe, call_without_guidance_after(1, family, off), Plain())
    assert torch.equal(found, stock)
    assert not torch.allclose(stock, VARIANTS[family].latents(pipe, steps=STEPS), rtol=0.01)
    guided = VARIANTS[family].evaluations
    assert stats.evaluations == 2 * guided + 2 * 1


METHODS = {
    "w2sd": PAIR,
    "autoguidance": AutoGuidance(weak=Guidance(1.0), scale=1.5),
    "autoguidance with base": AutoGuidance(weak=Guidance(1.0), scale=1.5, base=Edits()),
}


@every_family
@either_scale
@pytest.mark.parametrize("kind", METHODS)
def test_guidance_switched_off_on_the_way_agrees_with_the_replay(family, off, kind):
    """From there on both roles are the conditional network, and W2SD still reflects with it."""
    pipe, call = VARIANTS[family].build(), call_without_guidance_after
    found, _ = attached(family, pipe, call(1, family, off), METHODS[kind])
    weak = Role(guidance=1.0)
    asked = {"scale": 1.5, "method": kind}
    expected = replay(pipe, family, call(1, family, off), weak=weak, **asked)
    size = max(
        1.0, float(expected.abs().max()), float(getattr(pipe.scheduler, "init_noise_sigma", 1))
    )
    assert float((found - expected).abs().max()) <= 1e-5 * size
    plain = latents(family, pipe, call(1, family, off))
    assert not torch.allclose(found, plain, rtol=0.01)
    later, _ = attached(family, pipe, call(2, family, off), METHODS[kind])
    assert not torch.allclose(found, later, rtol=0.01)


def test_evaluations_counted_where_guidance_is_switched_off_on_the_way():
    _, stats = drawn(tiny.build("sdxl"), PAIR, without_guidance_after(1), TOLD["sdxl"])
    guided, unguided = 2 + 1 + 2, 1 + 1 + 1
    assert stats.evaluations == 2 * guided + unguided + 1


@pytest.mark.parametrize(
    ("family", "name"),
    [("sd", "SDCFGCutoff"), ("sdxl", "SDXLCFGCutoff"), ("sd3", "SD3CFGCutoff")],
)
def test_the_callbacks_of_diffusers_that_end_guidance(family, name):
    from diffusers import callbacks

    def call():
        ends = getattr(callbacks, f"{name}Callback")(cutoff_step_ratio=None, cutoff_step_index=1)
        return VARIANTS[family].call(steps=STEPS, callback_on_step_end=ends)

    pipe = VARIANTS[family].build()
    stock = latents(family, pipe, call())
    assert torch.equal(attached(family, pipe, call(), Plain())[0], stock)
    found, _ = attached(family, pipe, call(), PAIR)
    expected = replay(pipe, family, call(), weak=Role(guidance=1.0))
    size = max(
        1.0, float(expected.abs().max()), float(getattr(pipe.scheduler, "init_noise_sigma", 1))
    )
    assert float((found - expected).abs().max()) <= 1e-5 * size
    assert not torch.allclose(found, stock, rtol=0.01)


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_a_scale_that_a_callback_changes_is_what_an_edit_starts_from(monkeypatch, scale):
    """Dynamic guidance: the weak role stays at its scale, strong and base follow the pipeline's."""
    monkeypatch.setitem(FAMILIES, "sdxl", replace(FAMILIES["sdxl"], live="guidance_scale"))

    def lower(pipe, i, _t, _kwargs):
        pipe._guidance_scale = 5.0 - i
        return {}

    pipe = tiny.build("sdxl")
    found, _ = drawn(pipe, W2SD(weak=Guidance(scale)), lower)
    call = tiny.call_kwargs("sdxl", steps=STEPS, callback_on_step_end=lower)
    expected = replay(pipe, "sdxl", call, weak=Role(guidance=scale))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(found.abs().max()))


def test_words_of_a_role_do_not_fit_a_callback_that_cuts_them():
    pipe = tiny.build("sdxl")
    stock = tiny.latents(pipe, "sdxl")
    with pytest.raises(UnsupportedError, match=r"callback changed the shape.*use one or the other"):
        drawn(pipe, W2SD(weak=Prompt("a cat")), without_guidance_after(1), TOLD["sdxl"])
    assert torch.equal(tiny.latents(pipe, "sdxl"), stock)


def test_a_scale_that_needs_guidance_is_refused_once_it_is_off():
    pipe = tiny.build("sdxl")
    stock = tiny.latents(pipe, "sdxl")
    with pytest.raises(UnsupportedError, match="off at this step") as error:
        drawn(pipe, W2SD(weak=Guidance(0.0)), without_guidance_after(1), TOLD["sdxl"])
    assert "\n" not in str(error.value)
    assert torch.equal(tiny.latents(pipe, "sdxl"), stock)


def test_interrupted_after_a_step():
    seen = []

    def interrupt(pipe, i, _t, kwargs):
        pipe._interrupt = i == 1
        seen.append(kwargs["latents"].clone())
        return {}

    found, stats = drawn(tiny.build("sdxl"), PAIR, interrupt)
    assert stats.calls == 2 * 3
    assert torch.equal(found, seen[1])
