"""What the replay has to know of each variant of `w2sdiff.testing`, written down a second time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["FAMILIES", "Family"]

Layout = Literal["uncond first, one call", "cond first, one call", "cond first, two calls", "none"]
Rescale = Literal["std", "norm of each token", "norm at most"]
Third = Literal["perturbed", "skipped layers"]


@dataclass(frozen=True)
class Family:
    """The facts of one pipeline family that a replay has to know."""

    denoiser: str
    sample: str  # the argument of the denoiser that holds the latents
    layout: Layout
    conditioning: tuple[str, ...]  # the arguments that another prompt changes
    embedded_guidance: bool = False
    scale: str = "guidance_scale"  # the argument of the call
    offset: float = 0.0  # of that argument to the scale of u + scale (c - u)
    second: tuple[str, str] | None = None  # another denoiser that takes over, and its scale
    live: str | None = None  # attribute of the pipeline that holds the scale of this step
    rescale: Rescale = "std"
    sign: float = 1.0  # of the denoiser's output in what is stepped with
    items: bool = False  # the denoiser takes and gives a list of items [C, 1, H, W]
    doubled: bool = False  # the latents of both branches go through `step`
    third: Third | None = None  # another branch: of the same call, or in a call of its own
    residuals: tuple[str, ...] = ()  # the arguments that hold what a ControlNet says


_UNET: Layout = "uncond first, one call"
_TWO: Layout = "cond first, two calls"
_WORDS = ("encoder_hidden_states",)
_MASKED = ("encoder_hidden_states", "encoder_attention_mask")
_SD = Family("unet", "sample", _UNET, _WORDS)
_SDXL = Family("unet", "sample", _UNET, (*_WORDS, "added_cond_kwargs"))
_SD3 = Family("transformer", "hidden_states", _UNET, (*_WORDS, "pooled_projections"))
_FLUX = Family(
    "transformer",
    "hidden_states",
    "none",
    (*_WORDS, "pooled_projections"),
    embedded_guidance=True,
)
_FLUX_TRUE_CFG = replace(_FLUX, layout=_TWO, embedded_guidance=False, scale="true_cfg_scale")
_UNET_CONTROL = ("down_block_additional_residuals", "mid_block_additional_residual")
_FLUX_CONTROL = ("controlnet_block_samples", "controlnet_single_block_samples")


def _around_unet(prefix: str, plain: Family) -> dict[str, Family]:
    alike = ("", "-img2img", "-inpaint", "-inpaint-9", "-ip-adapter")
    control = replace(plain, residuals=_UNET_CONTROL)
    return {
        **{f"{prefix}{name}": plain for name in alike},
        **{f"{prefix}-controlnet{name}": control for name in ("", "-img2img")},
        f"{prefix}-pag": replace(plain, third="perturbed"),
    }


FAMILIES = {
    **_around_unet("sd", _SD),
    **_around_unet("sdxl", _SDXL),
    "sdxl-rescale": _SDXL,
    **{f"sd3{name}": _SD3 for name in ("", "-img2img", "-inpaint")},
    "sd3-skip-layers": replace(_SD3, third="skipped layers"),
    **{f"flux{name}": _FLUX for name in ("", "-img2img", "-inpaint", "-fill", "-kontext")},
    "flux-controlnet": replace(_FLUX, residuals=_FLUX_CONTROL),
    **{f"flux{name}-true-cfg": _FLUX_TRUE_CFG for name in ("", "-img2img", "-inpaint", "-kontext")},
    "flux-controlnet-true-cfg": replace(_FLUX_TRUE_CFG, residuals=_FLUX_CONTROL),
    "pixart": Family("transformer", "hidden_states", _UNET, _MASKED),
    "pixart-alpha": Family("transformer", "hidden_states", _UNET, _MASKED),
    "hunyuan-dit": Family(
        "transformer",
        "hidden_states",
        _UNET,
        (
            "encoder_hidden_states",
            "text_embedding_mask",
            "encoder_hidden_states_t5",
            "text_embedding_mask_t5",
        ),
    ),
    "dit": Family(
        "transformer",
        "hidden_states",
        "cond first, one call",
        ("class_labels",),
        doubled=True,
    ),
    "sana": Family("transformer", "hidden_states", _UNET, _MASKED),
    "qwen-image": Family(
        "transformer",
        "hidden_states",
        _TWO,
        ("encoder_hidden_states", "encoder_hidden_states_mask"),
        scale="true_cfg_scale",
        rescale="norm of each token",
    ),
    "z-image": Family(
        "transformer",
        "x",
        "cond first, one call",
        ("cap_feats",),
        offset=1.0,
        rescale="norm at most",
        sign=-1.0,
        items=True,
    ),
    "hidream": Family(
        "transformer",
        "hidden_states",
        _UNET,
        ("encoder_hidden_states_t5", "encoder_hidden_states_llama3", "pooled_embeds"),
        sign=-1.0,
    ),
    "animatediff": _SD,
    "animatediff-xl": _SDXL,
    "wan-2.1": Family("transformer", "hidden_states", _TWO, _WORDS),
    "wan-2.2": Family(
        "transformer",
        "hidden_states",
        _TWO,
        _WORDS,
        second=("transformer_2", "guidance_scale_2"),
    ),
    "wan-i2v": Family("transformer", "hidden_states", _TWO, _WORDS),
    "cogvideox": Family("transformer", "hidden_states", _UNET, _WORDS),
    "cogvideox-dpm": Family("transformer", "hidden_states", _UNET, _WORDS),
    "cogvideox-dynamic": Family(
        "transformer", "hidden_states", _UNET, _WORDS, live="guidance_scale"
    ),
    "ltx": Family("transformer", "hidden_states", _UNET, _MASKED),
}
FAMILIES["hunyuan-dit-rescale"] = FAMILIES["hunyuan-dit"]
FAMILIES["z-image-normalised"] = FAMILIES["z-image"]
