"""What a pipeline can be called with, known from its class before anything is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2sdiff.errors import InputError, UnsupportedError
from w2sdiff.generate.image_prompts import takes_image_prompts
from w2sdiff.generate.models import Model
from w2sdiff.generate.settings import Settings

__all__ = [
    "call_parameters",
    "check_call",
    "control_argument",
    "drawing_class",
    "image_strength",
]

IMAGE_STRENGTH = 0.6
"""How much of a picture to start from is redrawn, unless it is said."""


def drawing_class(model: Model, *, from_image: bool) -> type:
    """The class that draws: the folder's own, or its image-to-image form.

    Raises:
        InputError: this diffusers does not have it.
        UnsupportedError: there is no image-to-image form.
    """
    cls = model.pipeline_class
    if not from_image or model.pipeline.endswith("Img2ImgPipeline"):
        return cls
    # What AutoPipelineForImage2Image does, whose public way needs the loaded weights.
    from diffusers.pipelines.auto_pipeline import (
        AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
        _get_task_class,
    )

    found: type | None = _get_task_class(
        AUTO_IMAGE2IMAGE_PIPELINES_MAPPING, model.pipeline, throw_error_if_not_exist=False
    )
    if found is None:
        raise UnsupportedError(f"{model.pipeline} has no image-to-image form")
    return found


def call_parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    """What a pipeline of this class can be called with."""
    return inspect.signature(cls.__call__).parameters


def control_argument(cls: type) -> str | None:
    """What a pipeline of this class calls the picture that controls it; None: it takes none."""
    accepted = call_parameters(cls)
    if "control_image" in accepted:
        return "control_image"
    # Stable Diffusion's ControlNet pipelines call it `image`, where they start from noise.
    named_image = "ControlNet" in cls.__name__ and "strength" not in accepted
    return "image" if named_image and "image" in accepted else None


def image_strength(model: Model, image: Path | None, given: float | None) -> float | None:
    """The strength to call with: what is given, or `IMAGE_STRENGTH` where the pipeline takes one.

    Raises:
        UnsupportedError: the model has no image-to-image form.
    """
    if image is None or given is not None:
        return given
    accepted = call_parameters(drawing_class(model, from_image=True))
    return IMAGE_STRENGTH if "strength" in accepted else None


def check_call(cls: type, settings: Settings) -> None:
    """Refuse what a pipeline of this class cannot be called with.

    Raises:
        InputError: it draws under the control of a picture, and there is none.
        UnsupportedError: it takes no negative prompt, no true CFG scale, or none of the pictures.
    """
    accepted, control = call_parameters(cls), control_argument(cls)
    taken: dict[str, tuple[Any, bool]] = {
        "negative prompt": (settings.negative, "negative_prompt" in accepted),
        "true CFG scale": (settings.true_cfg, "true_cfg_scale" in accepted),
        "image": (settings.image, "image" in accepted and control != "image"),
        "control image": (settings.control_image, control is not None),
        "IP-Adapter in a file": (settings.image_prompts or None, takes_image_prompts(cls)),
    }
    for what, (value, takes) in taken.items():
        if value is not None and not takes:
            raise UnsupportedError(f"{cls.__name__} takes no {what}")
    if control is not None and settings.control_image is None:
        raise InputError(
            f"{cls.__name__} draws under the control of a picture (edges, depth, ...): give it "
            "with --control-image; --image is a picture to start from"
        )
