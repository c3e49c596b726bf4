"""LoRAs from the finished UNet: a narrower style, and a pair with a known bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from w2sdiff.errors import InputError
from w2sdiff.shapes.train.denoiser import pool_loss
from w2sdiff.shapes.train.loop import Schedule, train
from w2sdiff.shapes.train.networks import ENCODERS, build_denoiser, load_text
from w2sdiff.shapes.train.pool import conditions, make_pool

__all__ = [
    "COMMON",
    "LORAS",
    "POOL_SIZE",
    "RARE",
    "SCHEDULE",
    "LoraData",
    "strong_weights",
    "train_lora",
]

RANK = 4
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
SCHEDULE = Schedule(steps=300, batch=32, lr=3e-3, warmup=20, cooldown=0.5, ema=0.98)
POOL_SIZE = 6144
POOL_SEED = 501

COMMON, RARE = ("red", "yellow", "green"), ("cyan", "blue", "pink")


@dataclass(frozen=True)
class LoraData:
    """What a LoRA is trained on: arguments of `world.batch`."""

    style: str = "any"
    open_share: float = 0.15
    colour_weights: Mapping[str, float] = field(default_factory=dict)


# The pair repeats the published CIFAR-10 experiment (Bai et al. 2025, arXiv:2502.00473: cars and
# horses, 2 : 1 for the strong model and 10 : 1 for the weak one) with colours, whose truth is even.
LORAS = {
    "small": LoraData(style="small"),
    "balance-strong": LoraData(open_share=0.5, colour_weights=dict.fromkeys(RARE, 1 / 2)),
    "balance-weak": LoraData(open_share=0.5, colour_weights=dict.fromkeys(RARE, 1 / 10)),
}


def strong_weights(kind: str, out: Path) -> dict[str, torch.Tensor]:
    """Return the averaged weights of a finished run; raises `InputError` if there is none."""
    files = sorted((out / "runs" / kind).glob("ema-*.safetensors"))
    if not files:
        raise InputError(f"no trained {kind} in {out}: run the stage {kind!r} first")
    weights: dict[str, torch.Tensor] = load_file(files[-1])
    return weights


def train_lora(
    name: str,
    out: Path,
    *,
    seed: int = 0,
    schedule: Schedule = SCHEDULE,
    pool_size: int = POOL_SIZE,
    device: str = "cpu",
) -> None:
    """Train one of `LORAS` on the finished UNet found in `out`; write `out/loras/<name>`.

    The file is what `StableDiffusionPipeline.save_lora_weights` writes. Raises `InputError` if
    there is no finished UNet.
    """
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    data = LORAS[name]
    torch.manual_seed(seed)
    unet: Any = build_denoiser("unet")
    unet.load_state_dict(strong_weights("unet", out))
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
    unet.to(device)
    pool = make_pool(
        AutoencoderKL.from_pretrained(out / "vae").to(device),
        pool_size,
        out / "pools" / f"{name}.safetensors",
        seed=POOL_SEED + seed,
        style=data.style,
        open_share=data.open_share,
        colour_weights=data.colour_weights or None,
    )
    tokenizer, encoder = load_text("unet", out)
    text = conditions(ENCODERS["unet"], tokenizer, encoder.to(device), pool.captions)
    loss = pool_loss("unet", unet, pool, text, batch=schedule.batch, compiled=False)
    train(unet, loss, schedule, out / "runs" / name, seed=seed)
    layers = get_peft_model_state_dict(unet)  # as it is: converted to diffusers' older names, which
    StableDiffusionPipeline.save_lora_weights(  # only attention has, half of it would not load
        out / "loras",
        unet_lora_layers={n: t.half().cpu().contiguous() for n, t in layers.items()},
        weight_name=f"{name}.safetensors",
    )
