"""The six basic tiny pipelines of `w2sdiff.testing` by their short names, and LoRAs for them.

``build(family)`` gives a stock pipeline, so ``pipe("a prompt")`` works; ``call_kwargs(family)``
gives arguments for a fast, deterministic call that returns latents. Weights are drawn from a
generator of their own: the global random state is untouched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from w2sdiff.testing import VARIANTS
from w2sdiff.testing.parts import (
    SD_NOISE,
    byte_symbols,
    clip_encoder,
    clip_tokenizer,
    randomise,
    t5_encoder,
    t5_tokenizer,
    vae,
)
from w2sdiff.testing.variants import NEGATIVE, PROMPT

__all__ = [
    "FAMILIES",
    "NEGATIVE",
    "PROMPT",
    "SD_NOISE",
    "add_lora",
    "build",
    "build_denoiser",
    "byte_symbols",
    "call_kwargs",
    "clip_encoder",
    "clip_tokenizer",
    "denoiser",
    "denoiser_name",
    "latents",
    "lora_file",
    "randomise",
    "t5_encoder",
    "t5_tokenizer",
    "vae",
]

FAMILIES = ("sd", "sdxl", "sd3", "flux", "flux-true-cfg", "pixart")


def build(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A stock tiny pipeline of `family` (one of `FAMILIES`), the same weights for the same seed."""
    return VARIANTS[family].build(seed, dtype)


def call_kwargs(family: str, *, steps: int = 4, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Arguments for ``pipe(**call_kwargs(family))``: latents out, a fresh generator each time;
    `changes` win.
    """
    return VARIANTS[family].call(steps=steps, seed=seed, **changes)


def latents(pipe: Any, family: str, **changes: Any) -> Tensor:
    """The latents of one call with `call_kwargs`."""
    with torch.no_grad():
        return pipe(**call_kwargs(family, **changes)).images


def denoiser_name(family: str) -> str:
    """The attribute of the pipeline that holds the denoiser."""
    return VARIANTS[family].denoiser


def denoiser(pipe: Any, family: str) -> nn.Module:
    """The pipeline's denoiser."""
    return getattr(pipe, denoiser_name(family))


def build_denoiser(family: str, seed: int = 1) -> nn.Module:
    """Another denoiser of the same architecture with other weights: the other half of a checkpoint
    pair.
    """
    return denoiser(build(family, seed), family)


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
