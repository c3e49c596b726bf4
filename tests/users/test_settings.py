"""What users switch on before they draw: exact when off, equal to the replay when on, untouched.

The replay (`w2sdiff.testing.replay`) calls the same, equally set up network by another mechanism.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from restored import compare, fingerprint

from w2sdiff import W2SD, Checkpoint, Guidance, Plain, attach
from w2sdiff.testing.replay import Role, replay

STEPS = 3
PAIR = W2SD(weak=Guidance(1.0))


@dataclass(frozen=True)
class Setting:
    """Something users do to a pipeline; `neutral`: it is not meant to change the picture."""

    apply: Callable[[Any], Any]
    family: str = "sd"
    neutral: bool = True


def channels_last(pipe):
    pipe.unet.to(memory_format=torch.channels_last)


def plain_processors(pipe):
    from diffusers.models.attention_processor import AttnProcessor

    pipe.unet.set_attn_processor(AttnProcessor())


def math_backend(pipe):
    pipe.transformer.set_attention_backend("_native_math")


def layerwise(pipe):
    """Weights lie in eight bits and are widened layer by layer as they are needed."""
    pipe.unet.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )


SETTINGS = {
    "channels last": Setting(channels_last, "sdxl"),
    "attention slicing": Setting(lambda pipe: pipe.enable_attention_slicing(1)),
    "plain attention": Setting(plain_processors),
    "fused projections": Setting(lambda pipe: pipe.fuse_qkv_projections(), "sdxl"),
    "attention backend": Setting(math_backend, "flux-true-cfg"),
    "FreeU": Setting(lambda pipe: pipe.enable_freeu(0.9, 0.2, 1.2, 1.4), neutral=False),
    "layerwise casting": Setting(layerwise, neutral=False),
}


def drawn(pipe, family, method=None, **changes):
    if method is None:
        return tiny.latents(pipe, family, steps=STEPS, **changes)
    with attach(pipe, method):
        return tiny.latents(pipe, family, steps=STEPS, **changes)


@pytest.mark.parametrize("name", SETTINGS)
def test_setting(name):
    setting = SETTINGS[name]
    family, pipe = setting.family, tiny.build(setting.family)
    untouched = drawn(pipe, family)
    setting.apply(pipe)
    stock = drawn(pipe, family)
    size = float(stock.abs().max())
    if setting.neutral:
        torch.testing.assert_close(stock, untouched, rtol=0, atol=1e-4 * size)
    else:
        assert not torch.allclose(stock, untouched, rtol=0, atol=1e-3 * size), "it does nothing"
    before = fingerprint(pipe)
    assert torch.equal(drawn(pipe, family, Plain()), stock)
    # Both halves, as the replay asks for: rounding differs with the size of the batch.
    found = drawn(pipe, family, W2SD(weak=Guidance(2.0)))
    compare(before, fingerprint(pipe))
    call = tiny.call_kwargs(family, steps=STEPS)
    expected = replay(pipe, family, call, weak=Role(guidance=2.0))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(found.abs().max()))
    assert float((found - stock).abs().max()) > 1e-2 * size
    assert torch.equal(drawn(pipe, family), stock)


@pytest.mark.gpu
def test_xformers():
    """Its kernels are CUDA's alone, and diffusers refuses them elsewhere."""
    pytest.importorskip("xformers", reason="attention by xformers needs xformers")
    pipe = tiny.build("sd", dtype=torch.float16).to("cuda")
    untouched = drawn(pipe, "sd")
    pipe.enable_xformers_memory_efficient_attention()
    stock = drawn(pipe, "sd")
    torch.testing.assert_close(stock, untouched, rtol=0, atol=2e-2 * float(stock.abs().max()))
    assert torch.equal(drawn(pipe, "sd", Plain()), stock)
    assert torch.isfinite(drawn(pipe, "sd", PAIR)).all()
    assert torch.equal(drawn(pipe, "sd"), stock)


def test_channels_last_stays():
    pipe = tiny.build("sd")
    channels_last(pipe)
    drawn(pipe, "sd", PAIR)
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("how", ["slices", "tiles"])
def test_decoding_in_parts(how):
    """The decoder is the pipeline's own, inside `attach` as well."""
    pipe = tiny.build("sd")
    call = {"prompt": ["a cat", "a dog"], "negative_prompt": ["", ""], "output_type": "pt"}
    if how == "slices":
        pipe.vae.enable_slicing()
    else:
        pipe.vae.enable_tiling()
        pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 8, 4
    stock = drawn(pipe, "sd", **call)
    assert torch.equal(drawn(pipe, "sd", Plain(), **call), stock)
    found = drawn(pipe, "sd", PAIR, **call)
    latents = drawn(pipe, "sd", PAIR, **{**call, "output_type": "latent"})
    with torch.no_grad():
        image = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    torch.testing.assert_close(found, (image / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-6)
    assert pipe.vae.use_slicing == (how == "slices")
    assert pipe.vae.use_tiling == (how == "tiles")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_loses_no_more_than_the_pipeline_itself(dtype):
    """Against float32: reflecting triples the evaluations, and may cost twice the rounding."""
    lost = {}
    for name, method in (("plain", Plain()), ("w2sd", PAIR)):
        wide, narrow = (
            drawn(tiny.build("sdxl", dtype=d), "sdxl", method) for d in (torch.float32, dtype)
        )
        assert narrow.dtype == dtype
        lost[name] = float((narrow.float() - wide).norm() / wide.norm())
    assert 0 < lost["w2sd"] < 2 * lost["plain"]


def test_a_weak_checkpoint_of_a_layerwise_cast_network(tmp_path):
    """It computes in the dtype in which the pipeline's network computes, not in which it lies."""
    pipe = tiny.build("sd")
    layerwise(pipe)
    other = tiny.build_denoiser("sd")
    other.save_pretrained(tmp_path / "weak")
    in_memory = drawn(pipe, "sd", W2SD(weak=Checkpoint(other)))
    assert torch.equal(drawn(pipe, "sd", W2SD(weak=Checkpoint(tmp_path / "weak"))), in_memory)
    assert other.dtype == torch.float32
