"""The driver against an independent mechanism, for six families and every kind of pair.

A guidance pair is compared for every variant of the table, in `tests/families`.
"""

from __future__ import annotations

import pytest
import tiny
import torch

from w2sdiff import W2SD, AutoGuidance, Checkpoint, Guidance, Lora, Prompt, Window, ZigZag, attach
from w2sdiff.testing.replay import Role, replay

OTHER = "a small green triangle"
WITH_LORA = [family for family in tiny.FAMILIES if family != "pixart"]  # diffusers loads none there


def agree(
    pipe, family, method, /, *, closely: float = 1e-5, steps: int = 4, changes=None, **settings
):
    """Run both and compare; `settings` describe the method to the replay. Returns the driver's
    latents.
    """
    changes = changes or {}
    with attach(pipe, method):
        driven = tiny.latents(pipe, family, steps=steps, **changes)
    replayed = replay(pipe, family, tiny.call_kwargs(family, steps=steps, **changes), **settings)
    # Rounding goes with the largest latents on the way: random networks blow them up, and
    # Karras-type schedulers start at 15 times the noise (flow schedulers have no such number: 1).
    start = float(getattr(pipe.scheduler, "init_noise_sigma", 1.0))
    size = max(1.0, float(replayed.abs().max()), start)
    assert float((driven - replayed).abs().max()) <= closely * size
    assert not torch.allclose(
        driven, tiny.latents(pipe, family, steps=steps, **changes), rtol=0.01
    ), "the method does nothing here, so agreement would mean nothing"
    return driven


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_zigzag(family):
    """Strong 5.5 and weak 0 both differ from the call, and only one half of the weak one is
    computed.
    """
    method = ZigZag(strong=Guidance(5.5), weak=Guidance(0.0))
    agree(tiny.build(family), family, method, strong=Role(guidance=5.5), weak=Role(guidance=0.0))


@pytest.mark.parametrize("family", WITH_LORA)
def test_lora_pair(family, tmp_path):
    pipe = tiny.build(family)
    tiny.add_lora(pipe, family, tmp_path)
    agree(
        pipe,
        family,
        W2SD(strong=Lora("style", 0.8), weak=Lora("style", -1.5), base=Lora("style", 0.8)),
        strong=Role(lora=("style", 0.8)),
        weak=Role(lora=("style", -1.5)),
        base=Role(lora=("style", 0.8)),
    )


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_checkpoint_pair(family):
    other = tiny.build_denoiser(family)
    agree(tiny.build(family), family, W2SD(weak=Checkpoint(other)), weak=Role(module=other))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_prompt_pair(family):
    method = W2SD(strong=Prompt(OTHER))
    agree(tiny.build(family), family, method, strong=Role(prompt={"prompt": OTHER}))


@pytest.mark.parametrize("family", WITH_LORA)
def test_everything_at_once(family, tmp_path):
    pipe, other = tiny.build(family), tiny.build_denoiser(family)
    tiny.add_lora(pipe, family, tmp_path)
    agree(
        pipe,
        family,
        W2SD(
            strong=Lora("style", 1.5) | Guidance(1.0),
            weak=Checkpoint(other) | Guidance(1.0) | Prompt(OTHER),
            base=Lora("style", 0.8),
        ),
        strong=Role(lora=("style", 1.5), guidance=1.0),
        weak=Role(module=other, guidance=1.0, prompt={"prompt": OTHER}),
        base=Role(lora=("style", 0.8)),
    )


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_autoguidance(family):
    pipe, other = tiny.build(family), tiny.build_denoiser(family)
    agree(
        pipe,
        family,
        AutoGuidance(weak=Checkpoint(other), scale=1.7),
        weak=Role(module=other),
        method="autoguidance",
        scale=1.7,
    )


def test_autoguidance_on_top_of_a_base():
    pipe, other = tiny.build("sdxl"), tiny.build_denoiser("sdxl")
    agree(
        pipe,
        "sdxl",
        AutoGuidance(
            strong=Guidance(1.0),
            weak=Checkpoint(other) | Guidance(1.0),
            base=Guidance(5.0),
            scale=1.7,
        ),
        strong=Role(guidance=1.0),
        weak=Role(module=other, guidance=1.0),
        base=Role(guidance=5.0),
        method="autoguidance with base",
        scale=1.7,
    )


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("weak", [0.0, 1.0, 2.5])
def test_guidance_pair_under_guidance_rescale(family, weak):
    """The rescale needs the conditional half, also where the scale itself would not (0)."""
    agree(
        tiny.build(family),
        family,
        W2SD(weak=Guidance(weak)),
        changes={"guidance_rescale": 0.7},
        weak=Role(guidance=weak),
    )


def test_two_reflections_per_step():
    agree(
        tiny.build("sdxl"),
        "sdxl",
        W2SD(weak=Guidance(1.0), times=2),
        weak=Role(guidance=1.0),
        times=2,
    )


def test_a_window_of_the_first_half():
    agree(
        tiny.build("sdxl"),
        "sdxl",
        W2SD(weak=Guidance(1.0), window=Window(0.0, 0.5)),
        weak=Role(guidance=1.0),
        reflect=lambda i, n: i < n / 2,
    )


def test_published_inversion_on_ddim():
    agree(
        tiny.build("sd"),
        "sd",
        W2SD(weak=Guidance(1.0), inversion="reference"),
        steps=6,
        weak=Role(guidance=1.0),
        reference=True,
    )


def test_prompt_pair_for_a_batch_with_a_template():
    prompts = ["a cat", "a red dog"]
    refined = [f"{p}, in the rain" for p in prompts]
    agree(
        tiny.build("sdxl"),
        "sdxl",
        W2SD(strong=Prompt("{prompt}, in the rain")),
        changes={"prompt": prompts, "negative_prompt": ["", ""], "num_images_per_prompt": 2},
        strong=Role(prompt={"prompt": refined}),
    )


SCHEDULERS = {
    "DDIMScheduler": {"clip_sample": False, "set_alpha_to_one": False},
    "EulerDiscreteScheduler": {},
    "LMSDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DEISMultistepScheduler": {},
}


@pytest.mark.parametrize(
    "prediction", ["epsilon", "v_prediction", pytest.param("sample", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_and_predictions(name, prediction):
    import diffusers

    pipe = tiny.build("sd")
    settings = tiny.SD_NOISE | SCHEDULERS[name] | {"prediction_type": prediction}
    pipe.scheduler = getattr(diffusers, name)(**settings)
    agree(pipe, "sd", W2SD(weak=Guidance(1.0)), weak=Role(guidance=1.0))
