"""FLUX.1, with its embedded guidance and with true guidance."""

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


def _flux(seed: int) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return FluxPipeline(
        vae=vae(seed, flow=True),
        text_encoder=clip_encoder(seed),
        text_encoder_2=t5_encoder(seed),
        tokenizer=clip_tokenizer(),
        tokenizer_2=t5_tokenizer(),
        transformer=randomise(transformer, seed),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
    )


def _call(seed: int) -> dict[str, Any]:
    del seed
    return {
        "prompt": PROMPT,
        "height": 16,
        "width": 16,
        "output_type": "latent",
        "guidance_scale": 3.5,
        "max_sequence_length": 48,
    }


def _true_cfg(seed: int) -> dict[str, Any]:
    return {**_call(seed), "true_cfg_scale": 4.0, "negative_prompt": NEGATIVE}


add(
    Variant("flux", "FLUX.1", _flux, _call, guidance=None, evaluations=1),
    Variant("flux-true-cfg", "FLUX.1", _flux, _true_cfg, guidance="true_cfg_scale", calls=2),
)
