"""Numbers of the published W2SD implementation, reproduced through `attach` on a stock SDXL
pipeline.

The tensors were produced by the authors' own code on a tiny random UNet. They stand beside the
repository, not in it; where they are missing these tests are skipped, and `test_closed_form.py`
still pins W2SD against plain torch.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from w2sdiff.testing.replay import Role, replay

CASES = ("cfg_10", "lora_10", "both_10", "both_50")
TOLERANCE = 2e-4  # the latents reach 30 to 70


@pytest.fixture(scope="module")
def recorded(golden):
    folder = golden / "w2sd_sdxl"
    settings = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    assert not settings["last_step_reflected"]
    return settings, load_file(folder / "tensors.safetensors")


@pytest.fixture(scope="module")
def pipe(golden, recorded):
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    folder, (settings, _) = golden / "w2sd_sdxl", recorded
    unet = UNet2DConditionModel.from_config(settings["unet_config"])
    unet.load_state_dict(load_file(folder / "unet.safetensors"))
    scheduler = {k: v for k, v in settings["scheduler"].items() if k != "cls"}
    pipe = StableDiffusionXLPipeline(
        vae=None,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet.eval(),
        scheduler=DDIMScheduler(**scheduler),
        add_watermarker=False,
    )
    pipe.load_lora_weights(str(folder), weight_name="lora.safetensors", adapter_name="user_lora")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(recorded, key):
    settings, tensors = recorded
    inputs = {k.removeprefix("input."): v for k, v in tensors.items() if k.startswith("input.")}
    steps = the_case(recorded, key)["steps"]
    return {**inputs, **settings["call"], "num_inference_steps": steps, "output_type": "latent"}


def the_case(recorded, key):
    return next(c for c in recorded[0]["cases"] if c["key"] == key)


def check(latents, recorded, name):
    torch.testing.assert_close(latents, recorded[1][name], rtol=0, atol=TOLERANCE)


def test_every_case_is_covered(recorded):
    assert tuple(c["key"] for c in recorded[0]["cases"]) == CASES


@pytest.mark.parametrize("key", CASES)
def test_plain(pipe, recorded, key):
    from w2sdiff import Plain, attach

    pipe.set_adapters("user_lora", the_case(recorded, key)["lora"]["base"])
    with attach(pipe, Plain()):
        check(pipe(**call(recorded, key)).images, recorded, f"{key}.plain")


@pytest.mark.parametrize("inversion", ["exact", "reference"])
@pytest.mark.parametrize("key", CASES)
def test_w2sd(pipe, recorded, key, inversion):
    from w2sdiff import W2SD, Guidance, Lora, attach

    case = the_case(recorded, key)
    roles = {
        role: Guidance(case["guidance_scale"][role]) | Lora("user_lora", case["lora"][role])
        for role in ("strong", "weak", "base")
    }
    with attach(pipe, W2SD(**roles, inversion=inversion)):
        check(pipe(**call(recorded, key)).images, recorded, f"{key}.w2sd_{inversion}")


@pytest.mark.slow
@pytest.mark.parametrize("inversion", ["exact", "reference"])
@pytest.mark.parametrize("key", CASES)
def test_the_replay_agrees_with_the_published_code_as_well(pipe, recorded, key, inversion):
    case = the_case(recorded, key)
    roles = {
        role: Role(guidance=case["guidance_scale"][role], lora=("user_lora", case["lora"][role]))
        for role in ("strong", "weak", "base")
    }
    latents = replay(pipe, "sdxl", call(recorded, key), **roles, reference=inversion == "reference")
    check(latents, recorded, f"{key}.w2sd_{inversion}")
