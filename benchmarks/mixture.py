"""Weak-to-strong methods on Gaussian mixtures, where the truth is known and no network is needed.

Two peaks, eight modes (one dimension) and nine blobs (two), each with a strong model that gets the
weights wrong and a weak one that gets them wrong twice as far. Plain sampling, W2SD, its reverse
and AutoGuidance over a sweep of scales, from the same start noise, at equal steps and at equal
evaluations; total variation of the mode masses and sliced Wasserstein distance from the truth.

    python benchmarks/mixture.py [--plot benchmarks/results/mixture.png]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import w2sdiff
from w2sdiff import W2SD, AutoGuidance, Plain
from w2sdiff.drivers.function import drive
from w2sdiff.levels import Levels
from w2sdiff.mixture import (
    eight_modes,
    missing_region,
    sliced_wasserstein,
    total_variation,
    two_peaks,
)

RESULTS = Path(__file__).parent / "results"
TRIALS = {"two peaks": two_peaks, "eight modes": eight_modes, "nine blobs": missing_region}
SCALES = [1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0]

# name -> (method, who plays the roles, first-order strength: 0 weak, 1 strong, 2 one beyond)
ARMS = {
    "truth": (Plain(), "truth", None),
    "weak": (Plain(), "weak", 0.0),
    "strong": (Plain(), "strong", 1.0),
    "W2SD": (W2SD(), "pair", 2.0),
    "W2SD, weak told its own level": (W2SD(weak_time="next"), "pair", 2.0),
    "W2SD, two reflections": (W2SD(times=2), "pair", 3.0),
    "W2SD reversed": (W2SD(), "reversed", 0.0),
    **{f"AutoGuidance {s:g}": (AutoGuidance(scale=s), "pair", s) for s in SCALES},
}


def players(trial, who: str, levels: Levels):
    if who in ("truth", "weak", "strong"):
        return dict.fromkeys(("strong", "weak", "base"), getattr(trial, who).network(levels))
    roles = trial.networks(levels)
    if who == "reversed":
        roles["strong"], roles["weak"] = roles["weak"], roles["strong"]
    return roles


def steps_for(method, budget: int) -> int:
    """The largest number of steps that costs no more than `budget` evaluations."""
    return max(n for n in range(1, budget + 1) if method.cost(n) <= budget)


def resampled(modes, truth: torch.Tensor, draws: int = 400) -> np.ndarray:
    """Total variation of `draws` resamples. The same samples are drawn for every arm: paired."""
    rng = np.random.default_rng(0)
    k, n = len(truth), len(modes)
    shares = np.stack(
        [np.bincount(modes[rng.integers(n, size=n)], minlength=k) / n for _ in range(draws)]
    )
    return np.abs(shares - truth.numpy()).sum(1) / 2


def measure(trial, method, who: str, steps: int, start, reference) -> tuple[dict, np.ndarray]:
    """Figures of one arm, and its resampled total variations."""
    levels = Levels.flow(steps)
    x = drive(method, players(trial, who, levels), start, levels)
    masses = trial.truth.masses(x)
    again = resampled(torch.cdist(x, trial.truth.means).argmin(1).numpy(), trial.truth.weights)
    figures = {
        "steps": steps,
        "evaluations": method.cost(steps),
        "total_variation": round(total_variation(masses, trial.truth.weights), 4),
        "standard_error": round(float(again.std()), 4),
        "sliced_wasserstein": round(sliced_wasserstein(x, reference), 4),
        "masses": [round(float(m), 4) for m in masses],
    }
    return figures, again


def bench(trial, samples: int, steps: int, seed: int) -> dict:
    g = torch.Generator().manual_seed(seed)
    start = torch.randn(samples, trial.truth.means.shape[1], generator=g, dtype=torch.float64)
    reference = trial.truth.sample(samples, g)
    budget = W2SD().cost(steps)
    arms, again = {}, {}
    for name, (method, who, strength) in ARMS.items():
        arms[name] = {"strength": strength}
        for plan, n in (("equal_steps", steps), ("equal_evaluations", steps_for(method, budget))):
            figures, again[name, plan] = measure(trial, method, who, n, start, reference)
            arms[name][plan] = figures
    for name, arm in arms.items():  # the rival of the same first-order strength, sample by sample
        rival = f"AutoGuidance {arm['strength']}".removesuffix(".0")
        for plan in ("equal_steps", "equal_evaluations"):
            if name.startswith("W2SD") and (rival, plan) in again:
                interval = np.quantile(again[name, plan] - again[rival, plan], [0.025, 0.975])
                arm[plan]["minus_autoguidance"] = [round(float(end), 4) for end in interval]
    floor = trial.truth.masses(trial.truth.sample(samples, g))
    return {
        "truth": [round(float(w), 4) for w in trial.truth.weights],
        "floor": round(total_variation(floor, trial.truth.weights), 4),
        "arms": arms,
    }


def table(name: str, found: dict) -> str:
    lines = [
        f"\n{name}  (exact samples of the same number: total variation {found['floor']:.3f})",
        f"{'':31s}|{'equal steps':^35s}|{'equal evaluations':^35s}",
        f"{'':31s}|" + f"{'steps':>6s}{'evals':>7s}{'TV':>14s}{'SW':>8s}|" * 2,
    ]
    for arm, result in found["arms"].items():
        row = f"{arm:31s}|"
        for budget in ("equal_steps", "equal_evaluations"):
            r = result[budget]
            tv = f"{r['total_variation']:.3f} ± {2 * r['standard_error']:.3f}"
            row += f"{r['steps']:6d}{r['evaluations']:7d}{tv:>14s}{r['sliced_wasserstein']:8.3f}|"
        lines.append(row)
    lines.append("W2SD minus AutoGuidance of equal strength, total variation, paired 95% interval:")
    for arm, result in found["arms"].items():
        if "minus_autoguidance" in result["equal_steps"]:
            ends = [result[p]["minus_autoguidance"] for p in ("equal_steps", "equal_evaluations")]
            spans = [f"{low:+.3f} to {high:+.3f}" for low, high in ends]
            lines.append(f"{arm:31s}|{spans[0]:^35s}|{spans[1]:^35s}|")
    return "\n".join(lines)


def plot(result: dict, path: Path) -> None:
    """Distance from the truth against first-order strength: AutoGuidance a line, W2SD points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(TRIALS), figsize=(12, 3.6), layout="constrained")
    for ax, (name, found) in zip(axes, result["trials"].items(), strict=True):
        arms = found["arms"]
        for budget, style in (("equal_steps", "-"), ("equal_evaluations", "--")):
            line = sorted(
                (arms[a]["strength"], arms[a][budget]["total_variation"])
                for a in arms
                if a.startswith("AutoGuidance") or a in ("weak", "strong")
            )
            label = f"AutoGuidance, {budget.replace('_', ' ')}"
            ax.plot(*zip(*line, strict=True), style, color="#4477aa", lw=1.8, label=label)
        for arm, marker, colour in (
            ("W2SD", "o", "#cc3311"),
            ("W2SD, weak told its own level", "D", "#ee7733"),
            ("W2SD, two reflections", "s", "#cc3311"),
            ("W2SD reversed", "v", "#999999"),
        ):
            at, value = arms[arm]["strength"], arms[arm]["equal_steps"]["total_variation"]
            ax.plot(at, value, marker, color=colour, ms=7, label=arm, zorder=3)
        ax.axhline(arms["truth"]["equal_steps"]["total_variation"], color="k", lw=0.8, ls=":")
        ax.set(title=name, xlabel="strength (0 weak, 1 strong)", ylim=(0, None))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("total variation from the truth")
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=50, help="steps of W2SD; sets the budget")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "mixture.json")
    parser.add_argument("--plot", type=Path, default=None, help="also draw a PNG")
    args = parser.parse_args()

    torch.set_num_threads(1)  # small tensors: more threads only wait for one another
    began = time.process_time()
    settings = {"samples": args.samples, "steps": args.steps, "seed": args.seed}
    result = {
        "benchmark": "mixture",
        "versions": {"w2sdiff": w2sdiff.__version__, "torch": torch.__version__},
        "settings": settings,
        "trials": {},
    }
    for name, make in TRIALS.items():
        result["trials"][name] = bench(make(), **settings)
        print(table(name, result["trials"][name]), flush=True)
    result["cpu_seconds"] = round(time.process_time() - began, 1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.plot is not None:
        plot(result, args.plot)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
