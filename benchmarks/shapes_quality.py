"""How often the embedded checkpoints obey their captions, judged by the exact oracle.

For each checkpoint: a sweep of guidance scales for the strong denoiser on tuning captions, then, on
other captions (a fifth of them held-out combinations), strong and weak at the best scale and at
scale 1, per category, with 95% intervals (Wilson), and the paired difference strong - weak.
Every arm starts from the same noise, drawn per picture on the CPU.

    python benchmarks/shapes_quality.py [--model shapes-unet] [--captions 400]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from w2sdiff.shapes import checkpoint_path
from w2sdiff.shapes.train.evaluate import STEPS, score, wilson
from w2sdiff.shapes.world import CATEGORIES, completions, evaluation_captions, is_held_out

RESULTS = Path(__file__).parent / "results" / "shapes_quality.json"
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
TUNING_SEED, EVALUATION_SEED = 11, 12
FIRST_NOISE = {"tuning": 100_000, "evaluation": 200_000}


def load(folder: Path, role: str):
    """Return the stock pipeline of a checkpoint folder, with its strong or its weak denoiser."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder)
    name = "transformer" if hasattr(pipe, "transformer") else "unet"
    if role == "weak":
        kind = type(getattr(pipe, name))
        pipe.register_modules(**{name: kind.from_pretrained(folder / f"{name}_weak")})
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")


def figures(obeyed: list[bool], captions: list) -> dict:
    """Return share, interval and number of captions: of all, per category, held out and seen."""
    held_out = [is_held_out(completions(c)[0]) for c in captions]
    groups = {"all": [True] * len(captions), "held out": held_out}
    groups["seen"] = [not h for h in held_out]
    groups |= {name: [c.category == name for c in captions] for name in CATEGORIES}
    found = {}
    for name, members in groups.items():
        ours = [o for o, member in zip(obeyed, members, strict=True) if member]
        low, high = wilson(sum(ours), len(ours))
        found[name] = {
            "obeyed": round(sum(ours) / max(1, len(ours)), 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "n": len(ours),
        }
    return found


def paired(strong: list[bool], weak: list[bool]) -> dict:
    """Return the mean difference over captions, with its 95% interval (normal, paired)."""
    difference = np.array(strong, float) - np.array(weak, float)
    half = 1.96 * difference.std(ddof=1) / len(difference) ** 0.5
    return {
        "difference": round(float(difference.mean()), 4),
        "half_width": round(float(half), 4),
    }


def evaluate(folder: Path, *, tuning: int, captions: int, scales: tuple[float, ...]) -> dict:
    """Sweep, choose, evaluate."""
    started = time.monotonic()
    pipes = {role: load(folder, role) for role in ("strong", "weak")}
    tune_on = [c.text for c in evaluation_captions(tuning, seed=TUNING_SEED)]
    sweep = {}
    for scale in scales:
        obeyed = score(
            pipes["strong"], tune_on, guidance_scale=scale, first_seed=FIRST_NOISE["tuning"]
        )
        low, high = wilson(sum(obeyed), tuning)
        sweep[str(scale)] = {"obeyed": sum(obeyed) / tuning, "low": low, "high": high}
        print(f"{folder.name} strong, guidance {scale:g}: {sum(obeyed) / tuning:.3f}", flush=True)
    best = max(scales, key=lambda scale: sweep[str(scale)]["obeyed"])

    asked = evaluation_captions(captions, seed=EVALUATION_SEED)
    texts = [c.text for c in asked]
    found: dict = {"strong": {}, "weak": {}}
    verdicts: dict = {}
    for role, pipe in pipes.items():
        for scale in sorted({1.0, best}):
            obeyed = score(pipe, texts, guidance_scale=scale, first_seed=FIRST_NOISE["evaluation"])
            verdicts[role, scale] = obeyed
            found[role][str(scale)] = figures(obeyed, asked)
            print(
                f"{folder.name} {role}, guidance {scale:g}: {found[role][str(scale)]['all']}",
                flush=True,
            )
    return {
        "num_inference_steps": STEPS,
        "scheduler": type(pipes["strong"].scheduler).__name__,
        "tuning": {"captions": tuning, "seed": TUNING_SEED, "sweep": sweep},
        "best_guidance_scale": best,
        "evaluation": {"captions": captions, "seed": EVALUATION_SEED, **found},
        "strong_minus_weak": {
            str(scale): paired(verdicts["strong", scale], verdicts["weak", scale])
            for scale in sorted({1.0, best})
        },
        "seconds": round(time.monotonic() - started),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help="a name or a folder (default: both)")
    parser.add_argument("--captions", type=int, default=400)
    parser.add_argument("--tuning", type=int, default=160)
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    for model in arguments.model or ["shapes-unet", "shapes-dit"]:
        folder = Path(model) if Path(model).is_dir() else checkpoint_path(model)
        found = evaluate(
            folder,
            tuning=arguments.tuning,
            captions=arguments.captions,
            scales=tuple(arguments.scales),
        )
        # Read again just before writing: two models may be evaluated side by side.
        known = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
        known[folder.name] = found
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        arguments.results.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
