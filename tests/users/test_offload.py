"""Offloading by accelerate and by diffusers, with the CPU as the device that is offloaded to.

`tests/drivers/test_restore.py` looks at the hooks; here every pair draws what it draws without.
"""

from __future__ import annotations

import pytest
import tiny
import torch
from accelerate import cpu_offload
from diffusers.hooks import apply_group_offloading
from restored import compare, fingerprint

from w2sdiff import W2SD, Checkpoint, Guidance, Lora, Plain, attach

CPU = torch.device("cpu")


def group(**settings):
    def apply(pipe):
        pipe.enable_group_offload(onload_device=CPU, offload_device=CPU, **settings)

    return apply


OFFLOADS = {
    "model": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    # What enable_sequential_cpu_offload does, to the denoiser alone: with the CPU as its device a
    # whole stock pipeline of today's text encoders does not run (accelerate 1.15).
    "sequential": lambda pipe: cpu_offload(pipe.unet, CPU),
    "group of leaves": group(offload_type="leaf_level"),
    "group of blocks": group(offload_type="block_level", num_blocks_per_group=1),
}


@pytest.fixture(
    params=[
        name if name == "group of leaves" else pytest.param(name, marks=pytest.mark.slow)
        for name in OFFLOADS
    ]
)
def offload(request):
    return OFFLOADS[request.param]


def drawn(pipe):
    return tiny.latents(pipe, "sdxl", steps=2)


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
        apply(pipe)
        stock = drawn(pipe)
        by_pair = {}
        for name, method in {"plain": Plain(), **pairs()}.items():
            with attach(pipe, method):
                by_pair[name] = drawn(pipe)
        assert torch.equal(by_pair["plain"], stock)
        assert torch.equal(drawn(pipe), stock)
        found.append(by_pair)
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=0, atol=1e-5, msg=name)


def test_offloading_switched_on_inside():
    """Between two calls the pipeline is stock, and may be set up anew."""
    pipe = tiny.build("sdxl")
    with attach(pipe, W2SD(weak=Guidance(1.0))):
        expected = drawn(pipe)
        pipe.enable_model_cpu_offload(device="cpu")
        assert torch.equal(drawn(pipe), expected)
        pipe.remove_all_hooks()
        assert torch.equal(drawn(pipe), expected)


def test_a_weak_network_with_group_offloading_of_its_own():
    pipe, other = tiny.build("sdxl"), tiny.build_denoiser("sdxl")
    method = W2SD(weak=Checkpoint(other))
    with attach(pipe, method):
        expected = drawn(pipe)
    for network in (pipe.unet, other):
        network.enable_group_offload(
            onload_device=CPU, offload_device=CPU, offload_type="leaf_level"
        )
    with attach(pipe, method):
        assert torch.equal(drawn(pipe), expected)


# --- another network is offloaded as the pipeline's own is ----------------------------------------


def settings(network):
    """Those of the hooks of group offloading, layer by layer."""
    found = {}
    for name, layer in network.named_modules():
        registry = layer.__dict__.get("_diffusers_hook")
        hook = registry and registry.get_hook("group_offloading")
        if hook:
            config = hook.config
            found[name] = (config.onload_device, config.offload_device, config.offload_type)
    return found


class Alone:
    """A network as `fingerprint` looks at the parts of a pipeline."""

    def __init__(self, network):
        self.components, self.config = {"network": network}, {}


def apart(network):
    return fingerprint(Alone(network))


GROUPS = {
    "leaves": {"offload_type": "leaf_level"},
    "blocks": {"offload_type": "block_level", "num_blocks_per_group": 1},
}


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("source", ["folder", "module"])
def test_group_offloading_of_the_other_network(name, source, tmp_path):
    pipe, other = tiny.build("sdxl"), tiny.build_denoiser("sdxl")
    other.save_pretrained(tmp_path)
    method = W2SD(weak=Checkpoint(other if source == "module" else tmp_path))
    with attach(pipe, method):
        expected = drawn(pipe)
    before = apart(other)
    apply_group_offloading(pipe.unet, onload_device=CPU, offload_device=CPU, **GROUPS[name])
    own, seen = settings(pipe.unet), []
    assert own
    with attach(pipe, method) as run:
        (weak,) = method.weak.items[0].networks(run.context) if source == "folder" else [other]
        weak.conv_in.register_forward_hook(lambda *_: seen.append(settings(weak)))
        assert torch.equal(drawn(pipe), expected)
        assert torch.equal(drawn(pipe), expected)
    weak.conv_in._forward_hooks.clear()
    assert seen
    assert all(one == own for one in seen)
    compare(before, apart(other))
    assert settings(pipe.unet) == own


ANEW = {
    "group": ["group of leaves"],
    "one after another": ["model", "sequential"],
}


@pytest.mark.parametrize("name", ANEW)
def test_a_pipeline_that_is_set_up_anew_takes_the_other_network_along(name):
    """Between two calls, which is when users do it."""
    pipe, other = tiny.build("sdxl"), tiny.build_denoiser("sdxl")
    before = apart(other)
    with attach(pipe, W2SD(weak=Checkpoint(other))):
        expected = drawn(pipe)
        for how in ANEW[name]:
            OFFLOADS[how](pipe)
            assert torch.equal(drawn(pipe), expected)
            assert settings(other) == settings(pipe.unet)
            pipe.remove_all_hooks()
            assert torch.equal(drawn(pipe), expected)
    compare(before, apart(other))
