"""Levels against the schedulers' own steps, and against algebra that must hold for any sampler."""

from __future__ import annotations

import copy

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from w2sdiff.errors import InputError, UnsupportedError
from w2sdiff.levels import Levels, Prediction

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
UNCLIPPED = {**SD, "clip_sample": False}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


def build(name: str, steps: int = 10, **config):
    mu = config.pop("mu", None)
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(steps, **({} if mu is None else {"mu": mu}))
    return scheduler


def noise_pair(dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, 1, 3, 4, 4, generator=g, dtype=torch.float64).to(dtype)
    return x0, noise


def latents(levels: Levels, at: int, x0, noise, landed=False):
    """x0 and noise combined as the scheduler holds them, from the definition alone."""
    alpha, sigma = levels.alpha[at], levels.sigma[at]
    if landed and levels.landing is not None:
        alpha, sigma = (part[at - 1] for part in levels.landing)
    return (alpha * x0 + sigma * noise) / levels.scale[at]


def says(levels: Levels, at: int, x0, noise, landed=False):
    """What a network that knows (x0, noise) predicts."""
    alpha, sigma = levels.alpha[at], levels.sigma[at]
    if landed and levels.landing is not None:
        alpha, sigma = (part[at - 1] for part in levels.landing)
    return {
        "epsilon": noise,
        "sample": x0,
        "v": alpha * noise - sigma * x0,
        "edm": sigma * x0 - alpha * noise,
        "flow": noise - x0,
    }[levels.prediction]


