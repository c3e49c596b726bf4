"""What a noise model is worth: obedience, evaluations and seconds of CoRe2 on the embedded models.

Every arm starts from the same noise on the same captions (held-out combinations among them), and
the exact oracle judges. Plain sampling's best guidance scale is chosen on other captions. Two
anchors span a gap: plain at guidance 1 with the same steps, which costs what the fast mode costs,
and plain at its best scale, which costs twice that. The rivals of the fast mode are plain sampling
with as many evaluations, and guidance whose unconditional half is refreshed every second and fourth
step, which needs no training.

    python benchmarks/core2.py [--models shapes-unet shapes-dit] [--limit 400] [--steps 20]
    python benchmarks/core2.py --pair          the noise model that has learned a W2SD pair, instead
    python benchmarks/core2.py --only-timing   the seconds again, on a quiet machine; the rest stays
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _shapes import (
    RESULTS,
    Arm,
    Resamples,
    by_part,
    draw,
    interval,
    load,
    minus,
    obeyed,
    options_of,
    proportion,
    versions,
    write,
)

from w2sdiff import (
    W2SD,
    AutoGuidance,
    Checkpoint,
    Core2,
    Guidance,
    Plain,
    StaleGuidance,
    ZCore2,
    attach,
)
from w2sdiff.core2.noise_model import NoiseModel, load_noise_model, read_header
from w2sdiff.core2.record import Recorded
from w2sdiff.edits import Edits
from w2sdiff.generate import Model
from w2sdiff.shapes.world import CATEGORIES, Caption, evaluation_captions

SCALES = (1.5, 2.0, 3.0, 4.0, 6.0)
BEST, ALONE = "plain, best guidance", "plain, guidance 1"
FAST = "fast only"
UNTIL = (0.1, 0.2, 0.4, 0.6, 0.8)


def entrants(_: Model, file: Path, best: float, learned: float, steps: int) -> dict[str, Arm]:
    """name -> arm; an arm with a noise model is called at the scale it was made for."""

    def core2(until: float, scale: float = 1.5, fast: float = 1.0) -> Arm:
        return Arm(Core2(file, scale=scale, slow_until=until, fast_scale=fast), steps, learned)

    arms = {
        ALONE: Arm(Plain(), steps, 1.0),
        f"{ALONE}, twice the steps": Arm(Plain(), 2 * steps, 1.0),
        BEST: Arm(Plain(), steps, best),
        f"{BEST}, half the steps": Arm(Plain(), steps // 2, best),
    }
    if learned != best:
        arms["plain, the learned scale"] = Arm(Plain(), steps, learned)
    arms[FAST] = core2(0.0)
    arms["fast only, scale 1.25"] = core2(0.0, fast=1.25)
    arms["fast only, scale 1.5"] = core2(0.0, fast=1.5)
    for until in UNTIL:
        arms[f"slow until {until:g}, then fast"] = core2(until)
    arms["slow only"] = core2(1.0)
    arms["slow only, scale 1.25"] = core2(1.0, scale=1.25)
    for until in (0.4, 0.6):
        cost = arms[f"slow until {until:g}, then fast"].evaluations
        arms[f"{BEST}, as slow until {until:g}"] = Arm.within(cost, Plain(), best)
    for every in (2, 4):
        arms[f"unconditional half every {every} steps"] = Arm(StaleGuidance(every), steps, best)
    zcore2 = {"scale 1.5": ZCore2(file), "scale 0.5": ZCore2(file, scale=0.5)}
    for name, method in zcore2.items():
        arms[f"Z-CoRe2, {name}"] = Arm(method, steps, learned)
    arms[f"{BEST}, as Z-CoRe2"] = Arm.within(arms["Z-CoRe2, scale 1.5"].evaluations, Plain(), best)
    return arms


def pair_entrants(
    model: Model, file: Path, best: float, learned: float, steps: int
) -> dict[str, Arm]:
    """The same for a noise model that has learned W2SD with the early checkpoint."""
    if model.weak is None:
        raise SystemExit(f"{model.name} comes without a weak denoiser")
    one, early = Guidance(1.0), Checkpoint(model.weak)
    pair: Any = {"strong": one, "weak": one | early}
    w2sd = Arm(W2SD(**pair), steps, learned)
    fast = Arm(Core2(file, slow_until=0.0), steps, learned)
    return {
        ALONE: Arm(Plain(), steps, 1.0),
        BEST: Arm(Plain(), steps, best),
        f"{BEST}, half the steps": Arm(Plain(), steps // 2, best),
        "W2SD": w2sd,
        "W2SD, as many evaluations as fast": Arm.within(fast.evaluations, W2SD(**pair), learned),
        f"{BEST}, as W2SD": Arm.within(w2sd.evaluations, Plain(), best),
        "AutoGuidance 2, as W2SD": Arm.within(
            w2sd.evaluations, AutoGuidance(**pair, scale=2.0, base=Edits()), learned
        ),
        FAST: fast,
        "fast only, scale 1.25": Arm(Core2(file, slow_until=0.0, fast_scale=1.25), steps, learned),
    }


def choose(pipe: Any, n: int, steps: int, seed: int) -> tuple[float, dict]:
    """The scale above 1 at which plain sampling obeys most of n other captions."""
    captions, curve = evaluation_captions(n, seed=seed), {}
    for scale in SCALES:
        hits, _ = obeyed(pipe, captions, Arm(Plain(), steps, scale), seed)
        curve[f"{scale:g}"] = proportion(hits.sum(), n)
        print(f"  guidance {scale:g}: {hits.mean():.3f} on other captions", flush=True)
    best = max(SCALES, key=lambda scale: (curve[f"{scale:g}"]["share"], -scale))
    return best, curve


def closed(hits: np.ndarray, alone: np.ndarray, best: np.ndarray, again: Resamples) -> dict:
    """Share of the gap between the two anchors that an arm closes, with its interval."""
    n = len(hits)
    resampled = [again.sums(values.astype(float)) / n for values in (hits, alone, best)]
    ratio = (resampled[0] - resampled[1]) / np.maximum(resampled[2] - resampled[1], 1e-9)
    share = (hits.mean() - alone.mean()) / max(best.mean() - alone.mean(), 1e-9)
    return {"share": round(float(share), 4), "interval": interval(ratio)}


def error_by_level(pipe: Any, file: Path, captions: list[Caption], arm: Arm, seed: int) -> dict:
    """Share of what guidance adds that the noise model predicts, by noise level and category.

    On the steps of plain guidance, for captions that it was not trained on.
    """
    model, recorded = load_noise_model(file), Recorded(arm.method)
    draw(pipe, [c.text for c in captions], Arm(recorded, arm.steps, arm.guidance_scale), seed=seed)
    groups: dict[str, list[np.ndarray]] = {name: [] for name in CATEGORIES}
    levels: list[float] = []
    start = 0
    for takes in recorded.take():
        n = len(takes[0].c)
        kinds = np.array([c.category for c in captions[start : start + n]])
        start += n
        squares = np.array([_squares(model, take) for take in takes])  # [steps, 2, n]
        levels = [round(2 * float(np.log(t.given.alpha / t.given.sigma)), 3) for t in takes]
        for name in CATEGORIES:
            groups[name].append(squares[:, :, kinds == name])
    whole = {name: np.concatenate(parts, axis=2) for name, parts in groups.items()}
    every = np.concatenate(list(whole.values()), axis=2)

    def explained(squares: np.ndarray, axes: tuple[int, ...]) -> Any:
        wrong, added = squares[:, 0].sum(axes), squares[:, 1].sum(axes)
        return np.round(1 - wrong / np.maximum(added, 1e-12), 4).tolist()

    return {
        "log_snr": levels,
        "by_level": explained(every, (1,)),
        "by_category": {name: explained(squares, (0, 1)) for name, squares in whole.items()},
    }


@torch.no_grad()
def _squares(model: NoiseModel, take: Any) -> list[list[float]]:
    error = model(take.c, take.given) - take.target
    added = take.target - take.c
    return [part.flatten(1).square().mean(1).tolist() for part in (error, added)]


def timing(pipe: Any, file: Path, best: float, learned: float, steps: int, repeats: int) -> dict:
    """Seconds per picture of plain, slow and fast, interleaved, and the noise model's own share."""
    arms = {
        ALONE: Arm(Plain(), steps, 1.0),
        BEST: Arm(Plain(), steps, best),
        "slow only": Arm(Core2(file, slow_until=1.0), steps, learned),
        FAST: Arm(Core2(file, slow_until=0.0), steps, learned),
    }
    found = {}
    for batch in (1, 16):
        captions = [c.text for c in evaluation_captions(batch, seed=3)]
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for repeat in range(repeats + 1):
            for name, arm in arms.items():
                took = call_seconds(pipe, captions, arm)
                if repeat:  # the first one warms up
                    seconds[name].append(took / batch)
        middle = {name: statistics.median(values) for name, values in seconds.items()}
        own = noise_model_seconds(pipe, file, captions, learned, repeats) * steps / batch
        found[f"batch {batch}"] = {
            "seconds_per_picture": {name: round(value, 5) for name, value in middle.items()},
            "fast over plain at guidance 1": round(middle[FAST] / middle[ALONE], 4),
            "fast over plain at its best": round(middle[FAST] / middle[BEST], 4),
            "slow over plain at its best": round(middle["slow only"] / middle[BEST], 4),
            "noise model, share of fast": round(own / middle[FAST], 4),
            "fast without its noise model over plain at guidance 1": round(
                (middle[FAST] - own) / middle[ALONE], 4
            ),
        }
    return found


