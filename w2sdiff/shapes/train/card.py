"""Model cards, written from the logs of the training and the figures of the evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from w2sdiff.errors import InputError
from w2sdiff.shapes.train import denoiser, lora, text, vae
from w2sdiff.shapes.train.clip import NAME as JUDGE
from w2sdiff.shapes.train.clip_card import BENCHMARK, clip_card
from w2sdiff.shapes.train.export import WEAK_STEPS
from w2sdiff.shapes.train.loop import Schedule
from w2sdiff.shapes.train.networks import ENCODERS, NAMES

__all__ = ["parameter_counts", "write_cards"]

_ROWS = ("all", "single", "counting", "colours", "position", "seen", "held out")


def write_cards(out: Path, evaluation: Path | None = None) -> list[Path]:
    """Write README.md into each folder exported to `out`; return the files.

    Args:
        out: the training folder, with its logs.
        evaluation: what `benchmarks/shapes_quality.py` wrote, or, for the card of the judge
            alone, `benchmarks/shapes_clip.py`; without it the cards say that no figures are known.

    Raises:
        InputError: nothing was exported, or the evaluation file is missing.
    """
    if evaluation is not None and not evaluation.is_file():
        raise InputError(f"no evaluation at {evaluation}: run the benchmark first")
    figures = json.loads(evaluation.read_text()) if evaluation else {}
    of_judge = figures.get("benchmark") == BENCHMARK
    written = []
    for kind, name in NAMES.items():
        if not of_judge and (out / name / "model_index.json").is_file():
            file = out / name / "README.md"
            file.write_text(_card(kind, out, figures.get(name)), encoding="utf-8")
            written.append(file)
    if (out / JUDGE / "open_clip_config.json").is_file() and (of_judge or not figures):
        file = out / JUDGE / "README.md"
        file.write_text(clip_card(out, figures or None), encoding="utf-8")
        written.append(file)
    if not written:
        raise InputError(f"nothing exported to {out}: run the stage 'export' first")
    return written


def parameter_counts(folder: Path) -> dict[str, int]:
    """Return the number of parameters of each part of a stock folder, by subfolder."""
    from safetensors import safe_open

    from w2sdiff.attention.adapter import FILE

    counts = {}
    for file in sorted(folder.glob("*/*.safetensors")):
        if file.parent.name == "noise_models":
            continue  # no part of the folder's own training; they have a card of their own
        with safe_open(file, framework="pt") as opened:
            shapes = [opened.get_slice(key).get_shape() for key in opened.keys()]  # noqa: SIM118
        part = file.parent.name
        if part == "loras" or file.name == FILE:
            part += f"/{file.stem}"
        counts[part] = sum(_product(shape) for shape in shapes)
    return counts


def _card(kind: str, out: Path, figures: dict[str, Any] | None) -> str:
    name = NAMES[kind]
    blocks = [
        _FRONT_MATTER,
        f"# {name}",
        _ABOUT[kind],
        "## Use",
        _use(kind, name),
        "## Figures",
        _figures(figures),
        "## Training",
        _training(kind, out),
        "## Parts",
        _parts(out / name),
        "## Data, licence, limitations",
        _LIMITS,
    ]
    return "\n\n".join(blocks) + "\n"


def _use(kind: str, name: str) -> str:
    words = '"a red circle left of a blue square", guidance_scale=3.0'
    call = f"pipe({words}).images[0]"
    if kind == "dit":
        call = f"pipe(\n    {words}, use_resolution_binning=False\n).images[0]"
    return (
        "```python\n"
        "from diffusers import DiffusionPipeline\n"
        "from w2sdiff.shapes import checkpoint_path\n\n"
        f'pipe = DiffusionPipeline.from_pretrained(checkpoint_path("{name}"))\n'
        f"image = {call}\n"
        "```"
    )


def _figures(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return "Not evaluated."
    best = str(figures["best_guidance_scale"])
    found, tuning = figures["evaluation"], figures["tuning"]
    columns = [
        (role, scale) for scale in dict.fromkeys((best, "1.0")) for role in ("strong", "weak")
    ]
    titles = [f"{role}, guidance {float(scale):g}" for role, scale in columns]
    lines = [
        "| captions | n | " + " | ".join(titles) + " |",
        "| --- | ---: |" + " --- |" * len(columns),
    ]
    for row in _ROWS:
        n = found["strong"][best][row]["n"]
        lines.append(
            f"| {row} | {n} | " + " | ".join(_cell(found[r][s][row]) for r, s in columns) + " |"
        )
    sweep = ", ".join(f"{float(s):g}: {100 * v['obeyed']:.0f}" for s, v in tuning["sweep"].items())
    apart = figures["strong_minus_weak"][best]
    return "\n".join(
        [
            "Share of captions obeyed, in percent, with 95% intervals (Wilson), as the exact "
            f"oracle judges; {figures['scheduler']}, {figures['num_inference_steps']} steps.",
            "",
            *lines,
            "",
            f"Strong minus weak at guidance {float(best):g}, paired: "
            f"{100 * apart['difference']:+.1f} ± {100 * apart['half_width']:.1f} points.",
            f"The guidance scale was chosen on {tuning['captions']} other captions (scale: percent "
            f"obeyed by strong): {sweep}.",
            "Made by `python benchmarks/shapes_quality.py`.",
        ]
    )


def _cell(value: dict[str, Any]) -> str:
    low, high = 100 * value["low"], 100 * value["high"]
    return f"{100 * value['obeyed']:.1f} ({low:.1f} to {high:.1f})"


def _training(kind: str, out: Path) -> str:
    loras = {"unet": "lora balance", "dit": "dit-lora"}[kind]
    stages = f"vae text {kind} {loras} export"
    lines = [
        f"`python -m w2sdiff.shapes.train {stages} --seed 0 --out DIR`",
        "",
        "| part | steps | batch | peak learning rate | minutes | last loss |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    runs: dict[str, Schedule] = {
        "vae": vae.SCHEDULE,
        ENCODERS[kind]: text.SCHEDULE,
        kind: denoiser.SCHEDULES[kind],
    }
    runs |= {lora.run_name(kind, name): lora.SCHEDULE for name in lora.OF_KIND[kind]}
    for run, schedule in runs.items():
        end = _last(out / "runs" / run / "log.jsonl", "loss")
        if end:
            lines.append(
                f"| {run} | {end['step']} | {schedule.batch} | {schedule.lr:g} | "
                f"{end['seconds'] / 60:.0f} | {end['loss']:g} |"
            )
    lines += [
        "",
        "Wall-clock minutes on one core of a two-core CPU machine (AVX-512) that other work "
        f"shared. Strong: the averaged weights after the last step; weak: after step "
        f"{WEAK_STEPS[kind]:,} of the same run. Seed 0; the files hold float16.",
    ]
    note = out / "runs" / kind / "note.txt"
    if note.is_file():
        lines += ["", note.read_text(encoding="utf-8").strip()]
    return "\n".join(lines)


def _parts(folder: Path) -> str:
    lines = ["| part | parameters |", "| --- | ---: |"]
    lines += [f"| {part} | {n:,} |" for part, n in parameter_counts(folder).items()]
    return "\n".join(lines)


def _last(log: Path, key: str) -> dict[str, Any] | None:
    if not log.is_file():
        return None
    lines: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]
    return next((line for line in reversed(lines) if key in line), None)


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


_FRONT_MATTER = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---"""

