"""HiDream-I1, whose transformer is a sparse mixture of experts."""

from __future__ import annotations

from typing import Any

from w2sdiff.testing.parts import (
    clip_encoder,
    clip_tokenizer,
    decoder_encoder,
    randomise,
    t5_encoder,
    t5_tokenizer,
    vae,
)
from w2sdiff.testing.variants import NEGATIVE, PROMPT, Variant, add


def _hidream(seed: int) -> Any:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        HiDreamImagePipeline,
        HiDreamImageTransformer2DModel,
    )

    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[32, 32],
        text_emb_dim=32,
        num_routed_experts=8,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=[0, 1],
        # In evaluation mode the experts run one after the other either way.
        force_inference_output=True,
    )
    pipe = HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(seed, flow=True),
        text_encoder=clip_encoder(seed, 16, projected=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_encoder(seed + 1, 16, projected=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(seed),
        tokenizer_3=t5_tokenizer(),
        text_encoder_4=decoder_encoder("Llama", seed),
        tokenizer_4=t5_tokenizer(),
        transformer=randomise(transformer, seed),
    )
    # Every size is scaled to the model's own area: diffusers (0.42) has 128 x 128 latents in code.
    pipe.default_sample_size = 8
    return pipe


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
    }


add(Variant("hidream", "HiDream-I1", _hidream, _call))
