"""What `Guidance` must know: how a pipeline batches its two branches, where its scale lives.

Everything else works on a pipeline without a family. To state the two facts for one that is not
listed: `attach(pipe, method, family=Family("uc", from_pipe))`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Layout = Literal["uc", "cu", "two"]
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
            "two" two calls, conditional first.
        scale: (pipe, local variables of its `__call__`) -> the scale it mixes with at this step, as
            in u + scale (c - u); None while it runs without an unconditional half.
        rescale: the same, for the strength of a rescaling by the conditional prediction; 0 where
            there is none.

    Example:
        >>> Family("uc", lambda pipe, frame: frame["guidance_scale"]).layout
        'uc'
    """

    layout: Layout
    scale: Scale
    rescale: Callable[[Any, Frame], float] = no_rescale


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


STABLE_DIFFUSION = Family("uc", from_pipe, _guidance_rescale)
STABLE_DIFFUSION_3 = Family("uc", from_pipe)
PIXART = Family("uc", from_frame)
FLUX = Family("two", _true_cfg)

# By the name of the class (or of one it derives from): importing the classes themselves would
# import every pipeline.
FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": STABLE_DIFFUSION,
    "StableDiffusionImg2ImgPipeline": STABLE_DIFFUSION,
    "StableDiffusionInpaintPipeline": STABLE_DIFFUSION,
    "StableDiffusionXLPipeline": STABLE_DIFFUSION,
    "StableDiffusionXLImg2ImgPipeline": STABLE_DIFFUSION,
    "StableDiffusionXLInpaintPipeline": STABLE_DIFFUSION,
    "StableDiffusion3Pipeline": STABLE_DIFFUSION_3,
    "StableDiffusion3Img2ImgPipeline": STABLE_DIFFUSION_3,
    "StableDiffusion3InpaintPipeline": STABLE_DIFFUSION_3,
    "FluxPipeline": FLUX,
    "FluxImg2ImgPipeline": FLUX,
    "FluxInpaintPipeline": FLUX,
    "PixArtAlphaPipeline": PIXART,
    "PixArtSigmaPipeline": PIXART,
}


def family_of(pipe: Any) -> Family | None:
    """Family of a pipeline by the names of its classes; None if it is not known."""
    names = [cls.__name__ for cls in type(pipe).__mro__]
    return next((FAMILIES[name] for name in names if name in FAMILIES), None)
