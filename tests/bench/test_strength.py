"""The effective guidance scale: what is known in closed form comes out of the measurement."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from w2sdiff import (
    W2SD,
    AutoGuidance,
    Checkpoint,
    Guidance,
    Lora,
    Plain,
    Prompt,
    UnsupportedError,
    Window,
    ZigZag,
    attach,
    shapes,
)
from w2sdiff.bench.rivals.strength import Measured, Strength, effective_scale
from w2sdiff.drivers.function import drive
from w2sdiff.generate import Settings, Shot, Studio, find_model
from w2sdiff.levels import Levels

SCALES = {"sd": 5.0, "sdxl": 5.0, "sd3": 4.0, "flux-true-cfg": 4.0, "pixart": 5.0}
WIDTH = 4


def on_pipeline(pipe, family, method, *, guided=True, **changes):
    """(scale, guidance, pair) per item, and the latents."""
    measured = Measured(method, guided=guided)
    with attach(pipe, measured) as run:
        out = tiny.latents(pipe, family, **changes)
    numbers, steps = measured.take()
    assert steps > 0
    assert run.stats.evaluations > 0
    return torch.tensor(numbers, dtype=torch.float64), out


# ---- stock pipelines


@pytest.mark.parametrize("family", SCALES)
def test_plain_sampling_has_the_scale_it_is_called_with(family):
    numbers, _ = on_pipeline(tiny.build(family), family, Plain())
    assert numbers[0, 0] == pytest.approx(SCALES[family], rel=1e-4)
    assert numbers[0, 1] == numbers[0, 0]
    assert math.isnan(numbers[0, 2])


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-9), (torch.bfloat16, 1e-3)])
def test_as_exactly_as_the_pipeline_computes(dtype, error):
    pipe = tiny.build("sd", dtype=dtype)
    numbers, _ = on_pipeline(pipe, "sd", Plain(), guidance_scale=7.5)
    assert numbers[0, 0] == pytest.approx(7.5, rel=error)


def test_each_item_of_a_batch_has_its_own():
    pipe = tiny.build("sd")
    words = {"prompt": ["one", "another"], "negative_prompt": ["", "blurry"]}
    numbers, _ = on_pipeline(pipe, "sd", ZigZag(), **words)
    assert numbers.shape == (2, 3)
    assert numbers[0, 0] != numbers[1, 0]


@pytest.mark.parametrize(
    "method",
    [
        ZigZag(),
        W2SD(strong=Guidance(1.0), weak=Guidance(0.0), times=2, inversion="reference"),
        AutoGuidance(strong=Guidance(1.0), weak=Guidance(0.0), scale=3.0),
        W2SD(weak=Prompt("something else")),
        AutoGuidance(weak=Prompt("something else"), window=Window(stop=0.5, last=True)),
        W2SD(base=Guidance(2.0), weak=Guidance(1.0), window=Window(stop=0.5)),
    ],
    ids=str,
)
def test_measuring_changes_no_bit(method):
    pipe = tiny.build("sd")
    with attach(pipe, method):
        alone = tiny.latents(pipe, "sd")
    assert torch.equal(on_pipeline(pipe, "sd", method)[1], alone)


def test_nor_with_a_scheduler_that_draws_noise():
    from diffusers import EulerAncestralDiscreteScheduler

    pipe = tiny.build("sd")
    pipe.scheduler = EulerAncestralDiscreteScheduler(**tiny.SD_NOISE)
    alone = tiny.latents(pipe, "sd")
    numbers, out = on_pipeline(pipe, "sd", Plain())
    assert torch.equal(out, alone)
    assert numbers[0, 0] == pytest.approx(5.0, rel=1e-4)


def test_a_scheduler_without_first_order_steps_is_refused():
    from diffusers import HeunDiscreteScheduler

    pipe = tiny.build("sd")
    pipe.scheduler = HeunDiscreteScheduler(**tiny.SD_NOISE)
    with pytest.raises(UnsupportedError, match="more than once per step"):
        on_pipeline(pipe, "sd", Plain())


@pytest.mark.parametrize("family", ["sd", "pixart"])
def test_autoguidance_on_a_guidance_pair_is_plain_guidance(family):
    method = AutoGuidance(strong=Guidance(3.0), weak=Guidance(1.0), scale=2.5)
    numbers, _ = on_pipeline(tiny.build(family), family, method)
    assert numbers[0, 0] == pytest.approx(1 + 2.5 * (3 - 1), rel=1e-4)


def test_outside_its_window_a_method_guides_like_its_base():
    method = AutoGuidance(
        strong=Guidance(1.0), weak=Guidance(0.0), base=Guidance(2.0), scale=7.0, window=Window(0.5)
    )
    numbers, _ = on_pipeline(tiny.build("sd"), "sd", method, steps=4)
    # Window() leaves the last step out: one step of four has 2 + 6.
    assert numbers[0, 0] == pytest.approx((2 + 2 + 8 + 2) / 4, rel=1e-4)


def test_an_identical_pair_adds_nothing():
    """A network that does not look at x gives strong and weak one answer: down and up cancel."""
    numbers = measured_on(W2SD(), same_answer(), Levels.flow(6))
    assert numbers[:, 0].tolist() == pytest.approx([3.0] * 3, rel=1e-9)


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_a_pair_of_weights_has_a_coordinate_of_its_own(guidance, tmp_path):
    """AutoGuidance with a base adds scale - 1 differences, whatever direction they have."""
    pipe = tiny.build("sd")
    tiny.add_lora(pipe, "sd", tmp_path)
    method = AutoGuidance(weak=Lora("style", -1.0), base=Prompt("other words"), scale=2.5)
    guided = guidance > 1
    numbers, _ = on_pipeline(pipe, "sd", method, guided=guided, guidance_scale=guidance)
    scale, along, pair = numbers[0]
    assert pair == pytest.approx(1.5, rel=1e-3)
    assert math.isnan(scale) is not guided
    if guided:
        assert along == pytest.approx(5.0, rel=1e-3)
        # Alone, the guidance direction takes the part of the pair that points along it.
        assert abs(scale - along) > 0.01


def as_published(pipe, method, steps):
    """GA-Eval's own way: the noise that DDIM's formula finds between two latents of the run.

    Nothing of the measurement is used: the latents are those of a run without it, and the
    predictions come from the network called by hand.
    """
    seen = []

    def look(_pipe, i, t, kwargs):
        seen.append((int(t), kwargs["latents"].clone()))
        return {}

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1, 4, 8, 8, generator=generator)
    with attach(pipe, method):
        tiny.latents(pipe, "sd", steps=steps, latents=start, callback_on_step_end=look)
    positive, negative = pipe.encode_prompt(tiny.PROMPT, "cpu", 1, True, tiny.NEGATIVE)
    products = pipe.scheduler.alphas_cumprod.double()
    times = [t for t, _ in seen]
    scales, x = [], start
    for (t, after), following in zip(seen, [*times[1:], None], strict=True):
        a, b = products[t], products[0 if following is None else following]
        c, u = (
            pipe.unet(x, t, encoder_hidden_states=words).sample.double()
            for words in (positive, negative)
        )
        x0, noise = (b / a).sqrt(), (1 - b).sqrt() - (b / a).sqrt() * (1 - a).sqrt()
        found = (after.double() - x0 * x.double()) / noise
        along = c - u
        scales.append(float(((found - u) * along).sum() / (along * along).sum()))
        x = after
    return sum(scales) / len(scales), start


@pytest.mark.parametrize("method", [Plain(), ZigZag(), W2SD(weak=Guidance(1.0), times=2)], ids=str)
@torch.no_grad()
def test_it_is_what_the_paper_reads_off_the_latents(method):
    pipe = tiny.build("sd")
    expected, start = as_published(pipe, method, steps=4)
    numbers, _ = on_pipeline(pipe, "sd", method, steps=4, latents=start)
    assert numbers[0, 0] == pytest.approx(expected, rel=1e-4)


# ---- toys


def affine(seed=0):
    """A conditional and an unconditional network, linear in x, and their mixes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, WIDTH, WIDTH)
    c, u = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)

    def mix(scale):
        return lambda x, *_: x @ (u + scale * (c - u)).T

    return mix


