"""Do the methods draw what the caption says more often than plain guidance of the same cost?

On the embedded models, with captions that training never saw among them and the exact oracle as
the judge. The guidance scale g is chosen for plain sampling, on other captions. Every arm starts
from the same noise and may spend as many evaluations as W2SD does at --steps steps; what is cheaper
takes more steps. Two arms are compared item by item; wins and losses are told in the same words.

What is equal to first order, and therefore rival: W2SD and AutoGuidance at scale 2 with the same
pair and base; ZigZag with scales (a, 0) and plain guidance at 2a. "plain, guidance g + 1" is what
W2SD's arithmetic gives if the weak model is the unconditional one.

    python benchmarks/shapes_methods.py [--limit 400] [--steps 20] [--models shapes-unet shapes-dit]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from _shapes import (
    RESULTS,
    Arm,
    Resamples,
    by_part,
    load,
    minus,
    obeyed,
    proportion,
    versions,
    write,
)

from w2sdiff import W2SD, AutoGuidance, Checkpoint, Guidance, Plain, ZigZag
from w2sdiff.edits import Edits
from w2sdiff.generate import Model
from w2sdiff.shapes.world import Caption, evaluation_captions

SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
REFERENCE = "plain, equal evaluations"


def entrants(model: Model, g: float, steps: int) -> dict[str, tuple[Arm, str | None]]:
    """name -> (arm, its rival of the same first-order strength)."""
    if model.weak is None:
        raise SystemExit(f"{model.name} comes without a weak denoiser")
    one, early = Guidance(1.0), Checkpoint(model.weak)
    pair: Any = {"strong": one, "weak": one | early}
    w2sd = W2SD(**pair)
    budget = w2sd.cost(steps, g)

    def zigzag(scale: float) -> Arm:
        # Its steps run at `scale` too, whatever the pipeline is called with.
        own = Guidance(scale)
        return Arm.within(budget, ZigZag(strong=own, weak=Guidance(0.0), base=own), g)

    def plain(scale: float) -> Arm:
        return Arm.within(budget, Plain(), scale)

    return {
        "plain, guidance 1": (Arm(Plain(), steps, 1.0), None),
        "plain, guidance g": (Arm(Plain(), steps, g), None),
        "early checkpoint, guidance g": (Arm(Plain(base=early), steps, g), None),
        REFERENCE: (plain(g), None),
        "W2SD, early/late": (Arm(w2sd, steps, g), "AutoGuidance 2, early/late"),
        "AutoGuidance 2, early/late": (
            Arm.within(budget, AutoGuidance(**pair, scale=2.0, base=Edits()), g),
            None,
        ),
        "plain, guidance g + 1": (plain(g + 1), None),
        "ZigZag (g, 0)": (zigzag(g), "plain, guidance 2g"),
        "plain, guidance 2g": (plain(2 * g), None),
        "ZigZag (g/2, 0)": (zigzag(g / 2), REFERENCE),
    }


def other_captions(n: int, captions: list[Caption], seed: int) -> list[Caption]:
    """Captions to choose the guidance scale on.

    Single and counting captions are too few to be all different; there the noise differs.
    """
    few, used = ("single", "counting"), set(captions)
    drawn = evaluation_captions(2 * n, seed=seed)
    return [c for c in drawn if c.category in few or c not in used][:n]


def choose(pipe: Any, captions: list[Caption], steps: int, seed: int) -> tuple[float, dict]:
    """The scale above 1 at which plain sampling obeys most captions (the smaller one if equal)."""
    curve = {}
    for scale in SCALES:
        hits, _ = obeyed(pipe, captions, Arm(Plain(), steps, scale), seed)
        curve[scale] = proportion(hits.sum(), len(hits))
        print(f"  guidance {scale:g}: {curve[scale]['share']:.3f} on other captions", flush=True)
    best = max(SCALES[1:], key=lambda scale: (curve[scale]["share"], -scale))
    return best, {f"{scale:g}": share for scale, share in curve.items()}


def bench(name: str, limit: int, choose_on: int, steps: int, seed: int) -> dict:
    model, pipe = load(name)
    captions = evaluation_captions(limit, seed=seed)
    print(name, flush=True)
    others = other_captions(choose_on, captions, seed + 1)
    g, curve = choose(pipe, others, steps, seed + 1)
    again = Resamples(limit)
    arms: dict[str, dict] = {}
    hits: dict[str, np.ndarray] = {}
    field = entrants(model, g, steps)
    for arm_name, (arm, _) in field.items():
        hits[arm_name], seconds = obeyed(pipe, captions, arm, seed)
        arms[arm_name] = {
            **arm.to_json(model),
            "score": proportion(hits[arm_name].sum(), limit),
            "parts": by_part(hits[arm_name], captions),
            "seconds_per_picture": round(seconds / limit, 4),
        }
        print(f"  {arm_name}: {arms[arm_name]['score']['share']:.3f}, {seconds:.0f} s", flush=True)
    for arm_name, (_, rival) in field.items():
        if arm_name != REFERENCE:
            arms[arm_name]["minus_reference"] = minus(hits[arm_name], hits[REFERENCE], again)
        if rival:
            arms[arm_name]["minus_rival"] = {
                "rival": rival,
                **minus(hits[arm_name], hits[rival], again),
            }
    return {
        "sha256": model.sha256,
        "steps": steps,
        "guidance": {"g": g, "chosen_on": len(others), "curve": curve},
        "budget": field["W2SD, early/late"][0].evaluations,
        "arms": arms,
    }


def table(name: str, found: dict) -> str:
    lines = [
        f"\n{name}: g = {found['guidance']['g']:g}; difference in points from "
        f"{REFERENCE!r}, paired 95% interval",
        f"{'':30s}{'steps':>6s}{'evals':>7s}{'obeyed':>8s}  {'interval':16s}{'difference':>10s}",
    ]
    for arm_name, arm in found["arms"].items():
        low, high = arm["score"]["interval"]
        row = f"{arm_name:30s}{arm['steps']:6d}{arm['evaluations']:7d}{arm['score']['share']:8.3f}"
        row += f"  {low:.3f} to {high:.3f}  "
        if "minus_reference" in arm:
            row += told(arm["minus_reference"])
        lines.append(row)
    for arm_name, arm in found["arms"].items():
        if "minus_rival" in arm:
            rival = arm["minus_rival"]
            lines.append(f"{arm_name} against {rival['rival']}, equal strength: {told(rival)}")
    return "\n".join(lines)


def told(d: dict) -> str:
    low, high = (100 * end for end in d["interval"])
    return f"{100 * d['difference']:+8.1f} ({low:+.1f} to {high:+.1f}) {d['verdict']}"


def earlier(path: Path, shared: dict) -> dict:
    """Models already in the file that were measured on the same captions and noise: they stay."""
    if not path.is_file():
        return {}
    old = json.loads(path.read_text(encoding="utf-8"))
    return old["models"] if old["settings"] == shared else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["shapes-unet", "shapes-dit"])
    parser.add_argument("--limit", type=int, default=400, help="captions")
    parser.add_argument("--choose-on", type=int, default=200, help="captions to choose g on")
    parser.add_argument("--steps", type=int, default=20, help="steps of W2SD; sets the budget")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "shapes_methods.json")
    args = parser.parse_args()

    found = {}
    for name in args.models:
        began = time.perf_counter()
        found[Path(name).name] = bench(name, args.limit, args.choose_on, args.steps, args.seed)
        found[Path(name).name]["seconds"] = round(time.perf_counter() - began, 1)
        print(table(name, found[Path(name).name]), flush=True)
    shared = {
        "limit": args.limit,
        "seed": args.seed,
        "guidance_in_pair": 1.0,
        "unit": "caption with its start noise",
    }
    models = {**earlier(args.out, shared), **found}
    result = {
        "benchmark": "shapes_methods",
        "versions": versions(),
        "settings": shared,
        "models": {name: models[name] for name in sorted(models, reverse=True)},
    }
    write(result, args.out)


if __name__ == "__main__":
    main()