FIRST_ORDER = [
    *(
        (
            "DDIMScheduler",
            {
                **UNCLIPPED,
                "timestep_spacing": spacing,
                "set_alpha_to_one": to_one,
                "steps_offset": int(spacing == "leading"),
                "prediction_type": kind,
            },
        )
        for spacing in ("leading", "trailing", "linspace")
        for to_one in (True, False)
        for kind in ("epsilon", "v_prediction", "sample")
    ),
    (
        "DDIMScheduler",
        {
            **UNCLIPPED,
            "timestep_spacing": "trailing",
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
        },
    ),
    (
        "DDIMScheduler",
        {
            **UNCLIPPED,
            "timestep_spacing": "trailing",
            "prediction_type": "sample",
            "rescale_betas_zero_snr": True,
        },
    ),
    (
        "CogVideoXDDIMScheduler",
        {
            "prediction_type": "v_prediction",
            "snr_shift_scale": 1.0,
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
    ),
    *(
        (
            "EulerDiscreteScheduler",
            {
                **SD,
                "prediction_type": kind,
                "use_karras_sigmas": karras,
                "timestep_spacing": spacing,
            },
        )
        for kind in ("epsilon", "v_prediction", "sample")
        for karras in (True, False)
        for spacing in ("leading", "linspace")
    ),
    (
        "EulerDiscreteScheduler",
        {**SD, "final_sigmas_type": "sigma_min", "use_exponential_sigmas": True},
    ),
    (
        "EulerDiscreteScheduler",
        {
            **SD,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
    ),
    ("FlowMatchEulerDiscreteScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "shift_terminal": 0.02}),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "mu": 1.15}),
    (
        "FlowMatchEulerDiscreteScheduler",
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "mu": 1.15},
    ),
    (
        "FlowMatchEulerDiscreteScheduler",
        {"use_dynamic_shifting": True, "mu": 0.8, "shift_terminal": 0.02},
    ),
    ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("FlowMatchEulerDiscreteScheduler", {"use_exponential_sigmas": True}),
    ("DPMSolverMultistepScheduler", {**SD, "solver_order": 1}),
    ("DPMSolverMultistepScheduler", {**SD, "solver_order": 1, "use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {**FLOW, "solver_order": 1, "flow_shift": 3.0}),
    ("DPMSolverSinglestepScheduler", {**SD, "solver_order": 1}),
    ("DEISMultistepScheduler", {**SD, "solver_order": 1}),
    ("TCDScheduler", {**UNCLIPPED}),
    *(
        (f"EDM{name}Scheduler", {"prediction_type": kind, **settings})
        for kind in ("epsilon", "v_prediction")
        for name, settings in (("Euler", {}), ("DPMSolverMultistep", {"solver_order": 1}))
    ),
]
MULTISTEP = [
    ("EDMDPMSolverMultistepScheduler", {}),  # as Playground 2.5 has it
    ("DPMSolverMultistepScheduler", {**SD}),
    (
        "DPMSolverMultistepScheduler",
        {**SD, "use_karras_sigmas": True, "prediction_type": "v_prediction"},
    ),
    ("DPMSolverMultistepScheduler", {**SD, "prediction_type": "sample", "use_lu_lambdas": True}),
    ("DPMSolverMultistepScheduler", {**FLOW}),
    ("UniPCMultistepScheduler", {**SD}),
    (
        "UniPCMultistepScheduler",
        {**SD, "prediction_type": "v_prediction", "use_karras_sigmas": True},
    ),
    ("UniPCMultistepScheduler", {**FLOW, "flow_shift": 3.0}),
    ("DEISMultistepScheduler", {**SD}),
    ("LMSDiscreteScheduler", {**SD}),
    ("LMSDiscreteScheduler", {**SD, "use_karras_sigmas": True, "prediction_type": "v_prediction"}),
    ("PNDMScheduler", {**SD, "skip_prk_steps": True, "steps_offset": 1}),
    (
        "PNDMScheduler",
        {
            **SD,
            "skip_prk_steps": True,
            "timestep_spacing": "linspace",
            "prediction_type": "v_prediction",
        },
    ),
]
STOCHASTIC = [
    ("DDPMScheduler", {**UNCLIPPED}),
    (
        "DDPMScheduler",
        {**UNCLIPPED, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    ),
    ("EulerAncestralDiscreteScheduler", {**SD}),
    ("EulerAncestralDiscreteScheduler", {**SD, "prediction_type": "v_prediction"}),
    ("LCMScheduler", {**UNCLIPPED}),
    ("DPMSolverMultistepScheduler", {**SD, "algorithm_type": "sde-dpmsolver++"}),
    ("SASolverScheduler", {**SD}),
    ("CogVideoXDPMScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    ("FlowMatchLCMScheduler", {}),
]
EVERY = FIRST_ORDER + MULTISTEP + STOCHASTIC


def name_of(case):
    name, config = case
    kept = [f"{k}={v}" for k, v in config.items() if k not in SD and k != "clip_sample"]
    return "-".join([name.removesuffix("Scheduler"), *kept])


def step_of(scheduler, i, x, prediction):
    t = scheduler.timesteps[i]
    scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else None
    options = {"eta": 0.0} if "TCD" in type(scheduler).__name__ else {}
    return scheduler.step(prediction, t, x, return_dict=False, **options)[0]


@pytest.mark.parametrize("case", FIRST_ORDER, ids=name_of)
@pytest.mark.parametrize("steps", [10, 7])
def test_move_to_the_next_level_is_the_schedulers_own_step(case, steps):
    scheduler = build(case[0], steps, **case[1])
    levels = Levels.from_scheduler(scheduler)
    if "Euler" in case[0] and case[1].get("rescale_betas_zero_snr"):
        x = noise_pair(torch.float32)[0]  # unit variance: the first sigma is 4096
    else:
        x = noise_pair(torch.float32)[0] / levels.scale[0].float()
    for i in range(steps):
        prediction = torch.randn(x.shape, generator=torch.Generator().manual_seed(i))
        moved = levels.move(x, prediction, at=i, to=i + 1)
        x = step_of(scheduler, i, x, prediction)
        torch.testing.assert_close(moved, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", MULTISTEP, ids=name_of)
def test_first_step_of_a_multistep_solver_is_first_order(case):
    scheduler = build(case[0], **case[1])
    levels = Levels.from_scheduler(scheduler)
    x = noise_pair(torch.float32)[0] / levels.scale[0].float()
    prediction = noise_pair(torch.float32, seed=1)[0]
    moved = levels.move(x, prediction, at=0, to=1)
    torch.testing.assert_close(moved, step_of(scheduler, 0, x, prediction), atol=1e-5, rtol=1e-5)


# PNDM extrapolates raw predictions, so even a true v is not constant along its history.
DETERMINISTIC = [c for c in FIRST_ORDER + MULTISTEP if c[0] != "PNDMScheduler" or len(c[1]) < 6]


@pytest.mark.parametrize("case", DETERMINISTIC, ids=name_of)
def test_every_step_lands_where_its_level_says(case):
    """A network that knows the truth stays on the path, also through a multistep history."""
    scheduler = build(case[0], **case[1])
    levels = Levels.from_scheduler(scheduler)
    x0, noise = noise_pair()
    for i in range(len(levels)):
        if levels.prediction == "epsilon" and levels.alpha[i] == 0:
            continue
        x, prediction = latents(levels, i, x0, noise), says(levels, i, x0, noise)
        landed = step_of(scheduler, i, x.float(), prediction.float()).double()
        expected = latents(levels, i + 1, x0, noise, landed=True)
        tolerance = (
            2e-6 * float(x.abs().max()) / max(float(levels.alpha[i] / levels.scale[i]), 1e-3)
        )
        torch.testing.assert_close(landed, expected, atol=max(1e-5, tolerance), rtol=1e-5)


@pytest.mark.parametrize("case", EVERY, ids=name_of)
def test_down_and_up_with_a_fixed_pair_is_the_identity(case):
    levels = Levels.from_scheduler(build(case[0], **case[1]))
    x0, noise = noise_pair()
    blind_start = levels.prediction == "epsilon" and levels.alpha[0] == 0
    for i in range(int(blind_start), len(levels)):
        x = latents(levels, i, x0, noise)
        down = levels.move(x, says(levels, i, x0, noise), at=i, to=i + 1)
        landed = levels.landing[1][i] if levels.landing is not None else levels.sigma[i + 1]
        if levels.prediction == "sample" and landed == 0:
            continue  # refused, tested below
        up = levels.move(down, says(levels, i + 1, x0, noise, landed=True), at=i + 1, to=i)
        torch.testing.assert_close(up, x, atol=1e-6 * float(x.abs().max()), rtol=0)


@given(
    prediction=st.sampled_from(["epsilon", "sample", "v", "edm", "flow"]),
    angles=st.lists(st.floats(0.02, 1.54), min_size=2, max_size=6, unique=True),
    karras=st.booleans(),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_move_and_convert_agree_on_random_levels(prediction: Prediction, angles, karras, data):
    angle = torch.tensor(sorted(angles, reverse=True), dtype=torch.float64)
    alpha, sigma = angle.cos(), angle.sin()
    if prediction == "flow":
        alpha, sigma = alpha / (alpha + sigma), sigma / (alpha + sigma)
    scale = alpha if karras else torch.ones_like(alpha)
    levels = Levels(alpha, sigma, scale, prediction, torch.arange(len(angle) - 1))
    at, to = (data.draw(st.integers(0, len(levels))) for _ in range(2))
    x0, noise = noise_pair()
    x = latents(levels, at, x0, noise)
    predicted = says(levels, at, x0, noise)
    believed = levels.convert(x, predicted, at=at)
    for got, expected in zip(believed, (x0, noise), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)
    moved = levels.move(x, predicted, at=at, to=to)
    torch.testing.assert_close(moved, latents(levels, to, x0, noise), atol=1e-9, rtol=1e-9)
    # in float32 the condition number of the move bounds what is lost, not a difference of tensors
    gain = float(alpha.max() / alpha.min() + sigma.max() / sigma.min()) / float(scale.min())
    narrow = levels.move(x.float(), predicted.float(), at=at, to=to)
    assert (narrow.double() - moved).abs().max() <= 2e-6 * gain


def test_equal_levels_return_the_very_same_tensor():
    pndm = Levels.from_scheduler(build("PNDMScheduler", **SD, skip_prk_steps=True))
    assert pndm.timesteps[1] == pndm.timesteps[2]
    x, prediction = noise_pair(torch.float16)
    assert pndm.move(x, prediction, at=1, to=2) is x
    assert pndm.move(x, prediction, at=4, to=4) is x


def test_ddim_linspace_lands_beside_the_next_level():
    """The stride is T // n, not the spacing: 999 -> 899, though the next step assumes 888."""
    scheduler = build("DDIMScheduler", **UNCLIPPED, timestep_spacing="linspace")
    levels = Levels.from_scheduler(scheduler)
    assert levels.timesteps[:2].tolist() == [999, 888]
    landed = levels.landing[0][0] ** 2
    torch.testing.assert_close(landed, scheduler.alphas_cumprod[899].double())
    torch.testing.assert_close(levels.alpha[1] ** 2, scheduler.alphas_cumprod[888].double())


@pytest.mark.parametrize("to_one", [True, False])
def test_the_clean_end(to_one):
    levels = Levels.from_scheduler(build("DDIMScheduler", **UNCLIPPED, set_alpha_to_one=to_one))
    first = float(torch.linspace(0.00085**0.5, 0.012**0.5, 1000)[0] ** 2)
    expected = 1.0 if to_one else (1 - first) ** 0.5
    assert float(levels.alpha[-1]) == pytest.approx(expected, abs=1e-7)
    x0, noise = noise_pair()
    x = latents(levels, len(levels), x0, noise)
    up = levels.move(x, noise, at=len(levels), to=len(levels) - 1)
    torch.testing.assert_close(up, latents(levels, len(levels) - 1, x0, noise), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_moves_keep_the_dtype_and_conversions_are_wide(name, dtype):
    levels = Levels.from_scheduler(build(name, **SD))
    x, prediction = noise_pair(dtype)
    assert levels.move(x, prediction, at=3, to=4).dtype == dtype
    assert levels.scale_model_input(x, at=3).dtype == dtype
    x0, noise = levels.convert(x, prediction, at=3)
    assert x0.dtype == noise.dtype == torch.promote_types(dtype, torch.float32)
    # one rounding at the very end, not one per operation
    exact = levels.move(x.double(), prediction.double(), at=3, to=4)
    half_ulp = torch.finfo(dtype).eps / 2 * exact.abs() + 1e-6
    assert ((levels.move(x, prediction, at=3, to=4).double() - exact).abs() <= half_ulp).all()


def test_the_network_sees_unit_variance():
    scheduler = build("EulerDiscreteScheduler", **SD)
    levels = Levels.from_scheduler(scheduler)
    x = noise_pair(torch.float32)[0] * 10
    expected = scheduler.scale_model_input(x, scheduler.timesteps[0])
    torch.testing.assert_close(levels.scale_model_input(x, at=0), expected)
    ddim = Levels.from_scheduler(build("DDIMScheduler", **SD))
    assert ddim.scale_model_input(x, at=0) is x


def test_euler_and_ddim_agree_up_to_the_scaling_of_their_latents():
    levels = Levels.from_scheduler(build("EulerDiscreteScheduler", **SD))
    unit = Levels(
        levels.alpha, levels.sigma, torch.ones_like(levels.scale), "epsilon", levels.timesteps
    )
    x, prediction = noise_pair()
    by_euler = levels.move(x / levels.scale[2], prediction, at=2, to=3) * levels.scale[3]
    torch.testing.assert_close(by_euler, unit.move(x, prediction, at=2, to=3))


def test_zero_terminal_snr_serves_v_and_refuses_epsilon():
    config = {**UNCLIPPED, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    x0, noise = noise_pair()
    for kind in ("v_prediction", "sample"):
        levels = Levels.from_scheduler(build("DDIMScheduler", **config, prediction_type=kind))
        assert levels.alpha[0] == 0
        predicted = says(levels, 0, x0, noise)
        torch.testing.assert_close(levels.convert(noise, predicted, at=0)[0], x0)
    levels = Levels.from_scheduler(build("DDIMScheduler", **config))
    with pytest.raises(UnsupportedError, match="zero terminal SNR"):
        levels.move(noise, noise, at=0, to=1)
    levels.move(noise, noise, at=1, to=2)  # later levels are fine


def test_x0_predictions_cannot_leave_the_clean_end():
    levels = Levels.from_scheduler(build("DDIMScheduler", **UNCLIPPED, prediction_type="sample"))
    x0, _ = noise_pair()
    with pytest.raises(UnsupportedError, match="last step"):
        levels.move(x0, x0, at=len(levels), to=len(levels) - 1)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_reference_inversion_is_the_inverse_scheduler_called_as_published(kind, spacing, zero_snr):
    config = {
        **UNCLIPPED,
        "steps_offset": int(spacing == "leading"),
        "prediction_type": kind,
        "timestep_spacing": spacing,
        "set_alpha_to_one": False,
        "rescale_betas_zero_snr": zero_snr,
    }
    forward = build("DDIMScheduler", **config)
    inverse = diffusers.DDIMInverseScheduler.from_config(forward.config)
    inverse.set_timesteps(10)
    levels = Levels.from_scheduler(forward)
    x, prediction = noise_pair(torch.float32)
    for i in range(9):
        published = inverse.step(prediction, forward.timesteps[i + 1], x).prev_sample
        ours = levels.reference_inversion(x, prediction, at=i + 1)
        torch.testing.assert_close(ours, published, atol=1e-5, rtol=1e-5)
        exact = levels.move(x, prediction, at=i + 1, to=i)
        assert (ours - exact).abs().max() > 1e-3
    with pytest.raises(InputError, match="last step"):
        levels.reference_inversion(x, prediction, at=10)


def test_reference_inversion_of_flow_models_is_exact():
    levels = Levels.from_scheduler(build("FlowMatchEulerDiscreteScheduler", shift=3.0))
    x, velocity = noise_pair()
    sigma = levels.sigma
    expected = x - (sigma[4] - sigma[3]) * velocity
    torch.testing.assert_close(levels.reference_inversion(x, velocity, at=4), expected)


@pytest.mark.parametrize(
    "case",
    [
        ("EulerDiscreteScheduler", SD),
        ("DPMSolverMultistepScheduler", SD),
        ("DDPMScheduler", UNCLIPPED),
        ("LCMScheduler", UNCLIPPED),
        ("DDIMScheduler", SD),  # clip_sample: the published inverse would clip
    ],
    ids=name_of,
)
def test_reference_inversion_is_refused_where_nothing_was_published(case):
    levels = Levels.from_scheduler(build(case[0], **case[1]))
    with pytest.raises(UnsupportedError, match="exact"):
        levels.reference_inversion(*noise_pair(), at=1)


@pytest.mark.parametrize(
    ("name", "config", "why"),
    [
        ("HeunDiscreteScheduler", SD, "more than once"),
        ("KDPM2DiscreteScheduler", SD, "more than once"),
        ("KDPM2AncestralDiscreteScheduler", SD, "more than once"),
        ("FlowMatchHeunDiscreteScheduler", {}, "more than once"),
        ("DPMSolverSinglestepScheduler", SD, "more than once"),
        ("PNDMScheduler", SD, "skip_prk_steps"),
        ("IPNDMScheduler", {}, "no kind known"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "backwards"),
        ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"}, "use_flow_sigmas"),
        ("DDIMInverseScheduler", SD, "lands|noise to clean"),
        ("RePaintScheduler", {}, "noise to clean|prediction_type"),
        ("UnCLIPScheduler", {}, "lands"),
    ],
)
def test_refusals_say_which_why_and_what_instead(name, config, why):
    with pytest.raises(UnsupportedError, match=why) as refusal:
        Levels.from_scheduler(build(name, **config))
    assert name in str(refusal.value)
    assert "from_config(pipe.scheduler.config)" in str(refusal.value)


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "PNDMScheduler", "FlowMatchEulerDiscreteScheduler"]
)
def test_timesteps_must_have_been_set(name):
    with pytest.raises(InputError, match="set_timesteps"):
        Levels.from_scheduler(getattr(diffusers, name)())


def test_wrong_arguments_are_named():
    levels = Levels.flow(4)
    x = torch.zeros(2, 3)
    with pytest.raises(InputError, match="0 to 4, got 5"):
        levels.move(x, x, at=5, to=0)
    with pytest.raises(InputError, match="0 to 4, got -1"):
        levels.convert(x, x, at=-1)
    with pytest.raises(InputError, match="shape"):
        levels.move(x, x[:1], at=0, to=1)


def test_learned_variance_is_dropped():
    levels = Levels.from_scheduler(
        build("DDPMScheduler", **UNCLIPPED, variance_type="learned_range")
    )
    x, prediction = noise_pair()
    both = torch.cat([prediction, torch.full_like(prediction, 7.0)], dim=1)
    assert torch.equal(levels.move(x, both, at=2, to=3), levels.move(x, prediction, at=2, to=3))


@pytest.mark.parametrize("case", EVERY, ids=name_of)
def test_reading_leaves_the_scheduler_alone_and_does_not_ask_its_class(case):
    scheduler = build(case[0], **case[1])
    before = copy.deepcopy({k: v for k, v in vars(scheduler).items() if k != "_internal_dict"})
    expected = Levels.from_scheduler(scheduler)
    for key, value in before.items():
        now = getattr(scheduler, key)
        same = (
            torch.equal(now, value) if isinstance(value, torch.Tensor) else str(now) == str(value)
        )
        assert same, key
    scheduler.__class__ = type("Tapped", (type(scheduler),), {})
    for other in (scheduler, copy.deepcopy(scheduler)):
        got = Levels.from_scheduler(other)
        assert torch.equal(got.alpha, expected.alpha)
        assert torch.equal(got.sigma, expected.sigma)
        assert got.prediction == expected.prediction
        assert len(got) == len(scheduler.timesteps)


def moved_and_said(levels: Levels, i: int, seed: int):
    """Latents of a step, others that a method moved to, and what a network says there."""
    x = latents(levels, i, *noise_pair(seed=seed))
    moved = latents(levels, i, *noise_pair(seed=seed + 1))
    prediction, _ = noise_pair(seed=seed + 2)
    return x, moved, prediction


def source_of(levels: Levels, i: int):
    return float(levels.alpha[i]), float(levels.sigma[i])


def target_of(levels: Levels, i: int):
    if levels.landing is None:
        return source_of(levels, i + 1)
    return tuple(float(part[i]) for part in levels.landing)


@pytest.mark.parametrize("case", FIRST_ORDER, ids=name_of)
def test_the_effective_prediction_lands_where_the_moved_latents_land(case):
    """By the scheduler's own step, which knows nothing of it."""
    name, config = case
    scheduler = build(name, **config)
    levels = Levels.from_scheduler(scheduler)
    for i in range(len(levels)):
        x, moved, prediction = moved_and_said(levels, i, seed=i)
        if source_of(levels, i) == target_of(levels, i):
            with pytest.raises(UnsupportedError, match="ends at the level it starts from"):
                levels.effective(x, prediction, moved, at=i)
            continue
        effective = levels.effective(x, prediction, moved, at=i)
        ends = []
        for sample, said in ((moved, prediction), (x, effective)):
            own = copy.deepcopy(scheduler)
            if hasattr(own, "_step_index"):
                own._step_index = i
            ends.append(step_of(own, i, sample, said).double())
        # The scheduler's tables are in float32: its step and ours differ by their rounding, times
        # how far the effective prediction is from a network's.
        size = float(effective.abs().max()) + float(ends[0].abs().max())
        assert float((ends[0] - ends[1]).abs().max()) <= 1e-5 * size
        down = levels.move(x, effective, at=i, to=i + 1)
        torch.testing.assert_close(
            down, levels.move(moved, prediction, at=i, to=i + 1), rtol=0, atol=1e-10 * size
        )


@given(
    angles=st.lists(st.floats(0.02, 1.55), min_size=2, max_size=2, unique=True),
    karras=st.booleans(),
    seed=st.integers(0, 1000),
)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v", "edm", "flow"])
def test_effective_on_random_levels(prediction: Prediction, angles, karras, seed):
    angle = torch.tensor([*sorted(angles, reverse=True), 0.01], dtype=torch.float64)
    alpha, sigma = angle.cos(), angle.sin()
    if prediction == "flow":
        alpha, sigma = 1 - angle / 1.6, angle / 1.6
    scale = alpha if karras else torch.ones_like(alpha)
    levels = Levels(alpha, sigma, scale, prediction, torch.arange(2))
    x, moved, said = moved_and_said(levels, 0, seed)
    effective = levels.effective(x, said, moved, at=0)
    ends = [levels.move(x, effective, at=0, to=1), levels.move(moved, said, at=0, to=1)]
    size = float(effective.abs().max()) + float(x.abs().max()) + float(moved.abs().max())
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12 * size)


def test_effective_of_latents_that_were_not_moved_is_the_prediction_itself():
    levels = Levels.flow(4)
    x, prediction = torch.ones(1, 2, dtype=torch.bfloat16), torch.zeros(1, 2, dtype=torch.bfloat16)
    assert levels.effective(x, prediction, x, at=1) is prediction
    assert levels.effective(x, prediction, x.clone(), at=1).dtype == torch.float32