def measured_on(method, models, levels, x=None):
    """(scale, guidance, pair) per item of a toy run, float64."""
    if x is None:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(3, WIDTH, generator=generator, dtype=torch.float64)
    measured = Measured(method, guided=True)
    drive(measured, models, x, levels)
    return torch.tensor(measured.take()[0], dtype=torch.float64)


def models_of(mix, strong, weak, base):
    return {
        "strong": mix(strong),
        "weak": mix(weak),
        "base": mix(base),
        "conditional": mix(1.0),
        "unconditional": mix(0.0),
    }


def same_answer():
    """Networks that do not look at x: one answer per guidance scale."""
    generator = torch.Generator().manual_seed(0)
    c, u = torch.randn(2, WIDTH, generator=generator, dtype=torch.float64)
    return models_of(lambda s: lambda x, *_: (u + s * (c - u)).expand_as(x), 1.0, 1.0, 3.0)


@pytest.mark.parametrize(("strong", "weak", "times"), [(5.5, 0.0, 1), (3.0, 1.0, 2)])
def test_a_reflected_guidance_pair_is_to_first_order_a_larger_scale(strong, weak, times):
    """2 strong - weak for one reflection with base = strong (arXiv 2412.10891); the gap is O(h)."""
    closed = strong + times * (strong - weak)

    def gap(n):
        window = Window(last=True)  # every step, so that the mean is that of the method alone
        numbers = measured_on(
            W2SD(times=times, window=window),
            models_of(affine(), strong, weak, strong),
            Levels.flow(n),
        )
        return float((numbers[:, 0] - closed).abs().max())

    coarse, fine = gap(400), gap(800)
    assert fine < 0.02 * closed
    assert 0.4 < fine / coarse < 0.6


