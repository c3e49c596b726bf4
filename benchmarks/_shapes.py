"""What the benchmarks on the embedded world share: arms, pictures from shared noise, intervals."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from scipy.stats import binomtest

import w2sdiff
from w2sdiff import attach
from w2sdiff.generate import LoraFile, Model, Settings, find_model
from w2sdiff.generate.pipeline import load_pipeline
from w2sdiff.methods import Method
from w2sdiff.shapes.oracle import Verdict, judge_all
from w2sdiff.shapes.render import IMAGE_SIZE
from w2sdiff.shapes.world import CATEGORIES, Caption, completions, is_held_out

RESULTS = Path(__file__).parent / "results"
BATCH = 64
DRAWS = 4000  # bootstrap resamples
VERDICTS = ("better", "worse")


@dataclass(frozen=True)
class Arm:
    """One way to make the pictures."""

    method: Method
    steps: int
    guidance_scale: float

    @property
    def evaluations(self) -> int:
        """Single-branch network evaluations per picture."""
        return self.method.cost(self.steps, self.guidance_scale)

    @classmethod
    def within(cls, budget: int, method: Method, guidance_scale: float) -> Arm:
        """The most steps that cost no more than `budget` evaluations."""
        steps = next(n for n in range(budget, 0, -1) if method.cost(n, guidance_scale) <= budget)
        return cls(method, steps, guidance_scale)

    def to_json(self, model: Model) -> dict[str, Any]:
        return {
            "method": model.portable(self.method.to_json()),
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "evaluations": self.evaluations,
        }


def load(name: str, loras: Sequence[str] = ()) -> tuple[Model, Any]:
    """A shapes model by name or folder, and its stock pipeline with its LoRAs at weight 0.

    Nobody wears a LoRA that is not in its role.
    """
    model = find_model(name)
    files = {lora: model.lora(lora) for lora in loras}
    if missing := [lora for lora, file in files.items() if file is None]:
        raise SystemExit(f"{name} comes without the LoRAs {', '.join(missing)}")
    worn = tuple(LoraFile(lora, file, weight=0.0) for lora, file in files.items() if file)
    settings = Settings(steps=1, guidance=1.0, loras=worn).on_device(small=True)
    return model, load_pipeline(model, settings)


def options_of(pipe: Any, arm: Arm) -> dict[str, Any]:
    """What the pipeline is called with, besides prompts and generators."""
    options: dict[str, Any] = {
        "num_inference_steps": arm.steps,
        "guidance_scale": arm.guidance_scale,
    }
    if hasattr(pipe, "transformer"):
        # PixArt would snap so few pixels to larger sizes, and pad captions to 300 tokens (masked,
        # not free).
        options["use_resolution_binning"] = False
        options["max_sequence_length"] = min(300, pipe.tokenizer.model_max_length)
    return options


def draw(pipe: Any, captions: Sequence[str], arm: Arm, *, seed: int) -> tuple[np.ndarray, float]:
    """Pictures uint8 [n, H, W, 3] of the network's own size, and seconds.

    Picture i starts from the noise of its own CPU generator, a function of (seed, i) alone: all
    arms share it.
    """
    images, began = [], time.perf_counter()
    with attach(pipe, arm.method) as run:
        for start in range(0, len(captions), BATCH):
            texts = list(captions[start : start + BATCH])
            generators = [
                torch.Generator().manual_seed((seed << 32) + start + i) for i in range(len(texts))
            ]
            drawn = pipe(
                texts, generator=generators, output_type="np", **options_of(pipe, arm)
            ).images
            images.append(np.rint(255 * np.asarray(drawn)).astype(np.uint8))
            assert run.stats.evaluations == arm.evaluations, (run.stats, arm)
    return np.concatenate(images), time.perf_counter() - began


def obeyed(pipe: Any, captions: list[Caption], arm: Arm, seed: int) -> tuple[np.ndarray, float]:
    """Whether each picture obeys its caption, bool [n], and seconds."""
    images, seconds = draw(pipe, [c.text for c in captions], arm, seed=seed)
    return judged(images, captions), seconds


def judged(images: np.ndarray, captions: Sequence[Caption]) -> np.ndarray:
    """Whether each picture obeys its caption, bool [n]."""
    return np.array([verdict.obeyed for verdict in verdicts(images, captions)])


def verdicts(images: np.ndarray, captions: Sequence[Caption]) -> list[Verdict]:
    """What the oracle says; it reads larger pictures as means of squares of pixels."""
    times = images.shape[1] // IMAGE_SIZE
    if times > 1:
        cells = images.reshape(len(images), IMAGE_SIZE, times, IMAGE_SIZE, times, 3)
        images = np.rint(cells.mean((2, 4))).astype(np.uint8)
    return judge_all(images, captions)


def colours_right(verdict: Verdict, caption: Caption) -> bool:
    """Whether there are as many objects as demanded, in the colours demanded.

    Shape and place aside: a lower bar, for networks whose objects are misshapen.
    """
    seen, demands = verdict.objects, caption.demands
    return len(seen) == len(demands) and any(
        all(d.colour in (None, s.colour) for d, s in zip(demands, order, strict=True))
        for order in itertools.permutations(seen)
    )


def by_part(hits: np.ndarray, captions: list[Caption]) -> dict:
    """Shares per category, and of the combinations that training never saw."""
    parts = {name: [c.category == name for c in captions] for name in CATEGORIES}
    parts["held out"] = [is_held_out(completions(c)[0]) for c in captions]
    return {
        name: proportion(hits[mask].sum(), sum(mask)) for name, mask in parts.items() if any(mask)
    }


class Resamples:
    """Bootstrap resamples of n items, the same for every arm: what is compared stays paired."""

    def __init__(self, n: int, seed: int = 0) -> None:
        counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS)
        self._weights = counts.astype(np.float32)  # [draws, n]

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum of `values` [n] or [n, k] in each resample: [draws] or [draws, k]."""
        return self._weights @ np.asarray(values, np.float32)


def interval(values: np.ndarray) -> list[float]:
    """The 95% percentile interval of bootstrap values."""
    return rounded(np.quantile(values, [0.025, 0.975]))


def compared(difference: float, again: np.ndarray, unit: str, words: tuple[str, str]) -> dict:
    """A paired difference in words that are the same for wins and losses.

    `words` are for a difference that is surely above zero, and surely below it.
    """
    low, high = interval(again)
    verdict = words[0] if low > 0 else words[1] if high < 0 else "no difference seen"
    # A true difference of this size would be seen four times out of five.
    detectable = round(2.8 * float(again.std()), 4)
    return {
        unit: round(float(difference), 4),
        "interval": [low, high],
        "detectable": detectable,
        "verdict": verdict,
    }


def minus(hits: np.ndarray, rival: np.ndarray, again: Resamples) -> dict:
    """The paired difference of two arms: better, worse, or no difference seen."""
    difference = hits.astype(float) - rival
    resampled = again.sums(difference) / len(hits)
    return {
        **compared(difference.mean(), resampled, "difference", VERDICTS),
        "wins": int((difference > 0).sum()),
        "losses": int((difference < 0).sum()),
    }


def proportion(successes: int, n: int) -> dict:
    """A share with its 95% Wilson interval."""
    ends = binomtest(int(successes), n).proportion_ci(method="wilson")
    return {"share": round(successes / n, 4), "interval": rounded(ends), "n": n}


def rounded(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]


def versions() -> dict[str, str]:
    return {
        "w2sdiff": w2sdiff.__version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def write(result: dict, path: Path) -> None:
    """The result as a file, and as the last line of standard output."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result), flush=True)
