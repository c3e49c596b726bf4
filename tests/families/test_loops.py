"""What a pipeline does around its denoiser happens once per step, at the right x and level."""

from __future__ import annotations

import pytest
import torch

from w2sdiff import (
    W2SD,
    Checkpoint,
    Guidance,
    LearnedGuidance,
    Plain,
    Prompt,
    UnsupportedError,
    attach,
)
from w2sdiff.core2 import NoiseModel
from w2sdiff.testing import VARIANTS, variants
from w2sdiff.testing.variants import NEGATIVE

variants()  # fills the table
STEPS = 4
METHOD = W2SD(weak=Guidance(1.0))


class Half(NoiseModel):
    """In the place of a noise model."""

    def forward(self, c, given):
        del given
        return c / 2


def other_network(name):
    """Another denoiser of the same shape."""
    return VARIANTS[name].network(VARIANTS[name].build(1))


# --- ControlNet: its residuals belong to the latents they are used with ---------------------------

CONTROLNETS = [
    "sdxl-controlnet",
    "flux-controlnet",
    pytest.param("sd-controlnet", marks=pytest.mark.slow),
    pytest.param("sd-controlnet-img2img", marks=pytest.mark.slow),
    pytest.param("sdxl-controlnet-img2img", marks=pytest.mark.slow),
]


def latents_of(module, args, kwargs):
    found = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
    return found[-1]  # the conditional branch, which is there in any case


@pytest.mark.parametrize("name", CONTROLNETS)
def test_the_controlnet_sees_the_latents_that_the_network_sees(name):
    variant = VARIANTS[name]
    pipe, seen = variant.build(), {"control": [], "network": []}
    for part, module in (("control", pipe.controlnet), ("network", variant.network(pipe))):
        module.register_forward_pre_hook(
            lambda module, args, kwargs, part=part: seen[part].append(
                latents_of(module, args, kwargs)
            ),
            with_kwargs=True,
        )
    with attach(pipe, METHOD) as run:
        variant.latents(pipe, steps=STEPS)
    n = run.stats.steps
    assert len(seen["control"]) == len(seen["network"]) == 3 * (n - 1) + 1
    for control, network in zip(seen["control"], seen["network"], strict=True):
        assert torch.equal(control, network)
    first, second = seen["control"][:2]
    assert not torch.equal(first, second), "the strong and the weak model see other latents"


@pytest.mark.parametrize("name", CONTROLNETS)
def test_stale_residuals_would_give_something_else(name):
    """Those of the strong model's latents, used again for the weak model's one level further.

    By more than ten times of what the replay, which calls the ControlNet again, may differ.
    """
    variant = VARIANTS[name]
    pipe = variant.build()
    change = {"controlnet_conditioning_scale": 1.0}
    with attach(pipe, METHOD):
        right = variant.latents(pipe, steps=STEPS, **change)
    fresh, kept = pipe.controlnet.forward, {}

    def stale(*args, **kwargs):
        time = float(torch.as_tensor(kwargs.get("timestep", args[1:2] or 0.0)).flatten()[0])
        if time not in kept:
            kept[time] = fresh(*args, **kwargs)
        return kept[time]

    pipe.controlnet.forward = stale
    with attach(pipe, METHOD) as run:
        wrong = variant.latents(pipe, steps=STEPS, **change)
    assert len(kept) == run.stats.steps
    assert float((right - wrong).abs().max()) > 1e-4 * float(right.abs().max())


# --- inpainting: what is kept is blended in once per step -----------------------------------------

INPAINTING = [
    "sdxl-inpaint",
    "flux-inpaint",
    pytest.param("sd-inpaint", marks=pytest.mark.slow),
    pytest.param("sd3-inpaint", marks=pytest.mark.slow),
]


def noised(pipe, variant):
    """Latents of a call, and the timesteps at which its picture was given noise."""
    name = "scale_noise" if hasattr(pipe.scheduler, "scale_noise") else "add_noise"
    real, times = getattr(pipe.scheduler, name), []

    def spy(*args, **kwargs):
        time = kwargs.get("timestep", kwargs.get("timesteps"))
        if time is None:  # add_noise(picture, noise, time), scale_noise(picture, time, noise)
            time = args[1 if name == "scale_noise" else 2]
        times.append(float(torch.as_tensor(time).flatten()[0]))
        return real(*args, **kwargs)

    setattr(pipe.scheduler, name, spy)
    try:
        return variant.latents(pipe, steps=STEPS), times
    finally:
        delattr(pipe.scheduler, name)


