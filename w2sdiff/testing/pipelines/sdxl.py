"""Stable Diffusion XL."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from w2sdiff.testing.parts import SD_NOISE, clip_encoder, clip_tokenizer, unet, vae
from w2sdiff.testing.unets import called, unet_variants
from w2sdiff.testing.variants import add


def parts(seed: int, **network: Any) -> dict[str, Any]:
    """What a tiny Stable Diffusion XL is made of; `network` are settings of the UNet."""
    from diffusers import EulerDiscreteScheduler

    common: dict[str, Any] = {
        "cross_attention_dim": 64,
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 32,
    }
    return {
        "vae": vae(seed),
        "text_encoder": clip_encoder(seed),
        "text_encoder_2": clip_encoder(seed + 1, projected=True),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "unet": unet(seed, **common | network),
        "scheduler": EulerDiscreteScheduler(**SD_NOISE, timestep_spacing="leading"),
        "force_zeros_for_empty_prompt": False,
        "add_watermarker": False,
    }


def _rescaled(seed: int) -> dict[str, Any]:
    return {**called(seed), "guidance_rescale": 0.7}


_ROWS = unet_variants("sdxl", "Stable Diffusion XL", "StableDiffusionXL", parts)
add(*_ROWS, replace(_ROWS[0], name="sdxl-rescale", arguments=_rescaled, unconditional=2))
