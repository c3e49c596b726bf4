"""Offloading by accelerate and by diffusers, with the CPU as the device that is offloaded to.

`tests/drivers/test_restore.py` looks at the hooks; here every pair draws what it draws without.
"""

from __future__ import annotations

import pytest
import tiny
import torch

from w2sdiff import W2SD, Checkpoint, Guidance, Lora, Plain, attach

CPU = torch.device("cpu")


def group(**settings):
    def apply(pipe):
        pipe.enable_group_offload(onload_device=CPU, offload_device=CPU, **settings)

    return apply


OFFLOADS = {
    "model": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "sequential": lambda pipe: pipe.enable_sequential_cpu_offload(device="cpu"),
    "group of leaves": group(offload_type="leaf_level"),
    "group of blocks": group(offload_type="block_level", num_blocks_per_group=1),
}


@pytest.fixture(params=OFFLOADS)
def offload(request):
    return OFFLOADS[request.param]


def without_encoders(pipe):
    """Arguments with embeddings, and no encoders in the pipeline.

    accelerate cannot put back the integer buffers of text encoders with the CPU as its device.
    """
    with torch.no_grad():
        c, u, pooled, negative = pipe.encode_prompt(tiny.PROMPT, negative_prompt=tiny.NEGATIVE)
    pipe.text_encoder = pipe.text_encoder_2 = None
    return {
        "prompt": None,
        "negative_prompt": None,
        "prompt_embeds": c,
        "negative_prompt_embeds": u,
        "pooled_prompt_embeds": pooled,
        "negative_pooled_prompt_embeds": negative,
    }


def pairs():
    return {
        "guidance": W2SD(weak=Guidance(1.0)),
        "lora": W2SD(weak=Lora("style", -1.5)),
        "checkpoint": W2SD(weak=Checkpoint(tiny.build_denoiser("sdxl"))),
    }


def test_every_pair_draws_what_it_draws_without(offload, tmp_path):
    found = []
    for apply in (lambda _: None, offload):
        pipe = tiny.build("sdxl")
        tiny.add_lora(pipe, "sdxl", tmp_path)
        words = without_encoders(pipe)
        apply(pipe)
        stock = tiny.latents(pipe, "sdxl", **words)
        drawn = {}
        for name, method in {"plain": Plain(), **pairs()}.items():
            with attach(pipe, method):
                drawn[name] = tiny.latents(pipe, "sdxl", **words)
        assert torch.equal(drawn["plain"], stock)
        assert torch.equal(tiny.latents(pipe, "sdxl", **words), stock)
        found.append(drawn)
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=0, atol=1e-5, msg=name)


def test_offloading_switched_on_and_off_inside():
    """Between two calls the pipeline is stock, and may be set up anew."""
    pipe = tiny.build("sdxl")
    words = without_encoders(pipe)
    with attach(pipe, W2SD(weak=Guidance(1.0))):
        expected = tiny.latents(pipe, "sdxl", **words)
        pipe.enable_model_cpu_offload(device="cpu")
        assert torch.equal(tiny.latents(pipe, "sdxl", **words), expected)
        pipe.remove_all_hooks()
        pipe.enable_sequential_cpu_offload(device="cpu")
        assert torch.equal(tiny.latents(pipe, "sdxl", **words), expected)


def test_a_weak_network_with_group_offloading_of_its_own():
    pipe, other = tiny.build("sdxl"), tiny.build_denoiser("sdxl")
    method = W2SD(weak=Checkpoint(other))
    with attach(pipe, method):
        expected = tiny.latents(pipe, "sdxl")
    for network in (pipe.unet, other):
        network.enable_group_offload(
            onload_device=CPU, offload_device=CPU, offload_type="leaf_level"
        )
    with attach(pipe, method):
        assert torch.equal(tiny.latents(pipe, "sdxl"), expected)
