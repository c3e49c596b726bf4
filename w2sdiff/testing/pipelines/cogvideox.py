"""CogVideoX with DDIM and with its own DPM, and with dynamic guidance."""

from __future__ import annotations

from typing import Any

from w2sdiff.testing.parts import SD_NOISE, randomise, t5_encoder, t5_tokenizer
from w2sdiff.testing.variants import NEGATIVE, PROMPT, Variant, add


def _cogvideox(seed: int, scheduler: str) -> Any:
    import diffusers

    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=32,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=48,
        use_rotary_positional_embeddings=True,
    )
    noise = {name: SD_NOISE[name] for name in ("beta_start", "beta_end", "beta_schedule")}
    return diffusers.CogVideoXPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(seed),
        vae=None,  # videos are not decoded here; without it the factors are 8 and 4
        transformer=randomise(transformer, seed),
        scheduler=getattr(diffusers, scheduler)(
            **noise,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=3.0,
            timestep_spacing="trailing",
            clip_sample=False,
        ),
    )


def _ddim(seed: int) -> Any:
    return _cogvideox(seed, "CogVideoXDDIMScheduler")


def _dpm(seed: int) -> Any:
    return _cogvideox(seed, "CogVideoXDPMScheduler")


def _call(seed: int) -> dict[str, Any]:
    del seed
    return {
        "prompt": PROMPT,
        "height": 64,
        "width": 64,
        "num_frames": 9,
        "output_type": "latent",
        "guidance_scale": 6.0,
        "negative_prompt": NEGATIVE,
        "max_sequence_length": 48,
    }


def _dynamic(seed: int) -> dict[str, Any]:
    return {**_call(seed), "use_dynamic_cfg": True}


add(
    Variant("cogvideox", "CogVideoX", _ddim, _call, output="frames"),
    Variant("cogvideox-dpm", "CogVideoX", _dpm, _call, output="frames"),
    Variant(
        "cogvideox-dynamic",
        "CogVideoX",
        _ddim,
        _dynamic,
        output="frames",
        constant={"use_dynamic_cfg": False},
    ),
)
