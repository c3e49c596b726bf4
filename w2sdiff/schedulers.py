"""How each kind of diffusers scheduler says which noise levels it passes through.

A scheduler is recognised by what it holds, never by its class name: drivers and users subclass
schedulers at run time. What each `step` really does was read from its source; the tests compare
with the step itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from w2sdiff.errors import InputError, UnsupportedError
from w2sdiff.levels import Levels, Prediction

if TYPE_CHECKING:
    from torch import Tensor

PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "sample": "sample",
    "original_sample": "sample",
    "v_prediction": "v",
    "flow_prediction": "flow",
}


def read(scheduler: Any) -> Levels:
    """Levels of a diffusers scheduler; see `Levels.from_scheduler`."""
    _require_timesteps(scheduler)
    _refuse_two_stage(scheduler)
    if hasattr(scheduler, "precondition_inputs"):
        levels = _preconditioned(scheduler)
    elif hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        levels = _multistep(scheduler)
    elif hasattr(scheduler, "alphas_cumprod") and hasattr(scheduler, "sigmas"):
        levels = _karras(scheduler)
    elif hasattr(scheduler, "alphas_cumprod"):
        levels = _variance_preserving(scheduler)
    elif "invert_sigmas" in scheduler.config:
        levels = _flow(scheduler)
    else:
        raise _refusal(scheduler, "it is of no kind known here (VP, sigma or flow)")
    return _require_descending(scheduler, levels)


def _variance_preserving(scheduler: Any) -> Levels:
    """DDIM, DDPM, PNDM, LCM, TCD: cumulative products looked up by timestep."""
    products = scheduler.alphas_cumprod.double().cpu()
    timesteps = scheduler.timesteps.cpu()
    here = products[timesteps.long()]
    # DDPM and the consistency samplers land exactly where the next step starts ...
    landed = here.roll(-1)
    if hasattr(scheduler, "get_scalings_for_boundary_condition_discrete"):  # LCM: x0 itself
        landed[-1] = 1.0
    elif hasattr(scheduler, "previous_timestep"):  # DDPM: clean; TCD: timestep 0
        landed[-1] = float(getattr(scheduler, "one", products[0]))
    elif hasattr(scheduler, "final_alpha_cumprod"):
        # ... DDIM and PNDM a fixed stride further on, which meets timesteps[i + 1] only with
        # "leading" spacing, or where the number of steps divides the training length.
        stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        target = timesteps.long() - stride
        if hasattr(scheduler, "plms_timesteps") and len(target) > 1:
            target[1] = timesteps[1]  # PNDM's second call redoes its first step: same landing
        landed = torch.where(
            target >= 0, products[target.clamp(min=0)], scheduler.final_alpha_cumprod.double().cpu()
        )
    else:
        raise _refusal(scheduler, "it does not say where its last step lands")
    here = torch.cat([here, landed[-1:]])
    return Levels(
        alpha=here.sqrt(),
        sigma=(1 - here).sqrt(),
        scale=torch.ones_like(here),
        prediction=_prediction(scheduler),
        timesteps=timesteps,
        landing=(landed.sqrt(), (1 - landed).sqrt()),
        published="ddim" if _published_inverse_fits(scheduler) else None,
    )


def _karras(scheduler: Any) -> Levels:
    """Euler, Euler ancestral, LMS: latents are x0 + sigma_k * noise, scaled for the network."""
    if not hasattr(scheduler, "is_scale_input_called"):
        raise _refusal(scheduler, "it holds sigmas but does not scale the network's input by them")
    sigma_k = _sigmas(scheduler)
    alpha = (1 + sigma_k**2).rsqrt()
    return Levels(
        alpha, sigma_k * alpha, alpha, _prediction(scheduler), scheduler.timesteps.detach().cpu()
    )


def _preconditioned(scheduler: Any) -> Levels:
    """EDM Euler and DPM-Solver++: x0 = c_skip x + c_out F, for data of a spread that is not 1.

    In units of that spread c_skip and c_out are those of a v-prediction, of either sign.
    """
    kinds: dict[str, Prediction] = {"epsilon": "edm", "v_prediction": "v"}
    kind = scheduler.config.prediction_type
    if kind not in kinds:
        raise _refusal(scheduler, f"it has no rule for prediction_type={kind!r}")
    spread = float(scheduler.config.sigma_data)
    sigma_k = _sigmas(scheduler) / spread
    alpha = (1 + sigma_k**2).rsqrt()
    timesteps = scheduler.timesteps.detach().cpu()
    return Levels(alpha, sigma_k * alpha, alpha / spread, kinds[kind], timesteps)


def _multistep(scheduler: Any) -> Levels:
    """DPM-Solver++, UniPC, DEIS, SA-Solver: they hold sigma_k, but their latents are VP or flow."""
    prediction, flow = _prediction(scheduler), bool(scheduler.config.get("use_flow_sigmas"))
    if (prediction == "flow") != flow and prediction in ("flow", "v"):
        raise _refusal(
            scheduler,
            f"prediction_type={scheduler.config.prediction_type!r} does not go with "
            f"use_flow_sigmas={flow}: its own step is then no first-order step",
        )
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(_sigmas(scheduler))
    return Levels(
        alpha, sigma, torch.ones_like(alpha), prediction, scheduler.timesteps.detach().cpu()
    )


def _flow(scheduler: Any) -> Levels:
    """Flow matching: static, dynamic and exponential shift all end up in `sigmas`."""
    if scheduler.config.invert_sigmas:
        raise _refusal(scheduler, "invert_sigmas=True runs its levels backwards")
    if scheduler.config.get("scale_factors"):
        raise _refusal(scheduler, "scale_factors changes the size of the latents between steps")
    sigma = _sigmas(scheduler)
    timesteps = scheduler.timesteps.detach().cpu()
    return Levels(1 - sigma, sigma, torch.ones_like(sigma), "flow", timesteps, published="flow")


def _published_inverse_fits(scheduler: Any) -> bool:
    """Whether `DDIMInverseScheduler`, as the published code uses it, mirrors this scheduler."""
    config = scheduler.config
    return "clip_sample" in config and not (
        config.clip_sample
        or config.get("thresholding")
        or "variance_type" in config  # DDPM
        or "original_inference_steps" in config  # LCM, TCD
        or "snr_shift_scale" in config  # CogVideoX changes the products after construction
    )


def _prediction(scheduler: Any) -> Prediction:
    name = scheduler.config.get("prediction_type")
    if name not in PREDICTIONS:
        raise _refusal(scheduler, f"prediction_type={name!r} is none of {', '.join(PREDICTIONS)}")
    return PREDICTIONS[name]


def _sigmas(scheduler: Any) -> Tensor:
    sigmas: Tensor = torch.as_tensor(scheduler.sigmas).detach().double().cpu()
    if len(sigmas) != len(scheduler.timesteps) + 1:
        raise _refusal(
            scheduler, f"{len(scheduler.timesteps)} steps come with {len(sigmas)} sigmas"
        )
    return sigmas


def _require_timesteps(scheduler: Any) -> None:
    if getattr(scheduler, "timesteps", None) is None or (
        getattr(scheduler, "num_inference_steps", None) is None
        and not getattr(scheduler, "custom_timesteps", False)
    ):
        raise InputError(
            f"{type(scheduler).__name__} has no inference steps yet; "
            "call scheduler.set_timesteps(num_inference_steps) first"
        )


def _refuse_two_stage(scheduler: Any) -> None:
    """A sampler that evaluates twice per step stores its own sample, which no reflection reaches.

    Heun, KDPM2 and DPM-SDE say so by `order`; DPM-Solver singlestep and PNDM's Runge-Kutta
    warm-up only by their lists.
    """
    several = max(getattr(scheduler, "order_list", [1]), default=1) > 1
    warm_up = len(getattr(scheduler, "prk_timesteps", ())) > 0
    if getattr(scheduler, "order", 1) > 1 or several:
        raise _refusal(scheduler, "it evaluates the network more than once per step")
    if warm_up:
        raise _refusal(
            scheduler, "its Runge-Kutta warm-up evaluates more than once; set skip_prk_steps=True"
        )


def _require_descending(scheduler: Any, levels: Levels) -> Levels:
    """Refuse whatever does not run from noise to clean: inverse schedulers, time travel."""
    angle = torch.atan2(levels.sigma, levels.alpha)
    if not torch.isfinite(angle).all() or (angle.diff() > 1e-7).any():
        raise _refusal(scheduler, "its levels do not run from noise to clean")
    return levels


def _refusal(scheduler: Any, why: str) -> UnsupportedError:
    flow = not hasattr(scheduler, "alphas_cumprod") or scheduler.config.get("use_flow_sigmas")
    other = "FlowMatchEulerDiscreteScheduler" if flow else "DPMSolverMultistepScheduler"
    return UnsupportedError(
        f"cannot reflect with {type(scheduler).__name__}: {why}. Use a one-stage scheduler, e.g. "
        f"pipe.scheduler = diffusers.{other}.from_config(pipe.scheduler.config)"
    )
