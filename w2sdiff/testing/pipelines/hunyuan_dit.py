"""HunyuanDiT."""

from __future__ import annotations

from typing import Any

from w2sdiff.testing.parts import (
    SD_NOISE,
    bert_encoder,
    randomise,
    t5_encoder,
    t5_tokenizer,
    vae,
)
from w2sdiff.testing.variants import NEGATIVE, PROMPT, Variant, add


def _hunyuan_dit(seed: int) -> Any:
    from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline

    transformer = HunyuanDiT2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        in_channels=4,
        hidden_size=32,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        text_len=77,
        text_len_t5=256,
        activation_fn="gelu-approximate",
    )
    return HunyuanDiTPipeline(
        vae=vae(seed),
        text_encoder=bert_encoder(seed),
        tokenizer=t5_tokenizer(),
        text_encoder_2=t5_encoder(seed),
        tokenizer_2=t5_tokenizer(),
        transformer=randomise(transformer, seed),
        scheduler=DDPMScheduler(**SD_NOISE, prediction_type="v_prediction", clip_sample=False),
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
        "use_resolution_binning": False,
    }


def _rescaled(seed: int) -> dict[str, Any]:
    return {**_call(seed), "guidance_rescale": 0.7}


add(
    Variant("hunyuan-dit", "HunyuanDiT", _hunyuan_dit, _call),
    Variant("hunyuan-dit-rescale", "HunyuanDiT", _hunyuan_dit, _rescaled, unconditional=2),
)
