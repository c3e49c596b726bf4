"""LTX-Video, text to video."""

from __future__ import annotations

from typing import Any

from w2sdiff.testing.parts import randomise, t5_encoder, t5_tokenizer
from w2sdiff.testing.variants import NEGATIVE, PROMPT, Variant, add


def _ltx(seed: int) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel

    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    )
    return LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,  # videos are not decoded here; without it the factors are 32 and 8
        text_encoder=t5_encoder(seed),
        tokenizer=t5_tokenizer(),
        transformer=randomise(transformer, seed),
    )


def _call(seed: int) -> dict[str, Any]:
    del seed
    return {
        "prompt": PROMPT,
        "height": 128,
        "width": 128,
        "num_frames": 9,
        "output_type": "latent",
        "guidance_scale": 3.0,
        "negative_prompt": NEGATIVE,
        "max_sequence_length": 48,
    }


add(Variant("ltx", "LTX-Video", _ltx, _call, output="frames"))
