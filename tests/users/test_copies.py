"""Copies: of a pipeline that is attached, of methods, and pipelines made of its components."""

from __future__ import annotations

import copy
import pickle

import pytest
import tiny
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from noise_models import noise_model_file
from restored import compare, fingerprint

from w2sdiff import (
    W2SD,
    AutoGuidance,
    Checkpoint,
    Core2,
    Guidance,
    InputError,
    Lora,
    Plain,
    Prompt,
    Window,
    ZigZag,
    attach,
)

PAIR = W2SD(weak=Guidance(1.0))


def drawn(pipe, method=None, **changes):
    if method is None:
        return tiny.latents(pipe, "sdxl", **changes)
    with attach(pipe, method):
        return tiny.latents(pipe, "sdxl", **changes)


# ---- of a pipeline


@pytest.mark.parametrize("when", ["after", "inside"])
def test_a_deep_copy_is_a_stock_pipeline(when):
    pipe = tiny.build("sdxl")
    stock, reflected = drawn(pipe), drawn(pipe, PAIR)
    if when == "after":
        other = copy.deepcopy(pipe)
    else:
        with attach(pipe, PAIR):
            other = copy.deepcopy(pipe)
            assert torch.equal(drawn(pipe), reflected)
    assert type(other) is StableDiffusionXLPipeline
    assert other.__dict__.keys() == pipe.__dict__.keys()
    assert other.unet is not pipe.unet
    assert torch.equal(drawn(other), stock)
    assert torch.equal(drawn(other, PAIR), reflected)
    assert torch.equal(drawn(pipe), stock)


def test_a_network_copied_in_the_middle_of_a_call_is_a_stock_network():
    """As an average of weights does."""
    pipe, copies = tiny.build("sdxl"), []

    def keep(pipe, _i, _t, kwargs):
        copies.append(copy.deepcopy(pipe.unet))
        return kwargs

    with attach(pipe, PAIR):
        drawn(pipe, callback_on_step_end=keep)
    assert type(copies[0]) is type(pipe.unet)
    assert copies[0].__dict__.keys() == pipe.unet.__dict__.keys()


def test_saved_inside_it_is_the_stock_pipeline(tmp_path):
    pipe = tiny.build("sdxl")
    stock = drawn(pipe)
    with attach(pipe, PAIR):
        pipe.save_pretrained(tmp_path)
    other = DiffusionPipeline.from_pretrained(tmp_path)
    other.set_progress_bar_config(disable=True)
    assert type(other) is StableDiffusionXLPipeline
    torch.testing.assert_close(drawn(other), stock, rtol=0, atol=1e-5)


# ---- of the components


def image(pipe):
    pipe.set_progress_bar_config(disable=True)
    picture = torch.zeros(1, 3, 16, 16, dtype=pipe.unet.dtype)
    call = {"prompt": tiny.PROMPT, "image": picture, "strength": 0.6, "output_type": "latent"}
    generator = torch.Generator().manual_seed(0)
    return pipe(**call, num_inference_steps=5, generator=generator).images


@pytest.mark.parametrize("when", ["before", "inside", "after"])
def test_from_pipe(when):
    """The second pipeline is stock, whether its network is shared with an attached one or not."""
    make = lambda: StableDiffusionXLImg2ImgPipeline.from_pipe(pipe, torch_dtype=torch.float32)  # noqa: E731
    pipe = tiny.build("sdxl")
    expected = image(make())
    second = make() if when == "before" else None
    with attach(pipe, PAIR):
        reflected = drawn(pipe)
        if when == "inside":
            second = make()
        if second is not None:
            assert torch.equal(image(second), expected)
            assert torch.equal(drawn(pipe), reflected)
            with attach(second, Plain()):
                assert torch.equal(image(second), expected)
            assert torch.equal(drawn(pipe), reflected)
    second = second or make()
    assert type(second) is StableDiffusionXLImg2ImgPipeline
    assert second.unet is pipe.unet
    assert torch.equal(image(second), expected)


def test_from_pipe_without_a_dtype_casts_what_it_shares(tmp_path):
    """diffusers' own trap: to float32, in place. A weak checkpoint follows, inside `attach` too."""
    pipe = tiny.build("sdxl", dtype=torch.bfloat16)
    tiny.build_denoiser("sdxl").save_pretrained(tmp_path / "weak")
    method = W2SD(weak=Checkpoint(tmp_path / "weak"))
    with attach(pipe, method):
        assert drawn(pipe).dtype == torch.bfloat16
        StableDiffusionXLImg2ImgPipeline.from_pipe(pipe, torch_dtype=torch.bfloat16)
        assert pipe.unet.dtype == torch.bfloat16
        StableDiffusionXLImg2ImgPipeline.from_pipe(pipe)
        assert pipe.unet.dtype == torch.float32
        found = drawn(pipe)
    assert found.dtype == torch.float32
    assert torch.equal(drawn(pipe, method), found)


def test_two_attached_pipelines_may_not_be_in_a_shared_network_at_once():
    pipe = tiny.build("sdxl")
    second = StableDiffusionXLImg2ImgPipeline.from_pipe(pipe, torch_dtype=torch.float32)

    def draw(_pipe, _i, _t, kwargs):
        with pytest.raises(InputError, match="another attached pipeline") as error:
            image(second)
        assert "\n" not in str(error.value)
        return kwargs

    expected = drawn(pipe, PAIR)
    before = fingerprint(pipe)
    with attach(second, PAIR), attach(pipe, PAIR):
        assert torch.equal(drawn(pipe, callback_on_step_end=draw), expected)
    compare(before, fingerprint(pipe))


# ---- of methods


METHODS = [
    Plain(),
    Plain(Guidance(1.0) | Lora("style", -1.5)),
    W2SD(strong=Lora("style", 0.8), weak=Guidance(1.0), window=Window(0.1, 0.7), times=2),
    W2SD(strong=Prompt("{prompt}, sharp"), inversion="reference"),
    ZigZag(strong=Guidance(5.5), weak=Guidance(0.0)),
    AutoGuidance(weak=Guidance(1.0), scale=1.5, window=Window(steps=(0, 2))),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_methods_are_pickled_and_copied_as_values(method):
    for other in (pickle.loads(pickle.dumps(method)), copy.deepcopy(method)):
        assert other == method
        assert hash(other) == hash(method)
        assert repr(other) == repr(method)


def test_a_pickled_method_draws_the_same():
    pipe, method = tiny.build("sdxl"), W2SD(weak=Guidance(1.0), window=Window(0.0, 0.6))
    expected = drawn(pipe, method)
    assert torch.equal(drawn(pipe, pickle.loads(pickle.dumps(method))), expected)


def test_pickled_methods_know_their_files(tmp_path):
    tiny.build_denoiser("sdxl").save_pretrained(tmp_path / "weak")
    noise_model_file(tmp_path / "noise.safetensors")
    for method in (
        W2SD(weak=Checkpoint(tmp_path / "weak")),
        Core2(tmp_path / "noise.safetensors", slow_until=0.3),
    ):
        assert pickle.loads(pickle.dumps(method)) == method
