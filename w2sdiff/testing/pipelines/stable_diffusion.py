"""Stable Diffusion 1."""

from __future__ import annotations

from typing import Any

from w2sdiff.testing.parts import SD_NOISE, clip_encoder, clip_tokenizer, unet, vae
from w2sdiff.testing.variants import NEGATIVE, PROMPT, Variant, add


def _sd(seed: int) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae(seed),
        text_encoder=clip_encoder(seed),
        tokenizer=clip_tokenizer(),
        unet=unet(seed, cross_attention_dim=32, attention_head_dim=2),
        scheduler=DDIMScheduler(**SD_NOISE, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _call(seed: int) -> dict[str, Any]:
    del seed
    return {
        "prompt": PROMPT,
        "height": 16,
        "width": 16,
        "output_type": "latent",
        "guidance_scale": 5.0,
        "negative_prompt": NEGATIVE,
    }


add(Variant("sd", "Stable Diffusion", _sd, _call, denoiser="unet"))
