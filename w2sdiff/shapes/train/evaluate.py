"""Pictures from a stock pipeline, many at a time, and what the oracle says of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from w2sdiff.shapes.oracle import judge_all
from w2sdiff.shapes.train.text import MAX_TOKENS

__all__ = ["STEPS", "pictures", "score", "wilson"]

STEPS = 20
BATCH = 60


def pictures(
    pipe: Any,
    captions: Sequence[str],
    *,
    guidance_scale: float,
    num_inference_steps: int = STEPS,
    first_seed: int = 0,
) -> Iterator[NDArray[np.uint8]]:
    """Yield uint8 batches [n, 64, 64, 3], one picture per caption.

    Picture i starts from the noise of its own CPU generator, seeded `first_seed + i`, so that
    any two models are compared on the same noise.
    """
    pipe.set_progress_bar_config(disable=True)
    # Padding is masked in the transformer, so a short sequence is the same and four times faster.
    extra = (
        {"use_resolution_binning": False, "max_sequence_length": MAX_TOKENS}
        if hasattr(pipe, "transformer")
        else {}
    )
    for start in range(0, len(captions), BATCH):
        texts = list(captions[start : start + BATCH])
        seeds = range(first_seed + start, first_seed + start + len(texts))
        images = pipe(
            texts,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            generator=[torch.Generator().manual_seed(s) for s in seeds],
            output_type="np",
            **extra,
        ).images
        yield np.rint(np.asarray(images) * 255).astype(np.uint8)


def score(
    pipe: Any,
    captions: Sequence[str],
    *,
    guidance_scale: float,
    num_inference_steps: int = STEPS,
    first_seed: int = 0,
) -> list[bool]:
    """Return, for each caption, whether the picture made from it obeys it."""
    made = pictures(
        pipe,
        captions,
        guidance_scale=guidance_scale,
        num_inference_steps=num_inference_steps,
        first_seed=first_seed,
    )
    return [v.obeyed for v in judge_all(np.concatenate(list(made)), list(captions))]


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95% interval of a proportion (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, z * z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
