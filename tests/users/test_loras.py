"""LoRAs that the user loaded: worn by every role, switched by those that name them, untouched."""

from __future__ import annotations

import hashlib

import pytest
import tiny
import torch

from w2sdiff import W2SD, Checkpoint, Guidance, Lora, Prompt, UnsupportedError, attach
from w2sdiff.testing.replay import Role, replay

PAIRS = {
    "guidance": (W2SD(weak=Guidance(2.0)), Role(guidance=2.0)),
    "prompt": (W2SD(weak=Prompt("a cat")), Role(prompt={"prompt": "a cat"})),
}


def with_loras(folder, style=0.7, other=0.4):
    pipe = tiny.build("sdxl")
    tiny.add_lora(pipe, "sdxl", folder)
    tiny.add_lora(pipe, "sdxl", folder, name="other", seed=1)
    pipe.set_adapters(["style", "other"], [style, other])
    return pipe


@pytest.fixture
def pipe(tmp_path):
    return with_loras(tmp_path)


def weights(pipe):
    state = {k: v for k, v in pipe.unet.state_dict().items() if "lora" in k}
    assert state
    return {k: hashlib.sha256(v.numpy().tobytes()).hexdigest() for k, v in state.items()}


def layers(pipe):
    return [
        (dict(m.scaling), list(m.active_adapters), m.disable_adapters)
        for m in pipe.unet.modules()
        if hasattr(m, "set_scale")
    ]


@pytest.mark.parametrize("name", PAIRS)
def test_two_loras_of_other_people(pipe, name):
    """Active ones stay as they are in every role that does not name them."""
    method, weak = PAIRS[name]
    stock = tiny.latents(pipe, "sdxl")
    before = weights(pipe), layers(pipe), pipe.get_active_adapters(), pipe.get_list_adapters()
    with attach(pipe, method):
        found = tiny.latents(pipe, "sdxl")
    now = weights(pipe), layers(pipe), pipe.get_active_adapters(), pipe.get_list_adapters()
    assert now == before
    expected = replay(pipe, "sdxl", tiny.call_kwargs("sdxl"), weak=weak)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(found.abs().max()))
    assert torch.equal(tiny.latents(pipe, "sdxl"), stock)


def test_a_role_that_names_one_keeps_the_other(pipe, tmp_path):
    """As a second network would that wears both at these weights."""
    weak = with_loras(tmp_path, style=-1.5).unet
    before = layers(pipe)
    with attach(pipe, W2SD(weak=Checkpoint(weak))):
        expected = tiny.latents(pipe, "sdxl")
    with attach(pipe, W2SD(weak=Lora("style", -1.5))):
        assert torch.equal(tiny.latents(pipe, "sdxl"), expected)
    assert layers(pipe) == before


def test_fused_ones_are_part_of_the_weights(pipe):
    """Every pair but one of their own names draws as before; that one is refused."""
    method, _ = PAIRS["guidance"]
    with attach(pipe, method):
        expected = tiny.latents(pipe, "sdxl")
    pipe.fuse_lora()
    with attach(pipe, method):
        found = tiny.latents(pipe, "sdxl")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    with (
        pytest.raises(UnsupportedError, match="unfuse_lora"),
        attach(pipe, W2SD(weak=Lora("style", -1.5))),
    ):
        tiny.latents(pipe, "sdxl")


def test_loaded_and_deleted_inside(pipe, tmp_path):
    with attach(pipe, W2SD(weak=Lora("style", -1.5))):
        both = tiny.latents(pipe, "sdxl")
        pipe.delete_adapters("other")
        one = tiny.latents(pipe, "sdxl")
        tiny.add_lora(pipe, "sdxl", tmp_path, name="other", seed=1)
        pipe.set_adapters(["style", "other"], [0.7, 0.4])
        assert torch.equal(tiny.latents(pipe, "sdxl"), both)
    assert not torch.equal(one, both)
