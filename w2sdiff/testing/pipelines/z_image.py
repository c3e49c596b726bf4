"""Z-Image: lists of items, conditional ones first, and a scale that starts at 0."""

from __future__ import annotations

from typing import Any

from w2sdiff.testing.parts import decoder_encoder, randomise, t5_tokenizer, vae
from w2sdiff.testing.variants import NEGATIVE, PROMPT, Variant, add


def _z_image(seed: int) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 32, 32],
    )
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=vae(seed, flow=True),
        text_encoder=decoder_encoder("Qwen3", seed),
        tokenizer=t5_tokenizer(),
        transformer=randomise(transformer, seed),
    )


def _call(seed: int) -> dict[str, Any]:
    del seed
    return {
        "prompt": PROMPT,
        "height": 32,
        "width": 32,
        "output_type": "latent",
        "guidance_scale": 3.0,
        "negative_prompt": NEGATIVE,
        "max_sequence_length": 64,
    }


def _normalised(seed: int) -> dict[str, Any]:
    return {**_call(seed), "cfg_normalization": True}


add(
    Variant("z-image", "Z-Image", _z_image, _call, offset=1.0),
    Variant("z-image-normalised", "Z-Image", _z_image, _normalised, offset=1.0, unconditional=2),
)