@pytest.mark.parametrize("name", INPAINTING)
def test_inpainting_blends_once_per_step_at_that_steps_level(name):
    variant = VARIANTS[name]
    pipe = variant.build()
    stock, expected = noised(pipe, variant)
    with attach(pipe, W2SD(weak=Checkpoint(other_network(name)))) as run:
        reflected, times = noised(pipe, variant)
    assert times == expected
    assert len(times) == 1 + run.stats.steps - 1  # to begin with, and after all steps but the last
    if reflected.ndim == 3:  # FLUX: [B, 4 x 4 tokens, 2 x 2 latents of 4 channels]
        reflected, stock = (x.unflatten(1, (4, 4)).movedim(-1, 1) for x in (reflected, stock))
    side = reflected.shape[-1]
    kept, painted = (..., slice(side // 2, None)), (..., slice(0, side // 2))
    torch.testing.assert_close(reflected[kept], stock[kept], rtol=0, atol=1e-5)
    assert not torch.allclose(reflected[painted], stock[painted], rtol=0.01)


# --- image to image: it begins at a level of its own ----------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "sdxl-img2img",
        "sd3-img2img",
        pytest.param("sd-img2img", marks=pytest.mark.slow),
        pytest.param("flux-img2img", marks=pytest.mark.slow),
    ],
)
def test_image_to_image_reflects_between_the_levels_it_walks_over(name):
    """What the strong model's prediction carries x to is what a first-order step of it would be."""
    variant = VARIANTS[name]
    pipe = variant.build()
    network, shown = variant.network(pipe), []
    network.register_forward_pre_hook(
        lambda module, args, kwargs: shown.append(latents_of(module, args, kwargs)),
        with_kwargs=True,
    )
    variant.latents(pipe, steps=STEPS)
    plain = shown[:]
    shown.clear()
    with attach(pipe, W2SD()) as run:
        variant.latents(pipe, steps=STEPS)
    assert run.stats.steps == len(plain) == STEPS - 1
    assert torch.equal(shown[0], plain[0])
    # DDIM, Euler and the flow's Euler are first-order: the weak model is asked where stock goes.
    torch.testing.assert_close(shown[1], plain[1], rtol=1e-4, atol=1e-5)


# --- skip-layer guidance --------------------------------------------------------------------------


