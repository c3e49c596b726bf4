"""The two denoisers, their schedulers, and the stock pipelines around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from w2sdiff.shapes.train.text import MAX_TOKENS, WIDTH
from w2sdiff.shapes.train.vae import LATENT_CHANNELS

__all__ = ["ENCODERS", "NAMES", "assemble", "build_denoiser", "build_scheduler", "load_text"]

NAMES = {"unet": "shapes-unet", "dit": "shapes-dit"}
ENCODERS = {"unet": "clip", "dit": "t5"}


def build_denoiser(kind: str) -> Any:
    """Return a fresh `UNet2DConditionModel` ("unet") or `PixArtTransformer2DModel` ("dit")."""
    if kind == "unet":
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel(
            sample_size=8,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            block_out_channels=(48, 96),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=4,  # the number of heads, under its historical name
            norm_num_groups=16,
        )
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=6,
        num_attention_heads=4,
        attention_head_dim=32,
        cross_attention_dim=128,
        caption_channels=WIDTH,
        norm_num_groups=8,
        interpolation_scale=1,
        use_additional_conditions=False,
    )


def build_scheduler(kind: str) -> Any:
    """Return the scheduler that people know from the model's big relative."""
    if kind == "unet":  # Stable Diffusion's
        from diffusers import DDIMScheduler

        return DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
    from diffusers import DPMSolverMultistepScheduler  # PixArt-Sigma's

    return DPMSolverMultistepScheduler(
        beta_start=0.0001,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        algorithm_type="dpmsolver++",
        solver_order=2,
    )


def load_text(kind: str, out: Path) -> tuple[Any, Any]:
    """Return the tokenizer and text encoder of a denoiser's kind, as trained into `out`."""
    import torch
    import transformers

    tokenizer_class, encoder_class = {
        "clip": ("CLIPTokenizer", "CLIPTextModel"),
        "t5": ("T5Tokenizer", "T5EncoderModel"),
    }[ENCODERS[kind]]
    folder = out / "text" / ENCODERS[kind]
    tokenizer = getattr(transformers, tokenizer_class).from_pretrained(folder / "tokenizer")
    encoder = getattr(transformers, encoder_class).from_pretrained(
        folder / "text_encoder", dtype=torch.float32
    )
    tokenizer.model_max_length = MAX_TOKENS
    return tokenizer, encoder.eval()


def assemble(kind: str, out: Path, denoiser: Any) -> Any:
    """Return the stock pipeline of a denoiser with the codec and text encoder found in `out`."""
    from diffusers import AutoencoderKL, PixArtSigmaPipeline, StableDiffusionPipeline

    tokenizer, encoder = load_text(kind, out)
    shared = {
        "vae": AutoencoderKL.from_pretrained(out / "vae").to(denoiser.device),
        "tokenizer": tokenizer,
        "text_encoder": encoder.to(denoiser.device),
        "scheduler": build_scheduler(kind),
    }
    if kind == "dit":
        return PixArtSigmaPipeline(transformer=denoiser, **shared)
    return StableDiffusionPipeline(
        unet=denoiser,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **shared,
    )
