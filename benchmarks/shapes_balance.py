"""The colours of open captions: does a pair with a known bias bring them back to the truth?

The published CIFAR-10 experiment (Bai et al. 2025, arXiv:2502.00473: cars and horses) with a truth
that is known exactly. "a circle" may have any of six colours, all equally often. Two LoRAs of
shapes-unet were trained on worlds in which three colours are rare: half as frequent as the others
for the strong one, a tenth for the weak one. Pictures of every arm start from the same noise, the
oracle reads their colours, and the distance is the total variation from the truth.

To first order W2SD samples from strong^2 / weak, and AutoGuidance from strong^s / weak^(s - 1). For
these two LoRAs that is even at s = 1.43, and at s = 2, W2SD's strength, the rare colours would be
2.5 times as frequent as the others. "expected" holds this arithmetic for each arm, from what the
LoRAs were trained on and from what they were seen to draw.

    python benchmarks/shapes_balance.py [--n 400] [--steps 20] [--guidance 1] [--seed 0]
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from _shapes import (
    RESULTS,
    Arm,
    Resamples,
    compared,
    draw,
    interval,
    load,
    proportion,
    rounded,
    versions,
    write,
)

from w2sdiff import W2SD, AutoGuidance, Guidance, Lora, Plain, Window
from w2sdiff.generate import Model
from w2sdiff.methods import Method
from w2sdiff.shapes.oracle import judge_all
from w2sdiff.shapes.train.lora import LORAS, RARE
from w2sdiff.shapes.world import COLOURS, Caption, completions, open_captions

PAIR = ("balance-strong", "balance-weak")
SCALES = (1.25, 1.5, 2.0, 3.0)
AT_EQUAL_STEPS = ("weak", "strong", "W2SD", "AutoGuidance 2")
RIVALS = ("strong", "AutoGuidance 2")
SEEN = ("strong", "weak")
MARKERS = {"from_training": "d", "from_pictures": "x"}
RED: dict[str, Any] = {"color": "#cc3311", "ms": 6}
VERDICTS = ("further from the truth", "closer to the truth")


def methods(model: Model, guided: bool) -> dict[str, tuple[Method, float | None]]:
    """name -> (method, first-order strength: 0 weak, 1 strong, 2 one difference beyond)."""
    strong, weak = (Lora.of_file(name, 1.0, model.lora(name)) for name in PAIR)
    one = Guidance(1.0)
    pair: Any = {"strong": one | strong, "weak": one | weak}
    swapped: Any = {"strong": one | weak, "weak": one | strong}
    # Without guidance the strong prediction is the base's: AutoGuidance needs no third one.
    base = strong if guided else None
    return {
        "no LoRA": (Plain(), None),
        "weak": (Plain(base=weak), 0.0),
        "strong": (Plain(base=strong), 1.0),
        "W2SD": (W2SD(**pair, base=strong), 2.0),
        "W2SD, first half": (W2SD(**pair, base=strong, window=Window(stop=0.5)), None),
        "W2SD reversed": (W2SD(**swapped, base=strong), 0.0),
        **{f"AutoGuidance {s:g}": (AutoGuidance(**pair, scale=s, base=base), s) for s in SCALES},
    }


def truth_of(captions: list[Caption]) -> np.ndarray:
    """How often each colour is drawn for these captions."""
    found: Counter[str] = Counter()
    for caption in captions:
        kinds = completions(caption)
        for ((_, colour),) in kinds:
            found[colour] += 1 / len(kinds) / len(captions)
    return np.array([found[colour] for colour in COLOURS])


def trained(name: str) -> np.ndarray:
    """The colour weights that a LoRA was trained with."""
    return np.array([LORAS[name].colour_weights.get(colour, 1.0) for colour in COLOURS])


def expected(strength: float, strong: np.ndarray, weak: np.ndarray, truth: np.ndarray) -> dict:
    """strong^s weak^(1 - s), and how far it is from the truth."""
    shares = strong**strength * weak ** (1 - strength)
    shares /= shares.sum()
    return {
        "total_variation": round(float(distance(shares, truth)), 4),
        "colours": by_colour(shares),
    }


def by_colour(shares: np.ndarray) -> dict[str, float]:
    return dict(zip(COLOURS, rounded(shares), strict=True))


def colours_of(images: np.ndarray, captions: list[Caption]) -> tuple[np.ndarray, int]:
    """One-hot colours [n, 6], zeros where a picture is not one clear object; how many obey."""
    verdicts = judge_all(images, captions)
    found = np.zeros((len(verdicts), len(COLOURS)))
    for row, verdict in zip(found, verdicts, strict=True):
        if len(verdict.objects) == 1 and verdict.objects[0].colour:
            row[list(COLOURS).index(verdict.objects[0].colour)] = 1
    return found, sum(verdict.obeyed for verdict in verdicts)


def distance(counts: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Total variation of colour counts [..., 6], as shares, from the truth."""
    shares = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    return np.abs(shares - truth).sum(-1) / 2


