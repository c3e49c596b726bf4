"""Stable Diffusion 3."""

from __future__ import annotations

from typing import Any

from w2sdiff.testing.parts import (
    clip_encoder,
    clip_tokenizer,
    randomise,
    t5_encoder,
    t5_tokenizer,
    vae,
)
from w2sdiff.testing.variants import NEGATIVE, PROMPT, Variant, add


def _sd3(seed: int) -> Any:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
    )
    return StableDiffusion3Pipeline(
        vae=vae(seed, flow=True),
        text_encoder=clip_encoder(seed, 16, projected=True),
        text_encoder_2=clip_encoder(seed + 1, 16, projected=True),
        text_encoder_3=t5_encoder(seed),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=t5_tokenizer(),
        transformer=randomise(transformer, seed),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _call(seed: int) -> dict[str, Any]:
    del seed
    return {
        "prompt": PROMPT,
        "height": 16,
        "width": 16,
        "output_type": "latent",
        "guidance_scale": 4.0,
        "negative_prompt": NEGATIVE,
        "max_sequence_length": 48,
    }


add(Variant("sd3", "Stable Diffusion 3", _sd3, _call))
