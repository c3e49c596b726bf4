"""PixArt-α and PixArt-Σ."""

from __future__ import annotations

from typing import Any

from w2sdiff.testing.parts import SD_NOISE, randomise, t5_encoder, t5_tokenizer, vae
from w2sdiff.testing.variants import NEGATIVE, PROMPT, Variant, add


def _pixart(seed: int) -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=32,
        caption_channels=32,
        use_additional_conditions=False,
        norm_type="ada_norm_single",
    )
    return PixArtSigmaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(seed),
        vae=vae(seed),
        transformer=randomise(transformer, seed),
        scheduler=DPMSolverMultistepScheduler(**SD_NOISE),
    )


def _alpha(seed: int) -> Any:
    """PixArt-α with the size of the picture among the network's inputs, as at 1024 pixels."""
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    transformer = PixArtTransformer2DModel(
        sample_size=128,  # the pipeline gives sizes to networks of this size alone
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,  # the width is three embedded numbers: height, width, ratio
        in_channels=4,
        out_channels=8,
        cross_attention_dim=24,
        caption_channels=32,
        use_additional_conditions=True,
        norm_type="ada_norm_single",
    )
    return PixArtAlphaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(seed),
        vae=vae(seed),
        transformer=randomise(transformer, seed),
        scheduler=DPMSolverMultistepScheduler(**SD_NOISE),
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
        "max_sequence_length": 48,
        "use_resolution_binning": False,
        "clean_caption": False,
    }


add(
    Variant("pixart", "PixArt", _pixart, _call),
    Variant("pixart-alpha", "PixArt", _alpha, _call),
)
