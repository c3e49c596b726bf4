"""Sana."""

from __future__ import annotations

from typing import Any

from w2sdiff.testing.parts import decoder_encoder, randomise, t5_tokenizer
from w2sdiff.testing.variants import NEGATIVE, PROMPT, Variant, add


def _sana(seed: int) -> Any:
    from diffusers import (
        AutoencoderDC,
        FlowMatchEulerDiscreteScheduler,
        SanaPipeline,
        SanaTransformer2DModel,
    )

    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=32,
        sample_size=8,
    )
    sizes: dict[str, Any] = {"latent_channels": 4, "attention_head_dim": 2}
    blocks = {
        f"{side}coder_{name}": value
        for side in ("en", "de")
        for name, value in {
            "block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
            "block_out_channels": (8, 8, 8),
            "qkv_multiscales": ((), (), (5,)),
            "layers_per_block": (1, 1, 1),
        }.items()
    }
    autoencoder = AutoencoderDC(
        in_channels=3,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
        **sizes,
        **blocks,
    )
    return SanaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=decoder_encoder("Gemma2", seed),
        vae=randomise(autoencoder, seed),
        transformer=randomise(transformer, seed),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _call(seed: int) -> dict[str, Any]:
    del seed
    return {
        "prompt": PROMPT,
        "height": 32,
        "width": 32,
        "output_type": "latent",
        "guidance_scale": 4.5,
        "negative_prompt": NEGATIVE,
        "max_sequence_length": 48,
        "use_resolution_binning": False,
        "complex_human_instruction": None,
        "clean_caption": False,
    }


add(Variant("sana", "Sana", _sana, _call))
