"""What `Guidance` must know: how a pipeline batches its two branches, where its scale lives.

Everything else works on a pipeline without a family. To state the two facts for one that is not
listed: `attach(pipe, method, family=Family("uc", from_pipe))`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Layout = Literal["uc", "cu", "two", "ucp"]
Frame = Mapping[str, Any]  # local variables of the pipeline's __call__, inside its loop
Scale = Callable[[Any, Frame], float | None]


def no_rescale(pipe: Any, frame: Frame) -> float:
    """Strength of rescaling of a pipeline that has none."""
    del pipe, frame
    return 0.0


@dataclass(frozen=True)
class Family:
    """How pipelines of one kind do classifier-free guidance.

    Args:
        layout: "uc" one call with the batch [unconditional, conditional]; "cu" the other way round;
            "two" two calls, conditional first; "ucp" as "uc" with a third, perturbed part while
            perturbed-attention guidance is on.
        scale: (pipe, local variables of its `__call__`, the timestep among them being the one that
            the network is told) -> the scale it mixes with at this step, as in u + scale (c - u);
            None while it runs without an unconditional half.
        rescale: the same, for the strength of what else it makes of the conditional prediction,
            which has to stay what it is: a rescaling, another guidance that measures from it; 0
            where there is nothing.
        doubled: the latents that go through `scheduler.step` hold both branches while guidance is
            on, as DiT's do.
        axes: arguments of the network that are not batched on their first axis with one entry per
            item and branch: the axis along which their two halves lie, None if they have none.
        name: what `w2sdiff list families` calls it.
        embedded: its network can take the scale as an input (`guidance`) and then needs no second
            branch.
        lora: diffusers loads LoRAs for it.
        since: first diffusers release that has it; 0.38 is the oldest supported.

    Example:
        >>> Family("uc", lambda pipe, frame: frame["guidance_scale"]).layout
        'uc'
    """

    layout: Layout
    scale: Scale
    rescale: Callable[[Any, Frame], float] = no_rescale
    doubled: bool = False
    axes: Mapping[str, int | None] = field(default_factory=dict)
    name: str = ""
    embedded: bool = False
    lora: bool = True
    since: str = "0.38"


def from_pipe(pipe: Any, frame: Frame) -> float | None:
    """Scale of a pipeline that keeps it in properties (Stable Diffusion 1 to 3)."""
    del frame
    return float(pipe.guidance_scale) if pipe.do_classifier_free_guidance else None


def from_frame(pipe: Any, frame: Frame) -> float | None:
    """Scale of a pipeline that keeps it in local variables (PixArt)."""
    del pipe
    return float(frame["guidance_scale"]) if frame["do_classifier_free_guidance"] else None


def _true_cfg(pipe: Any, frame: Frame) -> float | None:
    del pipe
    return float(frame["true_cfg_scale"]) if frame.get("do_true_cfg") else None


def _guidance_rescale(pipe: Any, frame: Frame) -> float:
    del frame
    return float(getattr(pipe, "guidance_rescale", 0.0) or 0.0)


def local_scale(pipe: Any, frame: Frame) -> float | None:
    """Scale of a pipeline that keeps it in a local variable, and whether it guides in a property.

    HunyuanDiT, Sana, AnimateDiff.
    """
    return float(frame["guidance_scale"]) if pipe.do_classifier_free_guidance else None


def _local_rescale(pipe: Any, frame: Frame) -> float:
    del pipe
    return float(frame["guidance_rescale"])


def _always_rescaled(pipe: Any, frame: Frame) -> float:
    """Qwen-Image gives the mix the norm of the conditional prediction, token by token."""
    del pipe, frame
    return 1.0


def _dit(pipe: Any, frame: Frame) -> float | None:
    del pipe
    return float(frame["guidance_scale"]) if frame["guidance_scale"] > 1 else None


def _z_image(pipe: Any, frame: Frame) -> float | None:
    """Its own scale s means c + s (c - u), which is u + (1 + s) (c - u).

    `cfg_truncation` ends guidance at steps past a time: the same comparison as in the loop
    (diffusers 0.42).
    """
    times = frame["_precomputed_t_norms"]
    truncated = times is not None and times[frame["i"]] > pipe._cfg_truncation
    guided = pipe.do_classifier_free_guidance and not truncated
    return 1 + float(pipe.guidance_scale) if guided else None


def _z_image_norm(pipe: Any, frame: Frame) -> float:
    del frame
    return float(pipe._cfg_normalization or 0)


def _wan(pipe: Any, frame: Frame) -> float | None:
    """Wan 2.2 goes over to `transformer_2` and `guidance_scale_2` at the boundary."""
    if not pipe.do_classifier_free_guidance:
        return None
    boundary = frame["boundary_timestep"]
    noisy = boundary is None or frame["t"] >= boundary
    return float(frame["guidance_scale" if noisy else "guidance_scale_2"])


def _cogvideox(pipe: Any, frame: Frame) -> float | None:
    """With `use_dynamic_cfg` the loop sets the step's scale after the network has been called.

    So it is not yet there when we need it: the same formula as in the loop (diffusers 0.42).
    """
    if not frame["do_classifier_free_guidance"]:
        return None
    if not frame["use_dynamic_cfg"]:
        return float(pipe.guidance_scale)
    n = frame["num_inference_steps"]
    phase = math.pi * ((n - frame["t"].item()) / n) ** 5.0
    return 1 + float(frame["guidance_scale"]) * (1 - math.cos(phase)) / 2


def _kept_for_pag(pipe: Any, frame: Frame) -> float:
    """PAG adds a multiple of c - p: as with a rescaling, the conditional half is needed."""
    return 1.0 if pipe.do_perturbed_attention_guidance else _guidance_rescale(pipe, frame)


def _skips_layers(pipe: Any, frame: Frame) -> float:
    """Skip-layer guidance adds a multiple of c - (c without some layers) at the steps of its span.

    The same comparisons as in the loop (diffusers 0.38 to 0.42). Pipelines from an image have none.
    """
    del pipe
    if frame.get("skip_guidance_layers") is None:
        return 0.0
    i, n = frame["i"], frame["num_inference_steps"]
    start, stop = frame["skip_layer_guidance_start"], frame["skip_layer_guidance_stop"]
    return 1.0 if n * start < i < n * stop else 0.0


STABLE_DIFFUSION = Family("uc", from_pipe, _guidance_rescale, name="Stable Diffusion")
STABLE_DIFFUSION_XL = replace(STABLE_DIFFUSION, name="Stable Diffusion XL")
STABLE_DIFFUSION_3 = Family("uc", from_pipe, _skips_layers, name="Stable Diffusion 3")
PIXART = Family("uc", from_frame, name="PixArt", lora=False)
FLUX = Family("two", _true_cfg, name="FLUX.1", embedded=True)
HUNYUAN_DIT = Family(
    "uc",
    local_scale,
    _local_rescale,
    axes={"image_rotary_emb": None},
    name="HunyuanDiT",
    lora=False,
)
DIT = Family("cu", _dit, doubled=True, name="DiT", lora=False)
SANA = Family("uc", local_scale, name="Sana")
QWEN_IMAGE = Family("two", _true_cfg, _always_rescaled, name="Qwen-Image")
Z_IMAGE = Family("cu", _z_image, _z_image_norm, name="Z-Image")
HIDREAM = Family("uc", from_pipe, axes={"encoder_hidden_states_llama3": 1}, name="HiDream-I1")
# The words and ControlNet's residuals are repeated for every frame: [2 B F, ...].
ANIMATEDIFF = Family(
    "uc",
    local_scale,
    axes={
        "encoder_hidden_states": 0,
        "down_block_additional_residuals": 0,
        "mid_block_additional_residual": 0,
    },
    name="AnimateDiff",
)
ANIMATEDIFF_XL = replace(ANIMATEDIFF, scale=from_pipe, rescale=_guidance_rescale)
WAN = Family("two", _wan, name="Wan")
COGVIDEOX = Family("uc", _cogvideox, axes={"image_rotary_emb": None}, name="CogVideoX")
LTX = Family("uc", from_pipe, _guidance_rescale, name="LTX-Video")


def _local(family: Family) -> Family:
    """The same with its scale in a local variable, as most ControlNet pipelines have it."""
    return replace(family, scale=local_scale)


def _with_pag(family: Family) -> Family:
    """The same with perturbed-attention guidance."""
    return replace(family, layout="ucp", rescale=_kept_for_pag)


# By the name of the class (or of one it derives from): importing the classes themselves would
# import every pipeline.
FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": STABLE_DIFFUSION,
    "StableDiffusionImg2ImgPipeline": STABLE_DIFFUSION,
    "StableDiffusionInpaintPipeline": STABLE_DIFFUSION,
    "StableDiffusionControlNetPipeline": STABLE_DIFFUSION,
    "StableDiffusionControlNetImg2ImgPipeline": _local(STABLE_DIFFUSION),
    "StableDiffusionPAGPipeline": _with_pag(STABLE_DIFFUSION),
    "StableDiffusionXLPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLImg2ImgPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLInpaintPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLControlNetPipeline": _local(STABLE_DIFFUSION_XL),
    "StableDiffusionXLControlNetImg2ImgPipeline": _local(STABLE_DIFFUSION_XL),
    "StableDiffusionXLPAGPipeline": _with_pag(STABLE_DIFFUSION_XL),
    "StableDiffusion3Pipeline": STABLE_DIFFUSION_3,
    "StableDiffusion3Img2ImgPipeline": STABLE_DIFFUSION_3,
    "StableDiffusion3InpaintPipeline": STABLE_DIFFUSION_3,
    "FluxPipeline": FLUX,
    "FluxImg2ImgPipeline": FLUX,
    "FluxInpaintPipeline": FLUX,
    "FluxFillPipeline": FLUX,
    "FluxKontextPipeline": FLUX,
    "FluxControlNetPipeline": FLUX,
    "PixArtAlphaPipeline": PIXART,
    "PixArtSigmaPipeline": PIXART,
    "HunyuanDiTPipeline": HUNYUAN_DIT,
    "DiTPipeline": DIT,
    "SanaPipeline": SANA,
    "QwenImagePipeline": QWEN_IMAGE,
    "ZImagePipeline": Z_IMAGE,
    "HiDreamImagePipeline": HIDREAM,
    "AnimateDiffPipeline": ANIMATEDIFF,
    "AnimateDiffSDXLPipeline": ANIMATEDIFF_XL,
    "WanPipeline": WAN,
    "WanImageToVideoPipeline": WAN,
    "CogVideoXPipeline": COGVIDEOX,
    "LTXPipeline": LTX,
}


def family_of(pipe: Any) -> Family | None:
    """Family of a pipeline by the names of its classes; None if it is not known."""
    names = [cls.__name__ for cls in type(pipe).__mro__]
    return next((FAMILIES[name] for name in names if name in FAMILIES), None)
