"""Callbacks that change latents, switch guidance off or interrupt, while a method reflects."""

from __future__ import annotations

import pytest
import tiny
import torch

from w2sdiff import W2SD, Guidance, UnsupportedError, attach
from w2sdiff.testing.replay import Role, replay

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


WORDS = ("prompt_embeds", "add_text_embeds", "add_time_ids")


def without_guidance_after(step):
    """The documented recipe."""

    def callback(pipe, i, _t, kwargs):
        if i != step:
            return {}
        pipe._guidance_scale = 1.0
        return {name: kwargs[name].chunk(2)[-1] for name in WORDS}

    return callback


def test_guidance_switched_off_on_the_way():
    pipe = tiny.build("sdxl")
    found, stats = drawn(pipe, PAIR, without_guidance_after(1), WORDS)
    guided, unguided = 2 + 1 + 2, 1 + 1 + 1
    assert stats.evaluations == 2 * guided + unguided + 1
    assert torch.isfinite(found).all()
    # From there on both roles are the conditional network: as a method that changes nothing.
    late, _ = drawn(pipe, W2SD(), without_guidance_after(-1), WORDS)
    assert not torch.equal(found, late)


def test_a_scale_that_needs_guidance_is_refused_once_it_is_off():
    pipe = tiny.build("sdxl")
    stock = tiny.latents(pipe, "sdxl")
    with pytest.raises(UnsupportedError, match="off at this step") as error:
        drawn(pipe, W2SD(weak=Guidance(0.0)), without_guidance_after(1), WORDS)
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