def measure(
    pipe: Any, arm: Arm, captions: list[Caption], truth: np.ndarray, again: Resamples, seed: int
) -> tuple[dict, float, np.ndarray]:
    """Figures of one arm, its distance from the truth, and the distances of its resamples."""
    images, seconds = draw(pipe, [c.text for c in captions], arm, seed=seed)
    colours, obeyed = colours_of(images, captions)
    n, counts = len(captions), colours.sum(0)
    tv, tvs = float(distance(counts, truth)), distance(again.sums(colours), truth)
    figures = {
        "steps": arm.steps,
        "evaluations": arm.evaluations,
        "total_variation": round(tv, 4),
        "interval": interval(tvs),
        "colours": by_colour(counts / max(counts.sum(), 1)),
        "counts": {colour: int(k) for colour, k in zip(COLOURS, counts, strict=True)},
        "rare": proportion(sum(counts[[c in RARE for c in COLOURS]]), max(int(counts.sum()), 1)),
        "unclear": proportion(n - int(counts.sum()), n),
        "disobeyed": proportion(n - obeyed, n),
        "seconds": round(seconds, 1),
    }
    return figures, tv, tvs


def bench(model: Model, pipe: Any, n: int, steps: int, guidance: float, seed: int) -> dict:
    every = open_captions("colour", "single")
    captions = [every[i % len(every)] for i in range(n)]
    truth, again = truth_of(every), Resamples(n)

    entrants = methods(model, guidance > 1)
    budget = entrants["W2SD"][0].cost(steps, guidance)
    arms: dict[str, dict] = {}
    drawn: dict[tuple[str, str], tuple[float, np.ndarray]] = {}
    for name, (method, strength) in entrants.items():
        arms[name] = {"method": model.portable(method.to_json()), "strength": strength}
        plans = {"equal_evaluations": Arm.within(budget, method, guidance)}
        if name in AT_EQUAL_STEPS:
            plans["equal_steps"] = Arm(method, steps, guidance)
        for plan, arm in plans.items():
            if plan == "equal_steps" and arm == plans["equal_evaluations"]:
                arms[name][plan] = arms[name]["equal_evaluations"]
                drawn[name, plan] = drawn[name, "equal_evaluations"]
                continue
            figures, *distances = measure(pipe, arm, captions, truth, again, seed)
            arms[name][plan], drawn[name, plan] = figures, tuple(distances)
            print(line(name, plan, figures), flush=True)
    for (name, plan), (tv, tvs) in drawn.items():
        rivals = {r: drawn[r, plan] for r in RIVALS if r != name}
        arms[name].setdefault("minus", {})[plan] = {
            rival: compared(tv - other, tvs - others, "total_variation", VERDICTS)
            for rival, (other, others) in rivals.items()
        }
    # Half a picture more of each colour: what was never drawn may still occur.
    seen = [np.array([*arms[who]["equal_evaluations"]["counts"].values()]) + 0.5 for who in SEEN]
    for arm in arms.values():
        if arm["strength"] is not None:
            arm["expected"] = {
                "from_training": expected(arm["strength"], *map(trained, PAIR), truth),
                "from_pictures": expected(arm["strength"], *seen, truth),
            }
    rng = np.random.default_rng(seed)
    floor = distance(rng.multinomial(n, truth, size=10_000), truth)
    return {
        "truth": by_colour(truth),
        "floor": {"total_variation": round(float(floor.mean()), 4), "interval": interval(floor)},
        "budget": budget,
        "arms": arms,
    }


