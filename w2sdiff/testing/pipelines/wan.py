"""Wan 2.1, Wan 2.2 with its two transformers, and image-to-video."""

from __future__ import annotations

from typing import Any

import torch

from w2sdiff.testing.parts import randomise, t5_tokenizer, umt5_encoder, wan_vae
from w2sdiff.testing.variants import NEGATIVE, PROMPT, Variant, add


def _transformer(seed: int, **settings: Any) -> Any:
    from diffusers import WanTransformer3DModel

    common: dict[str, Any] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 32,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": 2,
        "cross_attn_norm": True,
        "rope_max_seq_len": 32,
    }
    return randomise(WanTransformer3DModel(**common | settings), seed)


def _parts(seed: int) -> dict[str, Any]:
    return {"tokenizer": t5_tokenizer(), "text_encoder": umt5_encoder(seed), "vae": wan_vae(seed)}


def _wan(seed: int) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return WanPipeline(**_parts(seed), transformer=_transformer(seed), scheduler=scheduler)


def _wan22(seed: int) -> Any:
    from diffusers import UniPCMultistepScheduler, WanPipeline

    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return WanPipeline(
        **_parts(seed),
        transformer=_transformer(seed),
        transformer_2=_transformer(seed + 1),
        scheduler=scheduler,
        boundary_ratio=0.875,
    )


def _wan_i2v(seed: int) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline

    # 16 channels of latents, 4 of the mask, 16 of the condition
    return WanImageToVideoPipeline(
        **_parts(seed),
        image_encoder=None,
        image_processor=None,
        transformer=_transformer(seed, in_channels=36),
        transformer_2=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _call(seed: int) -> dict[str, Any]:
    del seed
    return {
        "prompt": PROMPT,
        "height": 32,
        "width": 32,
        "num_frames": 5,
        "output_type": "latent",
        "guidance_scale": 4.0,
        "negative_prompt": NEGATIVE,
        "max_sequence_length": 48,
    }


def _two_scales(seed: int) -> dict[str, Any]:
    return {**_call(seed), "guidance_scale_2": 3.0}


def _from_image(seed: int) -> dict[str, Any]:
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return {**_call(seed), "image": image}


add(
    Variant("wan-2.1", "Wan", _wan, _call, calls=2, output="frames"),
    Variant(
        "wan-2.2",
        "Wan",
        _wan22,
        _two_scales,
        calls=2,
        output="frames",
        constant={"guidance_scale_2": None},  # the same as before the boundary
    ),
    Variant("wan-i2v", "Wan", _wan_i2v, _from_image, calls=2, output="frames", shared=("image",)),
)
