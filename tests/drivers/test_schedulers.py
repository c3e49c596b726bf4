"""Every kind of scheduler under the driver: untouched when off, one real step per step when on."""

from __future__ import annotations

import functools

import diffusers
import pytest
import tiny
import torch

from w2sdiff import W2SD, Guidance, Plain, UnsupportedError, Window, attach

STEPS = 6
REFLECT = W2SD(weak=Guidance(1.0))
SCHEDULERS = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "DDIM trailing": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    "DDPM": ("DDPMScheduler", {"clip_sample": False}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler Karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "DEIS": ("DEISMultistepScheduler", {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "LCM": ("LCMScheduler", {}),
}


def pipe_with(name, settings):
    pipe = tiny.build("sd")
    pipe.scheduler = getattr(diffusers, name)(**tiny.SD_NOISE, **settings)
    return pipe


VARIANTS = ("trailing", "Karras", "SDE")  # of a kind that is there without them


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.slow) if name.endswith(VARIANTS) else name
        for name in SCHEDULERS
    ]
)
def pipe(request):
    return pipe_with(*SCHEDULERS[request.param])


def latents(pipe, method=None, **changes):
    if method is None:
        return tiny.latents(pipe, "sd", steps=STEPS, **changes), None
    with attach(pipe, method) as run:
        return tiny.latents(pipe, "sd", steps=STEPS, **changes), run.stats


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


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler"])
def test_two_stage_schedulers_run_plain_and_refuse_to_reflect(name):
    pipe = pipe_with(name, {})
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