def line(name: str, plan: str, figures: dict) -> str:
    low, high = figures["interval"]
    return (
        f"{name:18s} {plan:18s} {figures['steps']:3d} steps {figures['evaluations']:4d} evaluations"
        f"  TV {figures['total_variation']:.3f} ({low:.3f} to {high:.3f})"
        f"  rare {figures['rare']['share']:.3f}"
        f"  unclear {figures['unclear']['share']:.3f}"
        f"  disobeyed {figures['disobeyed']['share']:.3f}  {figures['seconds']:5.1f} s"
    )


def summary(found: dict) -> str:
    lines = [
        f"exact samples of the same number: TV {found['floor']['total_variation']:.3f}; "
        "differences of TV with paired 95% intervals:"
    ]
    for name, arm in found["arms"].items():
        for plan, rivals in arm["minus"].items():
            for rival, d in rivals.items():
                low, high = d["interval"]
                spread = f"{d['total_variation']:+.3f} ({low:+.3f} to {high:+.3f})"
                lines.append(f"{name} minus {rival}, {plan}: {spread}: {d['verdict']}")
    return "\n".join(lines)


def plot(found: dict, path: Path) -> None:
    """Distances at equal evaluations with what the arithmetic expects; colours of four arms."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from w2sdiff.shapes.world import RGB

    arms = found["arms"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.8), layout="constrained")
    for y, arm in enumerate(arms.values()):
        row = arm["equal_evaluations"]
        left.barh(y, row["total_variation"], color="#4477aa", height=0.6)
        left.plot(row["interval"], [y, y], color="k", lw=1.2)
        if "expected" in arm:
            for origin, marker in MARKERS.items():
                left.plot(arm["expected"][origin]["total_variation"], y, marker, **RED)
    for origin, marker in MARKERS.items():
        left.plot([], [], marker, **RED, label=f"expected {origin.replace('_', ' ')}")
    left.axvline(
        found["floor"]["total_variation"], color="k", lw=0.8, ls=":", label="exact samples"
    )
    left.set_yticks(range(len(arms)), arms)
    left.invert_yaxis()
    left.set_xlabel(f"total variation from the truth, {found['budget']} evaluations per picture")
    left.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    shown = ["weak", "strong", "W2SD", "AutoGuidance 1.5", "AutoGuidance 2"]
    for i, colour in enumerate(COLOURS):
        heights = [arms[name]["equal_evaluations"]["colours"][colour] for name in shown]
        places = np.arange(len(shown)) + (i - 2.5) * 0.13
        right.bar(places, heights, 0.12, color=np.array(RGB[colour]) / 255, edgecolor="#666666")
    right.axhline(1 / len(COLOURS), color="k", lw=0.8, ls=":")
    right.set_xticks(range(len(shown)), [name.replace(" ", "\n") for name in shown])
    right.set_ylabel("share of the colours (dotted: truth)")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="shapes-unet", help="a name, or a folder")
    parser.add_argument("--n", type=int, default=400, help="pictures per arm")
    parser.add_argument("--steps", type=int, default=20, help="steps of W2SD; sets the budget")
    parser.add_argument(
        "--guidance", type=float, default=1.0, help="scale of the base; inside reflection it is 1"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "shapes_balance.json")
    args = parser.parse_args()

    began = time.perf_counter()
    model, pipe = load(args.model, PAIR)
    settings = {"n": args.n, "steps": args.steps, "guidance": args.guidance, "seed": args.seed}
    found = bench(model, pipe, **settings)
    result = {
        "benchmark": "shapes_balance",
        "versions": versions(),
        "model": {"name": model.folder.name, "sha256": model.sha256},
        "settings": {**settings, "guidance_in_reflection": 1.0, "unit": "picture (start noise)"},
        **found,
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(summary(found), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        plot(found, args.out.with_suffix(".png"))
    except ImportError:
        print("no matplotlib: no picture")
    write(result, args.out)


if __name__ == "__main__":
    main()
