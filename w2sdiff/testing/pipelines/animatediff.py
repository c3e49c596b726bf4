"""AnimateDiff: Stable Diffusion 1 and XL with motion modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from w2sdiff.testing.parts import SD_NOISE, randomise
from w2sdiff.testing.pipelines import sdxl, stable_diffusion
from w2sdiff.testing.unets import called
from w2sdiff.testing.variants import Variant, add


def _with_motion(parts: dict[str, Any], seed: int) -> dict[str, Any]:
    """The parts of a pipeline for pictures, as AnimateDiff's takes them."""
    from diffusers import DDIMScheduler, MotionAdapter, UNetMotionModel

    adapter = MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
    ).eval()
    # The pipeline would put the two together itself; but the motion modules' last layers are zeros,
    # and have to be given values.
    both = randomise(UNetMotionModel.from_unet2d(parts["unet"], adapter), seed, gain=0.7)
    noise = {**SD_NOISE, "beta_schedule": "linear"}
    return parts | {
        "unet": both,
        "motion_adapter": adapter,
        "scheduler": DDIMScheduler(**noise, clip_sample=False, set_alpha_to_one=False),
    }


def _without(parts: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if name not in names}


def _animatediff(seed: int) -> Any:
    from diffusers import AnimateDiffPipeline

    parts = _without(
        stable_diffusion.parts(seed),
        *("safety_checker", "feature_extractor", "requires_safety_checker"),
    )
    return AnimateDiffPipeline(**_with_motion(parts, seed))


def _animatediff_xl(seed: int) -> Any:
    from diffusers import AnimateDiffSDXLPipeline

    parts = _without(sdxl.parts(seed), "add_watermarker")
    return AnimateDiffSDXLPipeline(**_with_motion(parts, seed))


def _call(seed: int) -> dict[str, Any]:
    return {**called(seed), "num_frames": 3}


def _row(name: str, make: Callable[[int], Any]) -> Variant:
    return Variant(name, "AnimateDiff", make, _call, denoiser="unet", output="frames")


add(_row("animatediff", _animatediff), _row("animatediff-xl", _animatediff_xl))
