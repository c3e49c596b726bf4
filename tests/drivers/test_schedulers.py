"""Every kind of scheduler under the driver: untouched when off, one real step per step when on."""

from __future__ import annotations

import contextlib
import functools

import diffusers
import pytest
import tiny
import torch

from w2sdiff import W2SD, Guidance, Plain, UnsupportedError, Window, attach

STEPS = 6
REFLECT = W2SD(weak=Guidance(1.0))
SD_SCHEDULERS = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "DDIM trailing": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    "DDIM linspace": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "linspace"}),
    "DDPM": ("DDPMScheduler", {"clip_sample": False}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler v": ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
    "Euler Karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "LMS Karras": ("LMSDiscreteScheduler", {"use_karras_sigmas": True}),
    "DEIS": ("DEISMultistepScheduler", {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "LCM": ("LCMScheduler", {}),
    "TCD": ("TCDScheduler", {}),
    "SA": ("SASolverScheduler", {}),
    "EDM Euler": ("EDMEulerScheduler", {"prediction_type": "v_prediction"}),
    "EDM DPM++ 2M": ("EDMDPMSolverMultistepScheduler", {}),
}
SHIFT = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
FLOW_SCHEDULERS = {
    "flow Euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow Euler exponential shift": ("FlowMatchEulerDiscreteScheduler", SHIFT),
    "flow Euler linear shift": (
        "FlowMatchEulerDiscreteScheduler",
        {**SHIFT, "time_shift_type": "linear"},
    ),
    "flow Euler Karras": ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "flow Euler exponential": ("FlowMatchEulerDiscreteScheduler", {"use_exponential_sigmas": True}),
    "flow Euler beta": ("FlowMatchEulerDiscreteScheduler", {"use_beta_sigmas": True}),
    "flow Euler stochastic": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    "flow LCM": ("FlowMatchLCMScheduler", {"shift": 3.0}),
    "flow UniPC": (
        "UniPCMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    ),
    "flow DPM++ 2M": (
        "DPMSolverMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    ),
}
SCHEDULERS = SD_SCHEDULERS | FLOW_SCHEDULERS
# Of a kind that is there without them.
VARIANTS = ("trailing", "Karras", "SDE", " v", "linear shift", "exponential", "beta")


def pipe_with(name, settings, family="sd"):
    pipe = tiny.build(family)
    noise = tiny.SD_NOISE if family == "sd" else {}
    pipe.scheduler = getattr(diffusers, name).from_config({**noise, **settings})
    return pipe


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.slow) if name.endswith(VARIANTS) else name
        for name in SCHEDULERS
    ]
)
def pipe(request):
    family = "sd3" if request.param in FLOW_SCHEDULERS else "sd"
    return pipe_with(*SCHEDULERS[request.param], family)


def latents(pipe, method=None, **changes):
    family = "sd" if hasattr(pipe, "unet") else "sd3"
    call = functools.partial(tiny.latents, pipe, family, steps=STEPS, **changes)
    # SD3 hands its scheduler no generator: the noise of a step is drawn from torch's own.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if method is None:
            return call(), None
        with attach(pipe, method) as run:
            return call(), run.stats


def test_off_is_exact_and_on_reflects(pipe):
    cls = type(pipe.scheduler)
    stock, _ = latents(pipe)
    n = len(pipe.scheduler.timesteps)  # PNDM repeats one
    for method in (Plain(), W2SD(weak=Guidance(1.0), window=Window(0.0, 0.0))):
        driven, stats = latents(pipe, method)
        assert torch.equal(driven, stock)
        assert stats.calls == n
    reflected, stats = latents(pipe, REFLECT)
    assert stats.calls == 3 * (n - 1) + 1
    assert stats.evaluations == REFLECT.cost(n, 5.0)
    assert torch.isfinite(reflected).all()
    assert float((reflected - stock).norm() / stock.norm()) > 0.02
    again, _ = latents(pipe, REFLECT)
    assert torch.equal(again, reflected), "noise drawn by a reflection would show here"
    assert type(pipe.scheduler) is cls
    assert torch.equal(latents(pipe)[0], stock)


def test_the_real_step_is_taken_once_per_step(pipe):
    """Counted below the driver, on the scheduler's own class."""
    cls, taken = type(pipe.scheduler), []
    original = cls.step

    @functools.wraps(original)
    def counting(self, *args, **kwargs):
        taken.append(1)
        return original(self, *args, **kwargs)

    pipe.scheduler.__class__ = type(cls.__name__, (cls,), {"step": counting})
    latents(pipe, W2SD(weak=Guidance(1.0), times=2))
    assert len(taken) == len(pipe.scheduler.timesteps)


def test_euler_and_ddim_reflect_alike():
    """One ODE in two parametrisations: wrongly scaled inputs in the weak pass would show by far."""
    ddim = pipe_with("DDIMScheduler", {"clip_sample": False})
    euler = pipe_with("EulerDiscreteScheduler", {"timestep_spacing": "leading"})
    a, _ = latents(ddim, REFLECT)
    b, _ = latents(euler, REFLECT)
    plain, _ = latents(ddim)
    size = float(plain.abs().max())
    assert float((a - b).abs().max()) < 1e-5 * size
    assert float((a - plain).abs().max()) > 1e-2 * size


def test_unipc_corrector_does_not_undo_the_reflection():
    """It rebuilds the sample from its memory; on a reflected step it must stand aside."""
    corrected = pipe_with("UniPCMultistepScheduler", {})
    without = pipe_with("UniPCMultistepScheduler", {"disable_corrector": list(range(STEPS))})
    method = W2SD(weak=Guidance(1.0), window=Window(last=True))  # every step reflects
    assert not torch.equal(latents(corrected)[0], latents(without)[0])
    assert torch.equal(latents(corrected, method)[0], latents(without, method)[0])


@pytest.mark.parametrize(
    "name",
    [
        "HeunDiscreteScheduler",
        pytest.param("KDPM2DiscreteScheduler", marks=pytest.mark.slow),
        "DPMSolverSinglestepScheduler",
        "FlowMatchHeunDiscreteScheduler",
    ],
)
def test_two_stage_schedulers_run_plain_and_refuse_to_reflect(name):
    pipe = pipe_with(name, {}, "sd3" if name.startswith("Flow") else "sd")
    stock, _ = latents(pipe)
    driven, stats = latents(pipe, Plain())
    assert torch.equal(driven, stock)
    assert stats.calls == len(pipe.scheduler.timesteps)
    with pytest.raises(UnsupportedError, match=name) as error:
        latents(pipe, REFLECT)
    assert "\n" not in str(error.value)
    assert torch.equal(latents(pipe)[0], stock)


def test_a_scheduler_exchanged_inside_the_context():
    pipe = tiny.build("sd")
    with attach(pipe, REFLECT):
        first = tiny.latents(pipe, "sd")
        pipe.scheduler = diffusers.EulerDiscreteScheduler(**tiny.SD_NOISE)
        second = tiny.latents(pipe, "sd")
    assert type(pipe.scheduler) is diffusers.EulerDiscreteScheduler
    with attach(pipe, REFLECT):
        assert torch.equal(tiny.latents(pipe, "sd"), second)
    assert not torch.equal(first, second)


def test_a_users_scheduler_class_is_recognised_by_what_it_holds():
    class MyEuler(diffusers.EulerDiscreteScheduler):
        pass

    pipe = pipe_with("EulerDiscreteScheduler", {})
    expected, _ = latents(pipe, REFLECT)
    pipe.scheduler = MyEuler(**tiny.SD_NOISE)
    assert torch.equal(latents(pipe, REFLECT)[0], expected)
    assert type(pipe.scheduler) is MyEuler


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_zero_terminal_snr(prediction):
    """Level 0 has no signal: fine for v, and a reason rather than NaN for epsilon."""
    settings = {
        "clip_sample": False,
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "prediction_type": prediction,
    }
    pipe = pipe_with("DDIMScheduler", settings)
    if prediction == "v_prediction":
        assert torch.isfinite(latents(pipe, REFLECT)[0]).all()
        return
    with pytest.raises(UnsupportedError):
        latents(pipe, REFLECT)
    late = W2SD(weak=Guidance(1.0), window=Window(steps=(2, 3)))
    latents(pipe, late)  # the other steps have signal


def test_euler_and_ddim_reflect_alike_on_sdxl():
    """The published setting is DDIM, diffusers' own for SDXL is Euler.

    With "leading" spacing only: elsewhere Euler's start has noise without the bit of signal that
    unit variance leaves. What is left is float32's rounding, on latents of up to 34.
    """
    pipe = tiny.build("sdxl")
    found = []
    for name in ("DDIMScheduler", "EulerDiscreteScheduler"):
        settings = {"clip_sample": False, "set_alpha_to_one": True} if name[0] == "D" else {}
        cls = getattr(diffusers, name)
        pipe.scheduler = cls(**tiny.SD_NOISE, timestep_spacing="leading", **settings)
        with attach(pipe, REFLECT):
            found.append(tiny.latents(pipe, "sdxl", steps=4))
    torch.testing.assert_close(*found, rtol=0, atol=5e-5)


# ---- every scheduler class that diffusers has

# What reflects with "sd", and what only with "sd3", where a pipeline of images can run it at all.
REFLECTS = {
    *("CogVideoXDDIM", "DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep"),
    *("DPMSolverMultistep", "EDMDPMSolverMultistep", "EDMEuler", "EulerAncestralDiscrete"),
    *("EulerDiscrete", "LCM", "LMSDiscrete", "SASolver", "TCD", "UniPCMultistep"),
    *("FlowMatchEulerDiscrete", "FlowMatchLCM"),
}
REFUSED = {
    *("CMStochasticIterative", "DDIMInverse", "DPMSolverMultistepInverse", "DPMSolverSinglestep"),
    *("HeunDiscrete", "IPNDM", "KDPM2AncestralDiscrete", "KDPM2Discrete", "PNDM"),
    *("FlowMapEulerDiscrete", "FlowMatchHeunDiscrete", "LTXEulerAncestralRF", "MiniMaxH3"),
}
# With a `step` that takes more than a prediction, a time and latents, or for discrete tokens, or in
# need of a library; the pipelines that step with them are in the scan of pipelines.
ELSEWHERE = {
    *("Amused", "BlockRefinement", "CogVideoXDPM", "CosineDPMSolverMultistep", "DDPMWuerstchen"),
    *("DPMSolverSDE", "DiscreteDDIM", "EntropyBound", "Helios", "HeliosDMD", "KarrasVe", "Piflow"),
    *("RFD4Proteina", "RePaint", "SCM", "ScoreSdeVe", "UnCLIP", "VQDiffusion"),
}
FLOW = ("Flow", "LTX", "MiniMax")


def installed():
    found = {
        name.removesuffix("Scheduler") for name in dir(diffusers) if name.endswith("Scheduler")
    }
    return {name for name in found if not name.startswith("Flax")}  # diffusers 0.38 has them yet


def test_every_scheduler_of_diffusers_is_in_the_table():
    """A new release shows its new ones here: add each to the set that is true of it."""
    assert installed() <= REFLECTS | REFUSED | ELSEWHERE


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(REFLECTS | REFUSED | ELSEWHERE))
def test_every_scheduler_of_diffusers_reflects_or_is_refused(name):
    if name not in installed():
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}Scheduler")
    family = "sd3" if name.startswith(FLOW) else "sd"
    pipe = tiny.build(family)
    stock = None
    with contextlib.suppress(Exception):  # whatever stock diffusers says
        cls = getattr(diffusers, f"{name}Scheduler")
        pipe.scheduler = cls.from_config(pipe.scheduler.config)
        stock, _ = latents(pipe)
    assert (stock is None) == (name in ELSEWHERE)
    if stock is None:
        return
    driven, _ = latents(pipe, Plain())
    assert torch.equal(driven, stock)
    if name in REFLECTS:
        assert torch.isfinite(latents(pipe, REFLECT)[0]).all()
        return
    with pytest.raises(UnsupportedError, match=name) as error:
        latents(pipe, REFLECT)
    assert "\n" not in str(error.value)
    assert torch.equal(latents(pipe)[0], stock)
