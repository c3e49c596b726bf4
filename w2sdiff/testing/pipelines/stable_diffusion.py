"""Stable Diffusion 1."""

from __future__ import annotations

from typing import Any

from w2sdiff.testing.parts import SD_NOISE, clip_encoder, clip_tokenizer, unet, vae
from w2sdiff.testing.unets import unet_variants
from w2sdiff.testing.variants import add


def parts(seed: int, **network: Any) -> dict[str, Any]:
    """What a tiny Stable Diffusion 1 is made of; `network` are settings of the UNet."""
    from diffusers import DDIMScheduler

    return {
        "vae": vae(seed),
        "text_encoder": clip_encoder(seed),
        "tokenizer": clip_tokenizer(),
        "unet": unet(seed, cross_attention_dim=32, attention_head_dim=2, **network),
        "scheduler": DDIMScheduler(**SD_NOISE, clip_sample=False, set_alpha_to_one=False),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


add(*unet_variants("sd", "Stable Diffusion", "StableDiffusion", parts))
