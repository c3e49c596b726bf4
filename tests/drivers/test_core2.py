"""A noise model on stock pipelines: against plain guidance, against formulas, and counted."""

from __future__ import annotations

import copy
import pickle

import pytest
import tiny
import torch
from noise_models import GUIDED, TWO_CALLS, Exact, Scaled, close, probed, rescaled
from torch import nn

from w2sdiff import W2SD, Checkpoint, Guidance, Lora, Plain, UnsupportedError, attach
from w2sdiff.edits import LearnedGuidance
from w2sdiff.methods import Core2, StaleGuidance, ZCore2
from w2sdiff.testing.replay import Role, remix, replay

STEPS = 4
SCALE = {"sd3": 4.0, "flux-true-cfg": 4.0}


def scale_of(family):
    return SCALE.get(family, 5.0)


def driven(pipe, family, method, **changes):
    """Latents, and the statistics of the run."""
    with attach(pipe, method) as run:
        found = tiny.latents(pipe, family, steps=STEPS, **changes)
    return found, run.stats


# One family per way of doing guidance by default: one call, two calls, with a learned variance.
SLOW_FAMILIES = [pytest.param(name, marks=pytest.mark.slow) for name in ("sdxl", "sd3")]


@pytest.fixture(params=["sd", "flux-true-cfg", "pixart", *SLOW_FAMILIES])
def family(request):
    return request.param


@pytest.fixture
def pipe(family):
    return tiny.build(family)


# --- a noise model that knows ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"slow_until": 0.0},
        {"slow_until": 1.0, "scale": 1.7},
        {"slow_until": 0.5, "scale": -0.5},
    ],
    ids=["fast", "slow", "slow, then fast"],
)
@pytest.mark.parametrize("family", GUIDED)
def test_with_an_exact_noise_model_every_mode_is_plain_guidance(pipe, family, settings):
    stock = tiny.latents(pipe, family, steps=STEPS)
    model = Exact(pipe, family, steps=STEPS)
    found, stats = driven(pipe, family, Core2(model, **settings))
    close(found, stock, scheduler=pipe.scheduler)
    assert model.calls == STEPS, "the noise model was not asked at every step"
    slow = round(settings["slow_until"] * STEPS)
    assert (stats.evaluations, stats.saved) == (STEPS + slow, STEPS - slow)


@pytest.mark.parametrize("family", GUIDED)
def test_slow_at_scale_1_is_plain_guidance_bit_for_bit(pipe, family):
    stock = tiny.latents(pipe, family, steps=STEPS)
    found, stats = driven(pipe, family, Core2(Scaled(), scale=1, slow_until=1))
    assert torch.equal(found, stock)
    assert (stats.evaluations, stats.saved) == (2 * STEPS, 0)
    other, _ = driven(pipe, family, Core2(Scaled(), scale=1.5, slow_until=1))
    assert not torch.allclose(other, stock, rtol=0.01), "the scale does nothing here"


# --- formulas, written out ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "slow_until", "fast_scale"),
    [
        (1.5, 1.0, 1.0),
        (1.5, 0.25, 2.5),
        pytest.param(0.0, 1.0, 1.0, marks=pytest.mark.slow),
        pytest.param(1.5, 0.5, 1.0, marks=pytest.mark.slow),
        pytest.param(1.5, 0.0, 1.0, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_written_out_formula(pipe, family, scale, slow_until, fast_scale):
    def mix(c, u, i, n):
        weak, guided = 0.9 * c, u + scale_of(family) * (c - u)
        if i < slow_until * n:
            return weak + scale * (guided - weak)
        return c + fast_scale * (weak - c)

    method = Core2(Scaled(0.9), scale=scale, slow_until=slow_until, fast_scale=fast_scale)
    found, _ = driven(pipe, family, method)
    expected = remix(pipe, family, tiny.call_kwargs(family, steps=STEPS), mix)
    close(found, expected, scheduler=pipe.scheduler)
    assert not torch.allclose(found, tiny.latents(pipe, family, steps=STEPS), rtol=0.01)


@pytest.mark.parametrize(
    "scale", [1.5, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.5, 1.0))]
)
def test_learned_guidance_on_plain(pipe, family, scale):
    edit = LearnedGuidance(Scaled(0.9), scale=scale)
    found, stats = driven(pipe, family, Plain(edit))
    call = tiny.call_kwargs(family, steps=STEPS)
    expected = remix(pipe, family, call, lambda c, *_: c * (1 - 0.1 * scale))
    close(found, expected, scheduler=pipe.scheduler)
    assert (stats.evaluations, stats.saved) == (STEPS, STEPS)


