"""LoRAs from a finished denoiser: a narrower style, and a pair with a known bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from w2sdiff.errors import InputError
from w2sdiff.shapes.train.denoiser import pool_loss
from w2sdiff.shapes.train.loop import Schedule, train
from w2sdiff.shapes.train.networks import ENCODERS, build_denoiser, load_text
from w2sdiff.shapes.train.pool import conditions, make_pool

__all__ = [
    "COMMON",
    "LORAS",
    "OF_KIND",
    "POOL_SIZE",
    "RARE",
    "SCHEDULE",
    "LoraData",
    "lora_folder",
    "run_name",
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

OF_KIND = {"unet": tuple(LORAS), "dit": ("small",)}
"""Which of them are trained on which denoiser."""


def run_name(kind: str, name: str) -> str:
    """Return what the run of a LoRA is called."""
    return name if kind == "unet" else f"{kind}-{name}"


def lora_folder(kind: str, out: Path) -> Path:
    """Return where the LoRAs of a denoiser are written."""
    return out / ("loras" if kind == "unet" else f"{kind}-loras")


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
    kind: str = "unet",
    seed: int = 0,
    schedule: Schedule = SCHEDULE,
    pool_size: int = POOL_SIZE,
    device: str = "cpu",
) -> None:
    """Train one of `LORAS` on the finished denoiser found in `out`; write it to `lora_folder`.

    The file has the layout that diffusers' `save_lora_weights` gives it: PEFT's names, behind the
    name of the network in the pipeline. Raises `InputError` if there is no finished denoiser.
    """
    from diffusers import AutoencoderKL
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import get_peft_model_state_dict

    data = LORAS[name]
    torch.manual_seed(seed)
    denoiser: Any = build_denoiser(kind)
    denoiser.load_state_dict(strong_weights(kind, out))
    denoiser.requires_grad_(False)
    # As the UNet's own `add_adapter` does; PixArt's transformer has none in diffusers 0.42.
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS)
    inject_adapter_in_model(config, denoiser)
    denoiser.to(device)
    pool = make_pool(
        AutoencoderKL.from_pretrained(out / "vae").to(device),
        pool_size,
        out / "pools" / f"{name}.safetensors",
        seed=POOL_SEED + seed,
        style=data.style,
        open_share=data.open_share,
        colour_weights=data.colour_weights or None,
    )
    tokenizer, encoder = load_text(kind, out)
    text = conditions(ENCODERS[kind], tokenizer, encoder.to(device), pool.captions)
    loss = pool_loss(kind, denoiser, pool, text, batch=schedule.batch, compiled=False)
    train(denoiser, loss, schedule, out / "runs" / run_name(kind, name), seed=seed)
    # As it is: converted to diffusers' older names, which only attention has, half would not load.
    layers = get_peft_model_state_dict(denoiser)
    part = {"unet": "unet", "dit": "transformer"}[kind]
    folder = lora_folder(kind, out)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {f"{part}.{n}": t.half().cpu().contiguous() for n, t in layers.items()},
        folder / f"{name}.safetensors",
        metadata={"format": "pt"},
    )
