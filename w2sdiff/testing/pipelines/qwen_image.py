"""Qwen-Image, whose mix gets the norm of the conditional prediction."""

from __future__ import annotations

from typing import Any

from w2sdiff.testing.parts import qwen_vl_encoder, randomise, t5_tokenizer
from w2sdiff.testing.variants import NEGATIVE, PROMPT, Variant, add


def _qwen_image(seed: int) -> Any:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        max_image_seq_len=8192,
        shift_terminal=0.02,
        time_shift_type="exponential",
    )
    return QwenImagePipeline(
        scheduler=scheduler,
        vae=None,  # pictures are not decoded here; without it the factor is 8
        text_encoder=qwen_vl_encoder(seed),
        tokenizer=t5_tokenizer(),
        transformer=randomise(transformer, seed),
    )


def _call(seed: int) -> dict[str, Any]:
    del seed
    return {
        "prompt": PROMPT,
        "height": 64,
        "width": 64,
        "output_type": "latent",
        "true_cfg_scale": 4.0,
        "negative_prompt": NEGATIVE,
        "max_sequence_length": 512,
    }


add(
    Variant(
        "qwen-image",
        "Qwen-Image",
        _qwen_image,
        _call,
        guidance="true_cfg_scale",
        calls=2,
        unconditional=2,
    )
)