@pytest.mark.parametrize("every", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 10))])
def test_stale_guidance_keeps_the_unconditional_half(pipe, family, every):
    kept = {}

    def mix(c, u, i, n):
        if i % every == 0:
            kept["u"] = u
        return kept["u"] + scale_of(family) * (c - kept["u"])

    method = StaleGuidance(every=every)
    found, stats = driven(pipe, family, method)
    expected = remix(pipe, family, tiny.call_kwargs(family, steps=STEPS), mix)
    close(found, expected, scheduler=pipe.scheduler)
    assert stats.evaluations == method.cost(STEPS, scale_of(family))
    assert not torch.allclose(found, tiny.latents(pipe, family, steps=STEPS), rtol=1e-3)


def test_stale_guidance_that_refreshes_at_every_step_is_plain_bit_for_bit(pipe, family):
    found, stats = driven(pipe, family, StaleGuidance(every=1))
    assert torch.equal(found, tiny.latents(pipe, family, steps=STEPS))
    assert stats.saved == 0


def test_stale_guidance_keeps_nothing_from_one_call_to_the_next():
    pipe = tiny.build("sd")
    first = {"prompt": ["a cat", "a dog"], "negative_prompt": ["x", "y"]}
    with attach(pipe, StaleGuidance(every=2)):
        alone = tiny.latents(pipe, "sd")
        tiny.latents(pipe, "sd", **first)  # another batch size, which a kept half would not fit
        assert torch.equal(tiny.latents(pipe, "sd"), alone)


# --- Z-CoRe2 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scale", [1.5, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.0, 1.0))]
)
def test_z_core2_is_a_reflection_with_the_noise_model_as_the_weak_one(pipe, family, scale):
    """The weak network of the replay answers (1 - scale / 10) c by itself, without any edit."""
    network = tiny.denoiser(pipe, family)
    own = type(network).forward

    class Weaker(nn.Module):
        def forward(self, **kwargs):
            return (own(network, **kwargs)[0] * (1 - 0.1 * scale),)

    found, _ = driven(pipe, family, ZCore2(Scaled(0.9), scale=scale))
    call = tiny.call_kwargs(family, steps=STEPS)
    expected = replay(pipe, family, call, weak=Role(module=Weaker(), guidance=1.0))
    close(found, expected, scheduler=pipe.scheduler)
    assert not torch.allclose(found, tiny.latents(pipe, family, steps=STEPS), rtol=0.01)


def test_z_core2_at_scale_0_is_z_sampling_with_the_conditional_prediction(pipe, family):
    found, _ = driven(pipe, family, ZCore2(Scaled(), scale=0))
    expected, _ = driven(pipe, family, W2SD(weak=Guidance(1.0)))
    assert torch.equal(found, expected)


def test_z_core2_with_a_real_scale_of_its_own(pipe, family):
    found, _ = driven(pipe, family, ZCore2(Scaled(), real_scale=2.5))
    pair = W2SD(weak=LearnedGuidance(Scaled(), scale=1.5), base=Guidance(2.5))
    expected, _ = driven(pipe, family, pair)
    assert torch.equal(found, expected)
    assert not torch.equal(found, driven(pipe, family, ZCore2(Scaled()))[0])


# --- counted --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "steps", "expected"),
    [
        (Core2(Scaled(), slow_until=0.6), 50, 80),
        (Core2(Scaled(), slow_until=0), 7, 7),
        (Core2(Scaled(), slow_until=1), 7, 14),
        (StaleGuidance(every=2), 7, 11),
        (StaleGuidance(every=4), 7, 9),
        (ZCore2(Scaled()), 7, 6 * 5 + 2),
        (ZCore2(Scaled(), times=2), 3, 2 * 8 + 2),
    ],
    ids=lambda value: getattr(value, "kind", str(value)),
)
@pytest.mark.parametrize("family", ["sd", "flux-true-cfg"])
def test_what_is_not_announced_is_not_computed(family, method, steps, expected):
    """Counted in the network itself, behind whatever a driver says of it."""
    pipe = tiny.build(family)
    network = tiny.denoiser(pipe, family)
    with attach(pipe, method) as run, probed(network) as probe:
        tiny.latents(pipe, family, steps=steps)
    assert method.cost(steps, 4.0) == expected
    assert probe.evaluations == run.stats.evaluations == expected
    assert len(probe.batches) == run.stats.calls


