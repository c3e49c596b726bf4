"""Relatives of the families: what a pipeline does around its denoiser happens at the right x."""

from __future__ import annotations

import tiny
import torch

from w2sdiff import W2SD, Checkpoint, Guidance, Plain, attach

STEPS = 3
IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(5))
MASK = torch.zeros(1, 1, 16, 16)
MASK[..., :8] = 1


def from_parts(cls, pipe, **more):
    parts = {**pipe.components, **more}
    pipe = cls(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def both_ways(pipe, family, **changes):
    """Off is exact; returns the latents of W2SD with a checkpoint pair, and the plain ones."""
    stock = tiny.latents(pipe, family, steps=STEPS, **changes)
    with attach(pipe, Plain()):
        assert torch.equal(tiny.latents(pipe, family, steps=STEPS, **changes), stock)
    with attach(pipe, W2SD(weak=Checkpoint(tiny.build_denoiser(family)))) as run:
        reflected = tiny.latents(pipe, family, steps=STEPS, **changes)
    assert not torch.allclose(reflected, stock, rtol=0.01)
    assert torch.equal(tiny.latents(pipe, family, steps=STEPS, **changes), stock)
    return reflected, stock, run.stats


def test_inpainting_blends_once_per_step():
    from diffusers import StableDiffusionXLInpaintPipeline

    pipe = from_parts(StableDiffusionXLInpaintPipeline, tiny.build("sdxl"))
    call = {"image": IMAGE, "mask_image": MASK, "strength": 0.99}
    reflected, stock, _ = both_ways(pipe, "sdxl", **call)
    kept, painted = (..., slice(4, None)), (..., slice(0, 4))  # 8 x 8 latents
    torch.testing.assert_close(reflected[kept], stock[kept], rtol=0, atol=1e-5)
    assert not torch.allclose(reflected[painted], stock[painted], rtol=0.01)


def test_image_to_image_starts_at_its_own_level():
    """With equal models the residual halves as the steps double; at a wrong level it would stay."""
    from diffusers import StableDiffusion3Img2ImgPipeline

    pipe = from_parts(StableDiffusion3Img2ImgPipeline, tiny.build("sd3"))
    call = {"image": IMAGE, "strength": 0.5}
    both_ways(pipe, "sd3", **call)
    sizes = []
    for steps in (12, 24):
        with attach(pipe, W2SD()) as run:
            tiny.latents(pipe, "sd3", steps=steps, **call)
        n = steps // 2
        assert (run.stats.steps, run.stats.calls) == (n, 3 * (n - 1) + 1)
        sizes.append(sum(run.stats.reflection) / (n - 1))
    assert 0.35 < sizes[1] / sizes[0] < 0.65, sizes


def test_skip_layer_guidance_keeps_its_third_call():
    """SD3 calls its network once more with one branch; a guidance pair leaves that call alone."""
    pipe = tiny.build("sd3")
    changes = {
        "skip_guidance_layers": [0],
        "skip_layer_guidance_start": 0.0,
        "skip_layer_guidance_stop": 1.0,
    }
    both_ways(pipe, "sd3", **changes)
    batches = []
    pipe.transformer.register_forward_pre_hook(
        lambda _, __, kwargs: batches.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    with attach(pipe, W2SD(weak=Guidance(1.0))):
        tiny.latents(pipe, "sd3", steps=STEPS, **changes)
    # diffusers skips layers after the first step only
    first, second, last = [2, 1, 2], [2, 1, 1, 1, 2, 1], [2, 1]
    assert batches == [*first, *second, *last]


def test_pixart_alpha_is_pixart():
    from diffusers import PixArtAlphaPipeline

    pipe = from_parts(PixArtAlphaPipeline, tiny.build("pixart"))
    sigma = tiny.build("pixart")
    results = []
    for each in (pipe, sigma):
        with attach(each, W2SD(weak=Guidance(1.0))):
            results.append(tiny.latents(each, "pixart", steps=STEPS))
    assert torch.equal(*results)