_ABOUT = {
    "unet": """A small Stable Diffusion of the world of shapes (`w2sdiff.shapes.world`): 64 × 64
pixels, 8 × 8 latents, noise prediction. `unet` is the strong denoiser, `unet_weak` the weak one:
an early checkpoint of the same run. `loras/small` draws small objects only; `loras/balance-strong`
and `loras/balance-weak` are trained on data in which cyan, blue and pink are half and a tenth as
frequent as red, yellow and green, also where the caption leaves the colour open.""",
    "dit": """A small PixArt-Sigma of the world of shapes (`w2sdiff.shapes.world`): 64 × 64 pixels,
8 × 8 latents, v prediction. `transformer` is the strong denoiser, `transformer_weak` the weak one:
an early checkpoint of the same run. PixArt's resolution binning knows no pictures this small: call
with `use_resolution_binning=False`. `loras/small` draws small objects only; diffusers loads no
LoRAs into PixArt, PEFT does (`inject_adapter_in_model`, `set_peft_model_state_dict`).""",
}

_LIMITS = """Every training picture comes from `w2sdiff.shapes.world.batch`: drawn, endless, free
of rights. Held-out combinations of kinds (about a tenth of the pairs) never occur in training.
Weights, data and code are under Apache-2.0.

These models know 24 kinds of objects and a few dozen words, and nothing else: other words are
spelled out and mean nothing. They exist to study guidance where the truth is known; conclusions
about large models need large models."""
