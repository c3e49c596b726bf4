"""The picture codec that both models share: a small stock `AutoencoderKL`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from w2sdiff.shapes.train.loop import Schedule, train
from w2sdiff.shapes.world import batch

__all__ = ["LATENT_CHANNELS", "SCHEDULE", "build", "decode", "encode", "to_pixels", "train_vae"]

LATENT_CHANNELS = 8
SCHEDULE = Schedule(steps=3000, batch=16, lr=2e-3, warmup=100, cooldown=0.4, ema=0.995)
KL_WEIGHT = 1e-4  # per latent number; enough to make the decoder forgive small errors, no more
DATA_SEED = 101


def build() -> Any:
    """Return a fresh `AutoencoderKL`: 64 × 64 pixels to 8 × 8 latents of 8 channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def to_pixels(images: Any, device: torch.device | str = "cpu") -> Tensor:
    """Return uint8 pictures [n, 64, 64, 3] as a float tensor [n, 3, 64, 64] in -1..1."""
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()
    scaled: Tensor = pixels / 127.5 - 1
    return scaled


@torch.no_grad()
def encode(vae: Any, images: Any) -> Tensor:
    """Return the latents [n, 8, 8, 8] (posterior mode, unit variance) of uint8 pictures."""
    mode: Tensor = vae.encode(to_pixels(images, vae.device)).latent_dist.mode()
    latents: Tensor = mode * vae.config.scaling_factor
    return latents


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Any:
    """Return uint8 pictures [n, 64, 64, 3] of latents [n, 8, 8, 8]."""
    pixels = vae.decode(latents.to(vae.device) / vae.config.scaling_factor).sample
    pixels = (pixels.clamp(-1, 1) + 1) * 127.5
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def train_vae(
    out: Path,
    *,
    seed: int = 0,
    schedule: Schedule = SCHEDULE,
    device: str = "cpu",
    compiled: bool = True,
) -> Any:
    """Train the codec and save it as a stock folder, `out/vae`.

    The loss is |error| + 2 error² per pixel and the usual KL term. Afterwards the latents'
    mean and spread, channel by channel, are folded into the 1 × 1 convolutions on either side of
    them, so that the latents have mean 0 and variance 1 and `scaling_factor` is 1.
    """
    torch.manual_seed(seed)
    vae = build().to(device)
    run = torch.compile(vae_loss) if compiled else vae_loss

    def loss(step: int, generator: torch.Generator) -> Tensor:
        start = step * schedule.batch
        _, images = batch(DATA_SEED + seed, schedule.batch, start=start)
        pixels = to_pixels(images, device)
        noise = torch.randn(schedule.batch, LATENT_CHANNELS, 8, 8, generator=generator)
        value: Tensor = run(vae, pixels, noise.to(device))
        return value

    train(vae, loss, schedule, out / "runs" / "vae", seed=seed)
    _normalise(vae, seed)
    vae.half().float()  # what the files hold is what the denoisers are trained on
    vae.eval().save_pretrained(out / "vae", safe_serialization=True)
    return vae


def vae_loss(vae: Any, pixels: Tensor, noise: Tensor) -> Tensor:
    """Return the training loss of one batch of pixels [n, 3, 64, 64]."""
    posterior = vae.encode(pixels).latent_dist
    error = vae.decode(posterior.mean + posterior.std * noise).sample - pixels
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar)
    value: Tensor = (error.abs() + 2 * error**2).mean() + KL_WEIGHT * kl.mean()
    return value


@torch.no_grad()
def _normalise(vae: Any, seed: int) -> None:
    """Fold (z - mean) / std into `quant_conv` and its inverse into `post_quant_conv`."""
    _, images = batch(DATA_SEED + seed + 1, 2048)
    latents = torch.cat([encode(vae, images[i : i + 256]) for i in range(0, 2048, 256)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    before: nn.Conv2d = vae.quant_conv
    after: nn.Conv2d = vae.post_quant_conv
    assert before.bias is not None
    assert after.bias is not None
    channels = LATENT_CHANNELS
    before.weight[:channels] /= std[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / std
    before.bias[channels:] -= 2 * std.log()  # the log-variance of the same posterior
    after.bias += (after.weight[:, :, 0, 0] * mean).sum(1)
    after.weight *= std[None, :, None, None]
