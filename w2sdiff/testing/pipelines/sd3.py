"""Stable Diffusion 3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from w2sdiff.testing.parts import (
    clip_encoder,
    clip_tokenizer,
    half_mask,
    picture,
    randomise,
    t5_encoder,
    t5_tokenizer,
    vae,
)
from w2sdiff.testing.variants import NEGATIVE, PROMPT, Variant, add


def _parts(seed: int, channels: int = 4) -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=channels,
        out_channels=channels,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
    )
    return {
        "vae": vae(seed, channels, flow=True),
        "text_encoder": clip_encoder(seed, 16, projected=True),
        "text_encoder_2": clip_encoder(seed + 1, 16, projected=True),
        "text_encoder_3": t5_encoder(seed),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "tokenizer_3": t5_tokenizer(),
        "transformer": randomise(transformer, seed),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def _of(kind: str, channels: int = 4) -> Callable[[int], Any]:
    def make(seed: int) -> Any:
        import diffusers

        return getattr(diffusers, f"StableDiffusion3{kind}Pipeline")(**_parts(seed, channels))

    return make


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


def _img2img(seed: int) -> dict[str, Any]:
    return {**_call(seed), "image": picture(seed), "strength": 0.75}


def _inpaint(seed: int) -> dict[str, Any]:
    return {**_img2img(seed), "mask_image": half_mask()}


def _skip_layers(seed: int) -> dict[str, Any]:
    """Skip-layer guidance from the first step (a start of 0 leaves that one out) to the last."""
    settings = {"skip_guidance_layers": [0], "skip_layer_guidance_scale": 2.8}
    span = {"skip_layer_guidance_start": -1.0, "skip_layer_guidance_stop": 1.0}
    return {**_call(seed), **settings, **span}


_NAME = "Stable Diffusion 3"

add(
    Variant("sd3", _NAME, _of(""), _call),
    Variant("sd3-img2img", _NAME, _of("Img2Img"), _img2img),
    # diffusers 0.42 takes no network of other than 16 channels here
    Variant("sd3-inpaint", _NAME, _of("Inpaint", channels=16), _inpaint),
    Variant(
        "sd3-skip-layers", _NAME, _of(""), _skip_layers, calls=2, evaluations=3, unconditional=3
    ),
)
