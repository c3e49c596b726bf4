"""DiT, which is told a class and no words."""

from __future__ import annotations

from typing import Any

from w2sdiff.testing.parts import SD_NOISE, randomise, vae
from w2sdiff.testing.variants import Variant, add


def _dit(seed: int) -> Any:
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=4,
        attention_head_dim=8,
        num_attention_heads=4,
        in_channels=4,
        out_channels=8,
        norm_num_groups=4,
        # The pipeline's class of no class is number 1000.
        num_embeds_ada_norm=1000,
    )
    # The pipeline decodes in any case and cuts the colours off: small enough latents stay inside.
    autoencoder = vae(seed)
    autoencoder.register_to_config(scaling_factor=40.0)
    return DiTPipeline(
        transformer=randomise(transformer, seed),
        vae=autoencoder,
        scheduler=DDIMScheduler(**SD_NOISE, clip_sample=False, set_alpha_to_one=False),
    )


def _call(seed: int) -> dict[str, Any]:
    del seed
    return {"class_labels": [207], "output_type": "latent", "guidance_scale": 4.0}


add(Variant("dit", "DiT", _dit, _call, prompted=False))
