"""AnimateDiff: Stable Diffusion 1 with motion modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from w2sdiff.testing.parts import SD_NOISE, clip_encoder, clip_tokenizer, randomise, unet, vae
from w2sdiff.testing.pipelines import sdxl
from w2sdiff.testing.variants import NEGATIVE, PROMPT, Variant, add


def _animatediff(seed: int) -> Any:
    from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter, UNetMotionModel

    adapter = MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
    )
    network = unet(seed, cross_attention_dim=32, attention_head_dim=2)
    # The pipeline would put them together itself; the motion modules' last layers are zeros, and
    # have to be given values.
    network = randomise(UNetMotionModel.from_unet2d(network, adapter), seed)
    return AnimateDiffPipeline(
        vae=vae(seed),
        text_encoder=clip_encoder(seed),
        tokenizer=clip_tokenizer(),
        unet=network,
        motion_adapter=adapter,
        scheduler=DDIMScheduler(
            beta_start=SD_NOISE["beta_start"],
            beta_end=SD_NOISE["beta_end"],
            beta_schedule="linear",
            clip_sample=False,
        ),
    )


def _call(seed: int) -> dict[str, Any]:
    del seed
    return {
        "prompt": PROMPT,
        "height": 16,
        "width": 16,
        "num_frames": 3,
        "output_type": "latent",
        "guidance_scale": 5.0,
        "negative_prompt": NEGATIVE,
    }


def _sdxl(seed: int) -> Any:
    from diffusers import AnimateDiffSDXLPipeline, DDIMScheduler, MotionAdapter, UNetMotionModel

    adapter = MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
        use_motion_mid_block=False,
    )
    made = sdxl.parts(seed)
    del made["add_watermarker"]
    network = randomise(UNetMotionModel.from_unet2d(made["unet"], adapter), seed)
    scheduler = DDIMScheduler(**SD_NOISE, clip_sample=False)
    changed = {"unet": network, "motion_adapter": adapter, "scheduler": scheduler}
    return AnimateDiffSDXLPipeline(**made | changed)


def _row(name: str, make: Callable[[int], Any]) -> Variant:
    return Variant(name, "AnimateDiff", make, _call, denoiser="unet", output="frames")


add(_row("animatediff", _animatediff), _row("animatediff-sdxl", _sdxl))
