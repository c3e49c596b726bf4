"""The studio: which noise a run began with, and when a pipeline is loaded anew."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from model_folders import model_folder

from w2sdiff import AutoGuidance, Guidance, Plain, ZigZag
from w2sdiff.errors import UnsupportedError
from w2sdiff.generate import Settings, Shot, Studio, find_model

SETTINGS = Settings(steps=2, guidance=3.0, size=(16, 16), device="cpu", dtype="float32")
SHOTS = [Shot("a red circle", seed=3), Shot("a blue square", seed=4)]
GUIDED = AutoGuidance(strong=Guidance(1.0), weak=Guidance(0.0))


def studio(family="sd", **changes):
    return Studio(find_model(str(model_folder(family))), dataclasses.replace(SETTINGS, **changes))


def noises(of, method, shots=SHOTS, **changes):
    of.use(of.model, dataclasses.replace(of.settings, **changes))
    return [drawn.noise for drawn in of.draw(method, shots)]


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_every_arm_of_a_seed_begins_with_the_same_noise_and_says_so(family):
    with studio(family) as of:
        first = noises(of, Plain())
        assert len(set(first)) == 2, "another seed is another noise"
        assert noises(of, Plain(), steps=5) == first
        assert noises(of, Plain(), SHOTS[1:]) == first[1:], "whatever the batch"
        if family != "flux":  # its guidance is a number it is told: no pair of scales
            assert noises(of, ZigZag()) == first
            assert noises(of, GUIDED, guidance=5.0) == first


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++2m"])
def test_the_hash_is_that_of_the_noise_itself_whatever_the_first_sigma(scheduler):
    with studio(scheduler=scheduler) as of:
        side = 16 // of.pipe.vae_scale_factor
        shape = (1, of.pipe.unet.config.in_channels, side, side)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        expected = hashlib.sha256(noise.numpy().tobytes()).hexdigest()
        assert noises(of, Plain())[0] == expected
        assert noises(of, Plain(), steps=4)[0] == expected


def test_a_run_from_other_latents_has_another_hash():
    with studio() as of:
        expected = noises(of, Plain())
        prepare = of.pipe.prepare_latents
        of.pipe.prepare_latents = lambda *args, **kwargs: prepare(*args, **kwargs) + 0.01
        found = noises(of, Plain())
    assert len({*found, *expected}) == 4


def test_other_calls_keep_the_pipeline_and_other_weights_do_not():
    with studio() as of:
        first, pictures = of.pipe, of.draw(Plain(), SHOTS)
        noises(of, Plain(), steps=3, guidance=1.0, negative="blurry", size=(24, 16))
        assert of.pipe is first
        of.use(of.model, SETTINGS)
        again = of.draw(Plain(), SHOTS)
        assert [one.image.tobytes() for one in again] == [one.image.tobytes() for one in pictures]
        of.use(of.model, dataclasses.replace(SETTINGS, scheduler="euler"))
        assert of.pipe is not first
        assert type(of.pipe.scheduler).__name__ == "EulerDiscreteScheduler"
        of.use(find_model(str(model_folder("sdxl"))), SETTINGS)
        assert type(of.pipe).__name__ == "StableDiffusionXLPipeline"


def test_a_call_that_the_loaded_pipeline_does_not_take_is_refused():
    with studio() as of:
        of.draw(Plain(), SHOTS[:1])
        with pytest.raises(UnsupportedError, match="true CFG scale"):
            of.use(of.model, dataclasses.replace(SETTINGS, true_cfg=2.0))


@pytest.mark.parametrize("family", ["sd3", "flux", "pixart"])
def test_texts_are_as_long_as_the_pipelines_own(family):
    """What CLIP's tokenizer holds, 77 tokens, is no limit of the T5 beside it."""
    prompt = "a red circle " * 8
    with studio(family) as of:
        [drawn] = of.draw(Plain(), [Shot(prompt, seed=3)])
        stock = of.pipe(
            prompt,
            width=16,
            height=16,
            num_inference_steps=2,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(3),
            **({"use_resolution_binning": False} if family == "pixart" else {}),
        )
    assert np.abs(np.asarray(drawn.image).astype(int) - np.asarray(stock.images[0])).max() <= 1


def test_the_attention_backend_of_a_run_is_not_that_of_the_next():
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    usual = _AttentionBackendRegistry.get_active_backend()[0]
    with studio("flux", attention_backend="_native_math") as of:
        processors = of.pipe.transformer.attn_processors.values()
        assert {processor._attention_backend for processor in processors} == {"_native_math"}
    assert _AttentionBackendRegistry.get_active_backend()[0] == usual