def test_a_fast_step_is_one_call_of_one_branch(pipe, family):
    network = tiny.denoiser(pipe, family)
    with attach(pipe, Core2(Scaled(), slow_until=0.5)), probed(network) as probe:
        tiny.latents(pipe, family, steps=STEPS)
    slow = [1, 1] if family in TWO_CALLS else [2]
    assert probe.batches == slow * (STEPS // 2) + [1] * (STEPS // 2)


# --- what the noise model is given ----------------------------------------------------------------


def test_what_a_noise_model_sees(pipe, family):
    """The conditional branch's inputs, whichever halves are computed."""
    fast, slow = Scaled(), Scaled()
    driven(pipe, family, Core2(fast, slow_until=0))
    driven(pipe, family, Core2(slow, slow_until=1, scale=0))  # steps with g(c) too
    assert [given.step for given in fast.seen] == list(range(STEPS))
    assert {given.num_steps for given in fast.seen} == {STEPS}
    alphas = [given.alpha for given in fast.seen]
    assert alphas == sorted(alphas)
    for one, other in zip(fast.seen, slow.seen, strict=True):
        assert (one.alpha, one.sigma) == (other.alpha, other.sigma)
        assert torch.equal(one.text, other.text)
        close(one.x, other.x, scheduler=pipe.scheduler)
        assert one.x.shape[0] == one.text.shape[0] == 1
    first = slow.seen[0]
    assert not torch.equal(first.text, first.negative)
    if family in ("sdxl", "sd3", "flux-true-cfg"):
        assert not torch.equal(first.pooled, first.negative_pooled)
    assert (first.mask is not None) == (family == "pixart")
    assert (first.positions is not None) == (family == "flux-true-cfg")
    # The pair of levels is one of unit variance, or a straight path.
    for given in fast.seen:
        straight = family in ("sd3", "flux-true-cfg")
        sum_ = given.alpha + given.sigma if straight else given.alpha**2 + given.sigma**2
        assert sum_ == pytest.approx(1, abs=1e-6)


def test_positions_of_packed_latents_are_rows_and_columns():
    model, pipe = Scaled(), tiny.build("flux-true-cfg")
    driven(pipe, "flux-true-cfg", Core2(model), height=16, width=24)
    places = model.seen[0].positions
    rows, columns = 16 // 4, 24 // 4
    expected = [[row, column] for row in range(rows) for column in range(columns)]
    assert places.tolist() == expected


def test_a_batch_is_its_items():
    pipe = tiny.build("sd")
    prompts = ["a cat", "a red dog"]
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    method = Core2(Scaled(), slow_until=0.5)
    both, _ = driven(pipe, "sd", method, prompt=prompts, negative_prompt=["", ""], latents=noise)
    for i, prompt in enumerate(prompts):
        one, _ = driven(
            pipe, "sd", method, prompt=prompt, negative_prompt="", latents=noise[i : i + 1]
        )
        close(one, both[i : i + 1])


def test_a_learned_variance_stays_that_of_the_conditional_prediction():
    """Schedulers that draw with the learned variance find it where the network put it."""
    from w2sdiff.edits.base import Context, Inputs, Request
    from w2sdiff.levels import Levels

    c = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    inputs = Inputs(torch.ones(2, 4, 4, 4), {})
    request = Request(0, 3, 0, lambda: Levels.flow(3), lambda _: inputs)
    pipe = tiny.build("pixart")
    context = Context(pipe, ("transformer",), lambda _: None, guidance_scale=3.0, request=request)
    guided, same = LearnedGuidance(Scaled(0.5)).halves(c, None, context)
    assert guided is same
    assert torch.equal(guided[:, :4], 0.5 * c[:, :4])
    assert torch.equal(guided[:, 4:], c[:, 4:])


# --- guidance rescale -----------------------------------------------------------------------------


RESCALE = {"guidance_rescale": 0.7}


@pytest.mark.parametrize("family", ["sd", SLOW_FAMILIES[0]])
class TestGuidanceRescale:
    def test_slow_at_scale_1_is_plain_bit_for_bit(self, pipe, family):
        stock = tiny.latents(pipe, family, steps=STEPS, **RESCALE)
        found, _ = driven(pipe, family, Core2(Scaled(), scale=1, slow_until=1), **RESCALE)
        assert torch.equal(found, stock)
        assert not torch.equal(tiny.latents(pipe, family, steps=STEPS), stock)

    def test_an_exact_model_has_learned_the_rescaled_prediction(self, pipe, family):
        stock = tiny.latents(pipe, family, steps=STEPS, **RESCALE)
        model = Exact(pipe, family, steps=STEPS, **RESCALE)
        found, _ = driven(pipe, family, Core2(model, slow_until=0), **RESCALE)
        close(found, stock, scheduler=pipe.scheduler)

    def test_fast_is_not_rescaled_again(self, pipe, family):
        fast = Core2(Scaled(), slow_until=0)
        found, _ = driven(pipe, family, fast, **RESCALE)
        close(found, driven(pipe, family, fast)[0], scheduler=pipe.scheduler)

    def test_slow_is_rescaled_by_the_conditional_prediction(self, pipe, family):
        def mix(c, u, i, n):
            weak = 0.9 * c
            return rescaled(weak + 1.5 * (u + 5.0 * (c - u) - weak), c, 0.7)

        found, _ = driven(pipe, family, Core2(Scaled(0.9), slow_until=1), **RESCALE)
        call = tiny.call_kwargs(family, steps=STEPS, **RESCALE)
        close(found, remix(pipe, family, call, mix), scheduler=pipe.scheduler)


# --- relatives of the families --------------------------------------------------------------------

IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def image_to_image(family):
    import diffusers

    names = {
        "sd": "StableDiffusionImg2ImgPipeline",
        "sdxl": "StableDiffusionXLImg2ImgPipeline",
        "sd3": "StableDiffusion3Img2ImgPipeline",
        "flux-true-cfg": "FluxImg2ImgPipeline",
    }
    pipe = getattr(diffusers, names[family])(**tiny.build(family).components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    "family",
    ["sd", *(pytest.param(f, marks=pytest.mark.slow) for f in ("sdxl", "sd3", "flux-true-cfg"))],
)
def test_image_to_image(family):
    pipe, call = image_to_image(family), {"image": IMAGE, "strength": 0.5, "steps": 8}
    stock = tiny.latents(pipe, family, **call)
    model = Exact(pipe, family, **call)
    with attach(pipe, Core2(model, scale=1.5, slow_until=0.5)) as run:
        found = tiny.latents(pipe, family, **call)
    close(found, stock, scheduler=pipe.scheduler)
    assert (run.stats.steps, run.stats.evaluations, model.calls) == (4, 6, 4)


def test_inpainting_with_a_network_that_takes_mask_and_image():
    """Nine channels in, four out: the noise model sees the four that are latents."""
    from diffusers import StableDiffusionInpaintPipeline

    stock_pipe = tiny.build("sd")
    unet = tiny.randomise(
        type(stock_pipe.unet).from_config({**stock_pipe.unet.config, "in_channels": 9}), 3
    )
    pipe = StableDiffusionInpaintPipeline(**{**stock_pipe.components, "unet": unet})
    pipe.set_progress_bar_config(disable=True)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    model = Scaled()
    with attach(pipe, Core2(model, slow_until=0.5)) as run:
        tiny.latents(pipe, "sd", image=IMAGE, mask_image=mask, strength=1.0)
    assert {tuple(given.x.shape) for given in model.seen} == {(1, 4, 8, 8)}
    assert run.stats.evaluations == 6


def test_a_third_call_of_skip_layer_guidance_is_left_alone():
    pipe = tiny.build("sd3")
    changes = {
        "skip_guidance_layers": [0],
        "skip_layer_guidance_start": 0.0,
        "skip_layer_guidance_stop": 1.0,
    }
    stock = tiny.latents(pipe, "sd3", steps=STEPS, **changes)
    found, _ = driven(pipe, "sd3", Core2(Scaled(), scale=1, slow_until=1), **changes)
    assert torch.equal(found, stock)
    assert not torch.equal(stock, tiny.latents(pipe, "sd3", steps=STEPS))


# --- under other weights --------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sdxl", "flux-true-cfg"])
def test_base_is_the_network_under_all_of_it(pipe, family, tmp_path):
    tiny.add_lora(pipe, family, tmp_path)
    other, base = tiny.build_denoiser(family), Lora("style", 0.4)
    for edits in (Lora("style", -0.7), Checkpoint(other)):
        exact_there, _ = driven(pipe, family, Plain(edits))
        found, _ = driven(pipe, family, Core2(Scaled(), scale=1, slow_until=1, base=edits))
        assert torch.equal(found, exact_there)
        every, _ = driven(pipe, family, StaleGuidance(every=1, base=edits))
        assert torch.equal(every, exact_there)
        reflected, _ = driven(pipe, family, ZCore2(Scaled(), scale=0, base=edits))
        same = W2SD(strong=edits, weak=edits | Guidance(1.0), base=edits)
        assert torch.equal(reflected, driven(pipe, family, same)[0])
    fast, _ = driven(pipe, family, Core2(Scaled(1.0), slow_until=0, base=base))
    conditional, _ = driven(pipe, family, Plain(base | Guidance(1.0)))
    close(fast, conditional, scheduler=pipe.scheduler)


# --- guidance that is off, or goes off ------------------------------------------------------------

METHODS = [Core2(Scaled(), slow_until=0), Core2(Scaled(), slow_until=1), ZCore2(Scaled())]
OFF = {"guidance_scale": 1.0}


@pytest.mark.parametrize("method", METHODS, ids=["fast", "slow", "zcore2"])
@pytest.mark.parametrize(
    ("family", "changes"),
    [("sd", OFF), ("sdxl", OFF), ("sd3", OFF), ("pixart", OFF), ("flux", {})],
)
def test_without_guidance_there_is_nothing_to_stand_in_for(family, changes, method):
    pipe = tiny.build(family)
    with attach(pipe, method), pytest.raises(UnsupportedError, match="guidance") as error:
        tiny.latents(pipe, family, **changes)
    assert "off at this step" in str(error.value)
    assert "true_cfg_scale" in str(error.value)
    assert "\n" not in str(error.value)


def test_guidance_that_a_callback_switches_off():
    def off(pipe, i, t, kwargs):
        if i == 1:
            pipe._guidance_scale = 1.0
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[-1]
        return kwargs

    call = {
        "callback_on_step_end": off,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    pipe = tiny.build("sd")
    stock = tiny.latents(pipe, "sd", **call)
    for method in METHODS:
        with attach(pipe, method), pytest.raises(UnsupportedError, match="off at this step"):
            tiny.latents(pipe, "sd", **call)
    found, _ = driven(pipe, "sd", StaleGuidance(every=1), **call)
    assert torch.equal(found, stock)  # which needs no guidance to go on


def test_guidance_that_a_callback_switches_on_too_late_for_stale_guidance():
    """Nothing was kept, and this step would compute nothing."""

    def on(pipe, i, t, kwargs):
        if i == 0:
            pipe._guidance_scale = 5.0
            embeds = kwargs["prompt_embeds"]
            kwargs["prompt_embeds"] = torch.cat([torch.zeros_like(embeds), embeds])
        return kwargs

    call = {
        "guidance_scale": 1.0,
        "callback_on_step_end": on,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    pipe = tiny.build("sd")
    with attach(pipe, StaleGuidance(every=3)), pytest.raises(UnsupportedError, match="none was"):
        tiny.latents(pipe, "sd", **call)
    found, _ = driven(pipe, "sd", StaleGuidance(every=1), **call)
    assert torch.equal(found, tiny.latents(pipe, "sd", steps=STEPS, **call))


# --- made for something else ----------------------------------------------------------------------


def made_for(**host):
    from w2sdiff.core2.noise_model import Host

    model = Scaled()
    model.host = Host(**host)
    return model


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ({"denoiser": "PixArtTransformer2DModel"}, "PixArtTransformer2DModel.*UNet2DCondition"),
        (
            {"denoiser": "UNet2DConditionModel", "architecture": {"block_out_channels": [8, 32]}},
            r"block_out_channels is \[8, 32\], the pipeline's \[8, 16\]",
        ),
        ({"prediction": "v"}, "networks that predict v, this one predicts epsilon"),
        ({"guidance_scale": 7.0}, "guidance at 7, the pipeline runs at 5.*guidance_scale=7"),
        ({"channels": 16}, "16 channels.* 4"),
        ({"channels": 2}, "2 channels.* 4"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(reversed(value)),
)
@pytest.mark.parametrize("mode", [0.0, 1.0], ids=["fast", "slow"])
def test_a_noise_model_of_another_host_is_refused(host, says, mode):
    pipe = tiny.build("sd")
    method = Core2(made_for(**host), slow_until=mode)
    with attach(pipe, method), pytest.raises(UnsupportedError, match=says) as error:
        tiny.latents(pipe, "sd")
    assert "\n" not in str(error.value)


def test_a_noise_model_of_this_host_is_taken(pipe, family):
    import dataclasses

    from w2sdiff.core2.noise_model import Host

    model = Scaled()
    model.host = dataclasses.replace(
        Host.of_network(tiny.denoiser(pipe, family)),
        prediction="flow" if family in ("sd3", "flux-true-cfg") else "epsilon",
        guidance_scale=scale_of(family),
        channels=16 if family == "flux-true-cfg" else 4,
    )
    assert len(model.host.architecture) >= 4
    driven(pipe, family, Core2(model))
    assert len(model.seen) == STEPS


def test_a_scale_that_changes_between_calls_of_one_attach_is_noticed():
    pipe = tiny.build("sd")
    with attach(pipe, Core2(made_for(guidance_scale=5.0), slow_until=0)):
        tiny.latents(pipe, "sd")
        with pytest.raises(UnsupportedError, match="guidance at 5, the pipeline runs at 3"):
            tiny.latents(pipe, "sd", guidance_scale=3.0)
        tiny.latents(pipe, "sd")


def test_a_pipeline_whose_guidance_is_not_known_is_refused_before_it_runs():
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(4,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=2,
    )
    pipe = DDIMPipeline(unet, DDIMScheduler())
    for method in (*METHODS, StaleGuidance()):
        with pytest.raises(UnsupportedError, match="DDIMPipeline"), attach(pipe, method):
            pass


# --- as it was ------------------------------------------------------------------------------------


class OnPurposeError(Exception):
    pass


@pytest.mark.parametrize("family", ["sdxl", "flux-true-cfg"])
@pytest.mark.parametrize("where", ["network", "noise model", "user"])
def test_after_an_exception_the_pipeline_is_what_it_was(pipe, family, where):
    from restored import compare, fingerprint

    class Fails(NoiseModelThatFails):
        after = 2 if where == "noise model" else 99

    stock = tiny.latents(pipe, family, steps=STEPS)
    model = Fails()
    before = fingerprint(pipe)
    count = 0

    def fail(*_):
        nonlocal count
        count += 1
        if count == 3:
            raise OnPurposeError

    if where == "network":
        handle = tiny.denoiser(pipe, family).register_forward_hook(fail)
    with pytest.raises(OnPurposeError), attach(pipe, Core2(model, slow_until=0.5)):
        draw_and_fail(pipe, family)
    if where == "network":
        handle.remove()
    compare(before, fingerprint(pipe))
    assert torch.equal(tiny.latents(pipe, family, steps=STEPS), stock)


def draw_and_fail(pipe, family):
    tiny.latents(pipe, family, steps=STEPS)
    raise OnPurposeError


class NoiseModelThatFails(Scaled):
    after = 0

    def forward(self, c, given):
        if len(self.seen) == self.after:
            raise OnPurposeError
        return super().forward(c, given)


def test_the_users_noise_model_is_left_alone():
    """It is used in the pipeline's type without being cast in place."""
    from w2sdiff.core2.compact import CompactConfig, CompactNoiseModel

    pipe = tiny.build("sd", dtype=torch.bfloat16)
    model = CompactNoiseModel(CompactConfig(4, "epsilon", 32, width=16)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with attach(pipe, Core2(model, slow_until=0)):
        found = tiny.latents(pipe, "sd")
    assert found.dtype == torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.dtype == torch.float32


def test_model_offload():
    plain_pipe, pipe = tiny.build("sdxl"), tiny.build("sdxl")
    method = Core2(Scaled(), slow_until=0.5)
    expected, _ = driven(plain_pipe, "sdxl", method)
    pipe.enable_model_cpu_offload(device="cpu")
    found, _ = driven(pipe, "sdxl", method)
    close(found, expected, scheduler=pipe.scheduler)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize(
    "make",
    [lambda m: Core2(m, slow_until=0.5), lambda m: ZCore2(m, scale=0.3, times=2)],
    ids=["core2", "zcore2"],
)
def test_a_copy_of_a_method_draws_the_same(copied, make):
    method, pipe = make(Scaled(0.8)), tiny.build("sd")
    expected, _ = driven(pipe, "sd", method)
    again = copied(method)
    assert again.noise_model is not method.noise_model
    assert torch.equal(driven(pipe, "sd", again)[0], expected)
