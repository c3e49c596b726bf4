"""Training a denoiser on the pool of latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2sdiff.shapes.train.evaluate import score
from w2sdiff.shapes.train.loop import Schedule, train
from w2sdiff.shapes.train.networks import (
    ENCODERS,
    assemble,
    build_denoiser,
    build_scheduler,
    load_text,
)
from w2sdiff.shapes.train.pool import Conditions, Pool, conditions, make_pool
from w2sdiff.shapes.world import evaluation_captions

__all__ = ["POOL_SIZE", "SCHEDULES", "Diffusion", "run_denoiser", "train_denoiser"]

SCHEDULES = {
    "unet": Schedule(steps=6_400, batch=64, lr=1e-3, warmup=300, keep_every=500, watch_every=1600),
    "dit": Schedule(
        steps=6_000,
        batch=64,
        lr=1.5e-3,
        warmup=300,
        cooldown=0.3,
        muon="transformer_blocks",
        keep_every=500,
        watch_every=2000,
    ),
}
POOL_SIZE = 81_920
POOL_SEED = 301
DROP_CAPTION = 0.1
WATCH_CAPTIONS, WATCH_SEED, WATCH_GUIDANCE = 120, 7, 3.0


class Diffusion:
    """Noise levels and the loss of a denoiser, as its stock scheduler defines them.

    Times are drawn so that log(alpha²/sigma²) is normal, as logit-normal times are in rectified
    flow (Esser et al. 2024, arXiv:2403.03206), mixed with uniform ones. The error is that of v =
    alpha noise - sigma x0 (Salimans and Ho 2022, arXiv:2202.00512) whatever the network predicts:
    the error of a predicted noise, divided by alpha, is the error of v (for which the weight is
    limited, since alpha is nearly 0 at the end).
    """

    MEAN, SPREAD = -0.5, 2.0
    UNIFORM_SHARE = 0.2
    LARGEST_WEIGHT = 20.0

    def __init__(self, scheduler: Any, device: torch.device | str) -> None:
        """Read the noise levels and the kind of prediction from a diffusers scheduler."""
        squared: Tensor = scheduler.alphas_cumprod.to(torch.float64)
        self.alpha = squared.sqrt().float().to(device)  # [1000]
        self.sigma = (1 - squared).sqrt().float().to(device)
        self.prediction = scheduler.config.prediction_type
        self._log_snr = (squared / (1 - squared)).log().float()  # falls with the time

    def times(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n timesteps, int64 [n] on the CPU."""
        wanted = self.MEAN + self.SPREAD * torch.randn(n, generator=generator)
        number = len(self._log_snr)
        nearest = torch.searchsorted(-self._log_snr, -wanted).clamp(max=number - 1)
        uniform = torch.randint(number, (n,), generator=generator)
        return torch.where(
            torch.rand(n, generator=generator) < self.UNIFORM_SHARE, uniform, nearest
        )

    def noised(self, x0: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return alpha x0 + sigma noise, [n, c, h, w]."""
        return self._at(self.alpha, times) * x0 + self._at(self.sigma, times) * noise

    def loss(self, output: Tensor, x0: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return the mean squared error of v, as far as `LARGEST_WEIGHT` allows."""
        alpha, sigma = self._at(self.alpha, times), self._at(self.sigma, times)
        if self.prediction == "v_prediction":
            return ((output - (alpha * noise - sigma * x0)) ** 2).mean()
        weight = (1 / alpha**2).clamp(max=self.LARGEST_WEIGHT)
        return (weight * (output - noise) ** 2).mean()

    @staticmethod
    def _at(table: Tensor, times: Tensor) -> Tensor:
        return table[times][:, None, None, None]


def run_denoiser(kind: str, denoiser: Any, x: Tensor, times: Tensor, text: Conditions) -> Tensor:
    """Call a denoiser as its stock pipeline does."""
    if kind == "unet":
        output = denoiser(x, times, encoder_hidden_states=text.states)
    else:
        output = denoiser(
            x,
            encoder_hidden_states=text.states,
            timestep=times,
            encoder_attention_mask=text.mask,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        )
    predicted: Tensor = output.sample
    return predicted


def pool_loss(
    kind: str, denoiser: Any, pool: Pool, text: Conditions, *, batch: int, compiled: bool
) -> Callable[[int, torch.Generator], Tensor]:
    """Return the loss of one step on random items of the pool; some lose their caption."""
    device = denoiser.device
    diffusion = Diffusion(build_scheduler(kind), device)
    on_gpu = device.type == "cuda"
    latents, caption_of = pool.latents.to(device), pool.caption_of.to(device)

    def predict(x: Tensor, times: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        return run_denoiser(kind, denoiser, x, times, Conditions(states, mask))

    run = torch.compile(predict) if compiled else predict

    def loss(_step: int, generator: torch.Generator) -> Tensor:
        items = torch.randint(len(pool), (batch,), generator=generator)
        drop = torch.rand(batch, generator=generator) < DROP_CAPTION
        times = diffusion.times(batch, generator).to(device)
        noise = torch.randn(batch, *pool.latents.shape[1:], generator=generator).to(device)
        x0 = latents[items.to(device)].float()
        chosen = caption_of[items.to(device)].masked_fill(drop.to(device), 0)
        x = diffusion.noised(x0, noise, times)
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            output = run(x, times, text.states[chosen], text.mask[chosen])
        return diffusion.loss(output.float(), x0, noise, times)

    return loss


def train_denoiser(
    kind: str,
    out: Path,
    *,
    seed: int = 0,
    schedule: Schedule | None = None,
    pool_size: int = POOL_SIZE,
    device: str = "cpu",
    compiled: bool = True,
) -> Any:
    """Train the "unet" or the "dit" with the codec and text encoder found in `out`.

    Returns:
        The denoiser with its averaged weights.
    """
    from diffusers import AutoencoderKL

    schedule = schedule or SCHEDULES[kind]
    torch.manual_seed(seed)
    vae = AutoencoderKL.from_pretrained(out / "vae").to(device)
    pool = make_pool(vae, pool_size, out / "pools" / "all.safetensors", seed=POOL_SEED + seed)
    tokenizer, encoder = load_text(kind, out)
    text = conditions(ENCODERS[kind], tokenizer, encoder.to(device), pool.captions)
    denoiser = build_denoiser(kind).to(device)
    pipe = assemble(kind, out, denoiser)
    captions = [c.text for c in evaluation_captions(WATCH_CAPTIONS, seed=WATCH_SEED)]

    def watch(_step: int) -> dict[str, Any]:
        verdicts = score(pipe, captions, guidance_scale=WATCH_GUIDANCE)
        return {"guidance": WATCH_GUIDANCE, "score": sum(verdicts) / len(verdicts)}

    loss = pool_loss(kind, denoiser, pool, text, batch=schedule.batch, compiled=compiled)
    train(denoiser, loss, schedule, out / "runs" / kind, seed=seed, watch=watch)
    return denoiser.eval()
