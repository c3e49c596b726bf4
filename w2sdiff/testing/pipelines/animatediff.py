"""AnimateDiff: Stable Diffusion 1 with motion modules."""

from __future__ import annotations

from typing import Any

from w2sdiff.testing.parts import SD_NOISE, clip_encoder, clip_tokenizer, randomise, unet, vae
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


add(Variant("animatediff", "AnimateDiff", _animatediff, _call, denoiser="unet", output="frames"))
