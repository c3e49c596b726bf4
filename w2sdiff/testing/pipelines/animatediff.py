"""AnimateDiff: Stable Diffusion 1 and XL with motion modules."""

from __future__ import annotations

from typing import Any

from w2sdiff.testing.parts import SD_NOISE, clip_encoder, clip_tokenizer, randomise, unet, vae
from w2sdiff.testing.variants import NEGATIVE, PROMPT, Variant, add


def _motion(network: Any, seed: int) -> dict[str, Any]:
    """A UNet with motion modules, and the adapter they come from.

    The pipeline would put them together itself; the motion modules' last layers are zeros, and have
    to be given values.
    """
    from diffusers import MotionAdapter, UNetMotionModel

    adapter = MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
    )
    both = randomise(UNetMotionModel.from_unet2d(network, adapter), seed, gain=0.7)
    return {"unet": both, "motion_adapter": adapter.eval()}


def _scheduler() -> Any:
    from diffusers import DDIMScheduler

    linear = {**SD_NOISE, "beta_schedule": "linear"}
    return DDIMScheduler(**linear, clip_sample=False, set_alpha_to_one=False)


def _animatediff(seed: int) -> Any:
    from diffusers import AnimateDiffPipeline

    network = unet(seed, cross_attention_dim=32, attention_head_dim=2)
    return AnimateDiffPipeline(
        vae=vae(seed),
        text_encoder=clip_encoder(seed),
        tokenizer=clip_tokenizer(),
        **_motion(network, seed),
        scheduler=_scheduler(),
    )


def _animatediff_xl(seed: int) -> Any:
    from diffusers import AnimateDiffSDXLPipeline

    network = unet(
        seed,
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )
    return AnimateDiffSDXLPipeline(
        vae=vae(seed),
        text_encoder=clip_encoder(seed),
        text_encoder_2=clip_encoder(seed + 1, projected=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        **_motion(network, seed),
        scheduler=_scheduler(),
        force_zeros_for_empty_prompt=False,
    )


def _call(seed: int) -> dict[str, Any]:
    del seed
    return {
        "prompt": PROMPT,
        "height": 16,
        "width": 16,
        "num_frames": 3,
        "output_type": "latent",
        "guidance_scale": 5.0,
        "negative_prompt": NEGATIVE,
    }


def _row(name: str, make: Any) -> Variant:
    return Variant(name, "AnimateDiff", make, _call, denoiser="unet", output="frames")


add(_row("animatediff", _animatediff), _row("animatediff-xl", _animatediff_xl))
