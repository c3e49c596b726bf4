"""Stable Diffusion XL."""

from __future__ import annotations

from typing import Any

from w2sdiff.testing.parts import SD_NOISE, clip_encoder, clip_tokenizer, unet, vae
from w2sdiff.testing.variants import NEGATIVE, PROMPT, Variant, add


def _sdxl(seed: int) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    network = unet(
        seed,
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )
    return StableDiffusionXLPipeline(
        vae=vae(seed),
        text_encoder=clip_encoder(seed),
        text_encoder_2=clip_encoder(seed + 1, projected=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=network,
        scheduler=EulerDiscreteScheduler(**SD_NOISE, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
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


add(Variant("sdxl", "Stable Diffusion XL", _sdxl, _call, denoiser="unet"))
