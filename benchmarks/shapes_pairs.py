"""Every kind of pair on both embedded models: captions obeyed, by category, and what it cost.

Reads what `w2sdiff bench` found, which draws, makes the rivals of each pair and compares:

    w2sdiff bench benchmarks/experiments/shapes_pairs_unet.yaml
    w2sdiff bench benchmarks/experiments/shapes_pairs_dit.yaml
    python benchmarks/shapes_pairs.py [--runs runs]

Each pair stands beside plain sampling at its best guidance scale (same steps), plain sampling of as
many evaluations, plain guidance of its measured strength, and what it is to first order.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from _shapes import RESULTS, proportion, rounded, versions, write

from w2sdiff.bench.analysis import Analysis
from w2sdiff.bench.results import Results
from w2sdiff.bench.run.collect import read_results
from w2sdiff.bench.stats.analyse import analyse
from w2sdiff.shapes.world import CATEGORIES

RUNS = {"shapes-unet": "shapes_pairs_unet", "shapes-dit": "shapes_pairs_dit"}
SCORER = "shapes"


def found_in(results: Results, analysis: Analysis) -> dict:
    """Shares of every arm, and each pair against the arms that were made for it."""
    categories = np.array([prompt.category for prompt in results.prompts])
    arms: dict[str, dict[str, Any]] = {}
    for index, arm in enumerate(results.arms):
        obeyed = results.values[SCORER][index].ravel()
        if np.isnan(obeyed).any():
            raise SystemExit(f"{results.folder}: {arm.name} is not complete; run the bench again")
        parts = {name: obeyed[categories == name] for name in CATEGORIES}
        arms[arm.name] = {
            "text": arm.text,
            "steps": arm.steps,
            "evaluations": arm.evaluations,
            "strength": None if arm.strength is None else round(arm.strength, 3),
            "rival_of": arm.rival_of,
            "match": arm.match,
            "score": proportion(obeyed.sum(), len(obeyed)),
            "parts": {name: proportion(part.sum(), len(part)) for name, part in parts.items()},
        }
    for one in analysis.comparisons:
        minus = arms[one.arm].setdefault("minus", {})
        minus[one.rival] = {
            "difference": round(one.difference.mean, 4),
            "interval": rounded(one.difference.interval),
            "p_holm": round(one.p_holm, 4),
            "detectable": round(one.detectable, 4),
            "outcome": one.outcome,
        }
    plain = results.arms[0]
    return {
        "captions": len(results.prompts),
        "steps": plain.steps,
        "guidance": plain.guidance,
        "arms": arms,
    }


def line(name: str, arm: dict) -> str:
    shares = [arm["score"], *arm["parts"].values()]
    cells = "".join(f"{100 * share['share']:9.1f}" for share in shares)
    return f"{name:42s}{arm['evaluations']:6d}{cells}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs are")
    parser.add_argument("--models", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--out", type=Path, default=RESULTS / "shapes_pairs.json")
    args = parser.parse_args()

    models = {}
    for name in args.models:
        results = read_results(args.runs / RUNS[name])
        models[name] = found_in(results, analyse(results))
        print(f"\n{name}: {'evaluations, obeyed in all and by category':>60s}", flush=True)
        for label, arm in models[name]["arms"].items():
            print(line(label, arm), flush=True)
    result = {"benchmark": "shapes_pairs", "models": models, "versions": versions()}
    write(result, args.out)


if __name__ == "__main__":
    main()