def call_seconds(pipe: Any, captions: list[str], arm: Arm) -> float:
    """Seconds of a call, decoding included; the first one of an attach loads the noise model."""
    options = options_of(pipe, arm)
    with attach(pipe, arm.method) as run:
        for _ in range(2):
            generators = [torch.Generator().manual_seed(i) for i in range(len(captions))]
            pipe(captions, generator=generators, output_type="np", **options)
    return run.stats.seconds


def noise_model_seconds(
    pipe: Any, file: Path, captions: Sequence[str], learned: float, repeats: int
) -> float:
    """Median seconds of one application to a batch."""
    model, recorded = load_noise_model(file), Recorded(Plain(), steps=[1])
    draw(pipe, captions, Arm(recorded, 4, learned), seed=3)
    [[take]] = recorded.take()
    return _median(lambda: model(take.c, take.given), 20 * repeats)


@torch.no_grad()
def _median(call: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def bench(name: str, args: argparse.Namespace) -> dict:
    model, pipe = load(name)
    file = args.noise_model or model.noise_model("w2sd" if args.pair else "guidance")
    if file is None:
        raise SystemExit(f"{name} comes without such a noise model; give one with --noise-model")
    header = read_header(file)
    learned = header["host"]["guidance_scale"]
    captions = evaluation_captions(args.limit, seed=args.seed)
    print(name, flush=True)
    best, curve = choose(pipe, args.choose_on, args.steps, args.seed + 1)
    make = pair_entrants if args.pair else entrants
    field = make(model, file, best, learned, args.steps)
    again, hits, arms = Resamples(args.limit), {}, {}
    for arm_name, arm in field.items():
        hits[arm_name], seconds = obeyed(pipe, captions, arm, args.seed)
        arms[arm_name] = {
            **arm.to_json(model),
            "score": proportion(hits[arm_name].sum(), args.limit),
            "parts": by_part(hits[arm_name], captions),
            "seconds_per_picture": round(seconds / args.limit, 4),
        }
        print(
            f"  {arm_name}: {hits[arm_name].mean():.3f}, {arm.evaluations}, {seconds:.0f} s",
            flush=True,
        )
    for arm_name, arm in arms.items():
        own = hits[arm_name]
        arm["gap_closed"] = closed(own, hits[ALONE], hits[BEST], again)
        arm["minus_best"] = minus(own, hits[BEST], again)
        same = [n for n in arms if arms[n]["evaluations"] == arm["evaluations"] and "plain" in n]
        arm["minus_equal_cost"] = {n: minus(own, hits[n], again) for n in same if n != arm_name}
    found = {
        "sha256": model.sha256,
        "noise_model": {"host": header["host"], "config": header["config"], "card": header["card"]},
        "guidance": {"best": best, "learned": learned, "chosen_on": args.choose_on, "curve": curve},
        "steps": args.steps,
        "arms": arms,
    }
    if not args.pair:
        others = evaluation_captions(args.choose_on, seed=args.seed + 2)
        plain = Arm(Plain(), args.steps, learned)
        found["explained"] = error_by_level(pipe, file, others, plain, args.seed + 2)
        found["timing"] = timing(pipe, file, best, learned, args.steps, args.repeats)
    return found


def timing_again(name: str, found: dict, args: argparse.Namespace) -> dict:
    """The seconds of a model that was measured before."""
    model, pipe = load(name)
    file, guidance = args.noise_model or model.noise_model("guidance"), found["guidance"]
    return timing(pipe, file, guidance["best"], guidance["learned"], args.steps, args.repeats)


def table(name: str, found: dict) -> str:
    guidance = found["guidance"]
    lines = [
        f"\n{name}: best guidance {guidance['best']:g}, learned {guidance['learned']:g}",
        f"{'':42s}{'evals':>6s}{'obeyed':>8s}{'gap':>7s}   difference from {BEST!r}",
    ]
    for arm_name, arm in found["arms"].items():
        difference = arm["minus_best"]
        low, high = (100 * end for end in difference["interval"])
        lines.append(
            f"{arm_name:42s}{arm['evaluations']:6d}{arm['score']['share']:8.3f}"
            f"{arm['gap_closed']['share']:7.2f}   {100 * difference['difference']:+.1f} "
            f"({low:+.1f} to {high:+.1f}) {difference['verdict']}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=None)
    parser.add_argument("--pair", action="store_true", help="the learned W2SD pair, instead")
    parser.add_argument("--only-timing", action="store_true", help="of what the file holds")
    parser.add_argument("--noise-model", type=Path, help="instead of the one that is shipped")
    parser.add_argument("--limit", type=int, default=400, help="captions")
    parser.add_argument("--choose-on", type=int, default=200, help="captions to choose g on")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5, help="of each timing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    names = args.models or (["shapes-unet"] if args.pair else ["shapes-unet", "shapes-dit"])
    out = args.out or RESULTS / ("core2_pair.json" if args.pair else "core2.json")

    settings = {"limit": args.limit, "steps": args.steps, "seed": args.seed}
    settings["unit"] = "caption with its start noise"
    models = earlier(out, settings)
    for name in names:
        if args.only_timing:
            models[name]["timing"] = timing_again(name, models[name], args)
            print(name, json.dumps(models[name]["timing"], indent=1), flush=True)
            continue
        began = time.perf_counter()
        models[Path(name).name] = bench(name, args)
        models[Path(name).name]["seconds"] = round(time.perf_counter() - began, 1)
        print(table(name, models[Path(name).name]), flush=True)
    ordered = {name: models[name] for name in sorted(models, reverse=True)}
    result = {"benchmark": "core2", "versions": versions(), "settings": settings, "models": ordered}
    write(result, out)


def earlier(path: Path, settings: dict) -> dict:
    """Models already in the file that were measured on the same captions and noise: they stay."""
    if not path.is_file():
        return {}
    old = json.loads(path.read_text(encoding="utf-8"))
    return old["models"] if old["settings"] == settings else {}


if __name__ == "__main__":
    main()
