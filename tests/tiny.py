"""Tiny REAL diffusers pipelines with random weights: no hub, no download, well under a second each.

``build(family)`` gives a stock pipeline with its own text encoders and byte-level tokenizers, so
``pipe("a prompt")`` works; ``call_kwargs(family)`` gives arguments for a fast, deterministic call
that returns latents. Weights are drawn from a generator of their own (the global random state is
untouched), *every* parameter of the denoiser included: diffusers zero-initialises output layers and
gives norms the identity, and on such a network guidance, prompts and LoRAs would do nothing, so a
test could not fail.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PROMPT = "a red circle left of a blue square"
NEGATIVE = "blurry"
FAMILIES = ("sd", "sdxl", "sd3", "flux", "flux-true-cfg", "pixart")
SD_NOISE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def build(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A stock tiny pipeline of `family` (one of `FAMILIES`), the same weights for the same seed."""
    with _private_randomness(seed):
        pipe = _BUILDERS[family](seed)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(dtype) if dtype != torch.float32 else pipe


def call_kwargs(family: str, *, steps: int = 4, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Arguments for ``pipe(**call_kwargs(family))``: latents out, a fresh generator each time;
    `changes` win.
    """
    kwargs: dict[str, Any] = {
        "prompt": PROMPT,
        "height": 16,
        "width": 16,
        "num_inference_steps": steps,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(seed),
    }
    if family in ("sd", "sdxl", "pixart"):
        kwargs |= {"guidance_scale": 5.0, "negative_prompt": NEGATIVE}
    if family == "sd3":
        kwargs |= {"guidance_scale": 4.0, "negative_prompt": NEGATIVE, "max_sequence_length": 48}
    if family.startswith("flux"):
        kwargs |= {"guidance_scale": 3.5, "max_sequence_length": 48}
    if family == "flux-true-cfg":
        kwargs |= {"true_cfg_scale": 4.0, "negative_prompt": NEGATIVE}
    if family == "pixart":
        kwargs |= {
            "max_sequence_length": 48,
            "use_resolution_binning": False,
            "clean_caption": False,
        }
    return kwargs | changes


def latents(pipe: Any, family: str, **changes: Any) -> Tensor:
    """The latents of one call with `call_kwargs`."""
    with torch.no_grad():
        return pipe(**call_kwargs(family, **changes)).images


def denoiser_name(family: str) -> str:
    """The attribute of the pipeline that holds the denoiser."""
    return "unet" if family in ("sd", "sdxl") else "transformer"


def denoiser(pipe: Any, family: str) -> nn.Module:
    """The pipeline's denoiser."""
    return getattr(pipe, denoiser_name(family))


def build_denoiser(family: str, seed: int = 1) -> nn.Module:
    """Another denoiser of the same architecture with other weights: the other half of a checkpoint
    pair.
    """
    with _private_randomness(seed):
        return denoiser(_BUILDERS[family](seed), family)


# --- LoRA -----------------------------------------------------------------------------------------


def lora_file(
    pipe: Any, family: str, folder: Path, *, seed: int = 0, rank: int = 2, strength: float = 0.5
) -> Path:
    """Write a random LoRA for every attention projection of the denoiser, in the format of
    diffusers, and return the file.
    """
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed + 1000)
    prefix = denoiser_name(family)
    state = {}
    for name, layer in denoiser(pipe, family).named_modules():
        module = getattr(layer, "base_layer", layer)  # below a LoRA that is there already
        if isinstance(module, nn.Linear) and name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            down = (
                torch.randn(rank, module.in_features, generator=generator)
                * module.in_features**-0.5
            )
            up = torch.randn(module.out_features, rank, generator=generator) * rank**-0.5
            state[f"{prefix}.{name}.lora_A.weight"] = down
            state[f"{prefix}.{name}.lora_B.weight"] = strength * up
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"lora-{family}-{seed}.safetensors"
    save_file(state, file)
    return file


def add_lora(pipe: Any, family: str, folder: Path, name: str = "style", **settings: Any) -> Path:
    """Make a LoRA with `lora_file` and load it under the adapter name `name`, as a user would."""
    file = lora_file(pipe, family, folder, **settings)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    return file


# --- weights --------------------------------------------------------------------------------------