def test_the_two_coordinates_and_the_projection_by_hand():
    """On networks that do not look at x, W2SD is base + times (strong - weak) exactly."""
    generator = torch.Generator().manual_seed(3)
    c, u, s, w = torch.randn(4, WIDTH, generator=generator, dtype=torch.float64)
    answers = {"strong": s, "weak": w, "base": u + 4 * (c - u), "conditional": c}
    models = {
        role: lambda x, *_, answer=answer: answer.expand_as(x)
        for role, answer in {**answers, "unconditional": u}.items()
    }
    method = W2SD(weak=Lora("any", -1.0), times=2, window=Window(last=True))
    scale, guidance, pair = measured_on(method, models, Levels.flow(5))[0]
    along = float((s - w) @ (c - u) / ((c - u) @ (c - u)))
    assert guidance == pytest.approx(4, rel=1e-9)
    assert pair == pytest.approx(2, rel=1e-9)
    assert scale == pytest.approx(4 + 2 * along, rel=1e-9)


def test_a_step_from_pure_noise_is_left_out():
    """At zero terminal SNR nothing is known of x0 if the network predicts the noise."""
    flow = Levels.flow(4)
    alpha = torch.tensor([0.0, 0.3, 0.6, 0.8, 1.0], dtype=torch.float64)
    sigma = (1 - alpha**2).sqrt()
    levels = Levels(alpha, sigma, torch.ones(5), "epsilon", flow.timesteps)
    measured = Measured(Plain(), guided=True)
    models = models_of(affine(), 1.0, 1.0, 3.0)
    x = torch.ones(1, WIDTH, dtype=torch.float64)
    with pytest.raises(UnsupportedError, match="no signal"):
        drive(measured, models, x, levels)  # the toy's own step is such a move; a pipeline's is not
    first, steps = measured.take()
    assert steps == 1
    assert all(map(math.isnan, first[0]))


# ---- with a studio


def studio(model="shapes-unet", **changes):
    settings = {"steps": 4, "guidance": 3.0, "device": "cpu", "dtype": "float32"}
    return Studio(find_model(model), Settings(**settings | changes))


SHOTS = [Shot("a red circle", seed=0), Shot("two blue squares", seed=1)]


def test_on_the_embedded_model():
    with studio(guidance=4.5) as drawing:
        plain = effective_scale(drawing, Plain(), SHOTS)
        weak = Checkpoint(shapes.weak_path("shapes-unet"))
        pair = W2SD(strong=Guidance(1.0), weak=Guidance(1.0) | weak)
        reflected = effective_scale(drawing, pair, SHOTS)
        again = effective_scale(drawing, pair, SHOTS)
    assert plain.scale == pytest.approx(4.5, rel=1e-4)
    assert (plain.steps, plain.items, plain.pair) == (4, 2, None)
    assert reflected == again
    assert reflected.se > 0
    assert 0 < reflected.pair < 3
    assert Strength(**reflected.to_json()) == reflected


def test_on_the_embedded_transformer():
    with studio("shapes-dit", steps=2, guidance=2.0) as drawing:
        assert effective_scale(drawing, Plain(), SHOTS[:1]).scale == pytest.approx(2.0, rel=1e-4)


def test_without_guidance_only_the_pair_is_left():
    weak = Checkpoint(shapes.weak_path("shapes-unet"))
    with studio(guidance=1.0) as drawing:
        nothing = effective_scale(drawing, Plain(), SHOTS)
        guided = effective_scale(drawing, AutoGuidance(weak=weak, scale=3.0), SHOTS[:1])
    assert nothing == Strength(None, None, None, None, None, 0, 0)
    assert guided.scale is None
    assert guided.pair == pytest.approx(2.0, rel=1e-3)
    assert guided.pair_se is None


def test_a_scheduler_that_cannot_be_measured_says_so():
    with studio(scheduler="heun") as drawing, pytest.raises(UnsupportedError, match="Heun"):
        effective_scale(drawing, Plain(), SHOTS)