def test_skip_layer_guidance_keeps_its_third_call():
    """SD3 calls its network once more with one branch; a guidance pair leaves that call alone."""
    variant = VARIANTS["sd3-skip-layers"]
    pipe, batches = variant.build(), []
    pipe.transformer.register_forward_pre_hook(
        lambda _, __, kwargs: batches.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    # A start of 0 leaves the first step out.
    with attach(pipe, METHOD):
        variant.latents(pipe, steps=3, skip_layer_guidance_start=0.0)
    first, second, last = [2, 1, 2], [2, 1, 1, 1, 2, 1], [2, 1]
    assert batches == [*first, *second, *last]


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5])
def test_skip_layer_guidance_is_added_to_the_mix_at_any_scale_in_its_span(scale):
    """u + scale (c - u) + k (c - c without the layers), each of the three evaluated by itself.

    At scale 0 too it measures from c, which the mix does not need.
    """
    variant, k, steps = VARIANTS["sd3-skip-layers"], 2.8, 4
    span = {"skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.75}  # steps 1 and 2
    pipe = variant.build()
    with attach(pipe, Plain(base=Guidance(scale))) as run:
        found = variant.latents(pipe, steps=steps, **span)
    outside, inside = (1 if scale in (0.0, 1.0) else 2), {0.0: 3, 1.0: 2, 1.5: 3}[scale]
    assert run.stats.evaluations == 2 * outside + 2 * inside

    # By itself: without guidance the pipeline's one call is c; the others are asked beside it.
    words = ("encoder_hidden_states", "pooled_projections")
    told, forward, asked = {}, pipe.transformer.forward, []

    def keep(**kwargs):
        told.update({name: kwargs[name] for name in words})
        return forward(**kwargs)

    def mixed(**kwargs):
        c = forward(**kwargs)[0]
        u = forward(**{**kwargs, **negative})[0]
        prediction = u + scale * (c - u)
        if len(asked) in (1, 2):
            prediction = prediction + k * (c - forward(**kwargs, skip_layers=[0])[0])
        asked.append(1)
        return (prediction,)

    pipe.transformer.forward = keep
    variant.latents(pipe, steps=1, prompt=NEGATIVE, **variant.at_scale(1.0))
    negative = dict(told)
    pipe.transformer.forward = mixed
    expected = variant.latents(pipe, steps=steps, **variant.at_scale(1.0))
    del pipe.transformer.forward
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_skip_layer_guidance_measures_from_the_conditional_prediction_which_must_stay():
    variant = VARIANTS["sd3-skip-layers"]
    pipe, method = variant.build(), W2SD(weak=LearnedGuidance(Half()))
    with attach(pipe, method), pytest.raises(UnsupportedError, match="skip_guidance_layers"):
        variant.latents(pipe)
    with attach(pipe, method) as run:
        variant.latents(pipe, skip_guidance_layers=None)
    assert run.stats.evaluations == 4 * 2 + 3 * (2 + 1)


# --- perturbed-attention guidance -----------------------------------------------------------------


@pytest.mark.parametrize("leaves", ["by an exception", "for another prompt"])
def test_pag_gets_the_attention_processors_back(leaves):
    """Its pipelines set their own before the loop, and put the former ones back only after it."""
    variant = VARIANTS["sd-pag"]
    pipe = variant.build()
    before, stock = dict(pipe.unet.attn_processors), variant.latents(pipe)

    def fail(*_):
        raise KeyboardInterrupt

    if leaves == "by an exception":
        hook = pipe.unet.register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt), attach(pipe, Plain()):
            variant.latents(pipe)
        hook.remove()
    else:
        with attach(pipe, W2SD(weak=Prompt("a cat"))):
            assert not torch.allclose(variant.latents(pipe), stock, rtol=0.01)
    after = pipe.unet.attn_processors
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert torch.equal(variant.latents(pipe), stock)


def test_pag_measures_from_the_conditional_prediction_which_must_stay():
    variant = VARIANTS["sd-pag"]
    pipe = variant.build()
    method = W2SD(weak=LearnedGuidance(Half()))
    with attach(pipe, method), pytest.raises(UnsupportedError, match="pag_scale"):
        variant.latents(pipe)
    with attach(pipe, method) as run:  # without PAG it is a pipeline of two branches
        variant.latents(pipe, pag_scale=0.0)
    assert run.stats.evaluations == 4 * 2 + 3 * (2 + 1)


@pytest.mark.parametrize("name", ["sd-pag", "sdxl-pag"])
def test_pag_at_scale_1_is_asked_for_the_two_branches_that_stock_spends_there(name):
    """[c, p] without classifier-free guidance, with the processors that take a batch in halves."""
    variant = VARIANTS[name]
    pipe, batches = variant.build(), []
    pipe.unet.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    stock = variant.latents(pipe, steps=STEPS, **variant.at_scale(1.0))
    spent = [batches.pop() for _ in range(STEPS)]
    assert spent == [2] * STEPS
    with attach(pipe, Plain(base=Guidance(1.0))) as run:
        found = variant.latents(pipe, steps=STEPS)
    assert batches == spent
    assert (run.stats.evaluations, run.stats.saved) == (2 * STEPS, STEPS)
    torch.testing.assert_close(found, stock, rtol=0, atol=1e-5 * float(stock.abs().max()))
    # The roles take turns: the strong one guides, and its batch is taken apart in thirds again.
    batches.clear()
    with attach(pipe, METHOD) as run:
        variant.latents(pipe, steps=STEPS)
    assert batches == [3, 2, 3] * (STEPS - 1) + [3]
    assert run.stats.evaluations == sum(batches)