@contextmanager
def _private_randomness(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def randomise(module: nn.Module, seed: int, gain: float = 1.0) -> nn.Module:
    """Give every parameter a non-trivial value: matrices keep the variance of their input, norms
    are not the identity.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float32)
            if p.ndim >= 2:
                fan_in = p[0].numel()
                embeds = "embedding" in name or "shared" in name
                p.copy_(noise if embeds else gain * noise * fan_in**-0.5)
            elif name.endswith("weight"):
                p.copy_(1 + 0.2 * noise)
            else:
                p.copy_(0.1 * noise)
    return module.eval()


# --- tokenizers and text encoders -----------------------------------------------------------------


@cache
def _byte_symbols() -> tuple[str, ...]:
    from tokenizers.pre_tokenizers import ByteLevel

    return tuple(sorted(ByteLevel.alphabet()))


@cache
def _clip_tokenizer_folder() -> tempfile.TemporaryDirectory[str]:
    """A byte-level CLIP vocabulary without merges, as the files a checkpoint has: kept until the
    interpreter ends.
    """
    folder = tempfile.TemporaryDirectory(prefix="tiny-clip-")
    symbols = [*_byte_symbols(), *(s + "</w>" for s in _byte_symbols())]
    vocab = {s: i for i, s in enumerate([*symbols, "<|startoftext|>", "<|endoftext|>"])}
    path = Path(folder.name)
    (path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}), encoding="utf-8"
    )
    return folder


def clip_tokenizer() -> Any:
    """A real CLIPTokenizer over single bytes."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(_clip_tokenizer_folder().name)


def t5_tokenizer() -> Any:
    """A byte-level tokenizer with T5's special tokens and its closing ``</s>``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {s: i for i, s in enumerate(["<pad>", "</s>", "<unk>", *_byte_symbols()])}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def clip_encoder(seed: int, width: int = 32, *, projected: bool = False) -> Any:
    """A two-layer CLIP text encoder whose end token is the byte tokenizer's."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    return randomise((CLIPTextModelWithProjection if projected else CLIPTextModel)(config), seed)


def t5_encoder(seed: int, width: int = 32) -> Any:
    """A two-layer T5 encoder over the byte tokenizer."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=3 + len(_byte_symbols()),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    return randomise(T5EncoderModel(config), seed)


def vae(seed: int, latent_channels: int = 4, *, flow: bool = False) -> Any:
    """A two-level AutoencoderKL (scale factor 2); the flow families have no quantising convolutions
    and a shift.
    """
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latent_channels,
        norm_num_groups=2,
        use_quant_conv=not flow,
        use_post_quant_conv=not flow,
        shift_factor=0.05 if flow else None,
        scaling_factor=1.5 if flow else 0.18215,
    )
    return randomise(model, seed)


# --- the families ---------------------------------------------------------------------------------


def _unet(seed: int, **settings: Any) -> Any:
    from diffusers import UNet2DConditionModel

    common: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return randomise(UNet2DConditionModel(**common | settings), seed)


def _sd(seed: int) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae(seed),
        text_encoder=clip_encoder(seed),
        tokenizer=clip_tokenizer(),
        unet=_unet(seed, cross_attention_dim=32, attention_head_dim=2),
        scheduler=DDIMScheduler(**SD_NOISE, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(seed: int) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    unet = _unet(
        seed,
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )
    return StableDiffusionXLPipeline(
        vae=vae(seed),
        text_encoder=clip_encoder(seed),
        text_encoder_2=clip_encoder(seed + 1, projected=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(**SD_NOISE, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def _sd3(seed: int) -> Any:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
    )
    return StableDiffusion3Pipeline(
        vae=vae(seed, flow=True),
        text_encoder=clip_encoder(seed, 16, projected=True),
        text_encoder_2=clip_encoder(seed + 1, 16, projected=True),
        text_encoder_3=t5_encoder(seed),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=t5_tokenizer(),
        transformer=randomise(transformer, seed),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _flux(seed: int) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return FluxPipeline(
        vae=vae(seed, flow=True),
        text_encoder=clip_encoder(seed),
        text_encoder_2=t5_encoder(seed),
        tokenizer=clip_tokenizer(),
        tokenizer_2=t5_tokenizer(),
        transformer=randomise(transformer, seed),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
    )


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


_BUILDERS: dict[str, Callable[[int], Any]] = {
    "sd": _sd,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "flux": _flux,
    "flux-true-cfg": _flux,
    "pixart": _pixart,
}
