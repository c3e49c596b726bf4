"""Every family variant: plain sampling untouched, the oracle's agreement, what the driver costs.

    python benchmarks/families.py [--variants NAME ...] [--repeats 9] [--call-ms 20] [--out FILE]

One row per variant of `w2sdiff.testing`: real pipelines of diffusers, tiny and with random weights.

* `plain_identical`: the latents of `Plain` through the driver are the stock pipeline's bit for bit,
  and so are those of the stock pipeline afterwards.
* `oracle_max_diff`: W2SD with a guidance pair against the independent `w2sdiff.testing.replay`, the
  largest difference in units of the largest latents; null where the replay does not apply.
* `evaluations_per_step`: single-branch evaluations of a plain step; `evaluations_per_w2sd_step`: of
  a reflected one whose weak model runs at guidance 1, its unconditional half left out.
* `overhead`: CPU time of a run through the driver over that of the stock run: one thread, runs
  interleaved, the fastest of each, because other work on the machine (caches, shared cores) can
  only add to a run's time, and by more than the driver does. The driver adds a fixed time to a
  network call, `added_us`, whatever the network is; so a ratio says something only for a network of
  a known size.
  A tiny one takes a few milliseconds, half of which is diffusers' own Python: no network anybody
  uses. Therefore it is run several times for each call of it, until a call takes `--call-ms`: 20 ms
  is about a guided call of SD1.5's UNet on a fast GPU, and less than that of any larger family.
* `added_us` and `overhead_tiny` are measured with the tiny networks as they are, where the driver's
  share is largest and noise hides least of it. On a busy machine some percent of noise are left,
  more than the driver's share of 20 ms: an `overhead` below 1 is that, and so may one above be; for
  a doubtful row take more `--repeats`.

Target: `overhead` at most 1.05, `plain_identical` everywhere, `oracle_max_diff` at most 1e-5.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import diffusers
import torch

import w2sdiff
from w2sdiff import W2SD, Guidance, Plain, attach
from w2sdiff.testing import Variant, variants
from w2sdiff.testing.contract import counting, oracle_difference

RESULTS = Path(__file__).parent / "results"
STEPS = 4
TARGETS = {"overhead": 1.05, "oracle_max_diff": 1e-5}


@contextmanager
def run_several_times(network: Any, times: int) -> Iterator[None]:
    """Let one call of a network cost what `times` calls do, without changing what comes out."""
    forward = network.forward

    def repeated(*args: Any, **kwargs: Any) -> Any:
        for _ in range(times - 1):
            forward(*args, **kwargs)
        return forward(*args, **kwargs)

    network.forward = repeated
    try:
        yield
    finally:
        del network.forward


def cpu_seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def overhead(variant: Variant, pipe: Any, repeats: int) -> tuple[float, float, float]:
    """(driver / stock, microseconds added per network call, milliseconds of a stock call)."""
    with counting(pipe) as counted:
        variant.latents(pipe, steps=STEPS)

    def stock() -> None:
        variant.latents(pipe, steps=STEPS)

    with attach(pipe, Plain()):  # weaves the class, and is left: what is measured is a run
        variant.latents(pipe, steps=STEPS)
    took: dict[bool, list[float]] = {True: [], False: []}
    gc.collect()
    gc.disable()
    try:
        for repeat in range(repeats):
            for driven in (repeat % 2 == 0, repeat % 2 == 1):  # neither is always the first
                with attach(pipe, Plain()) if driven else nullcontext():
                    took[driven].append(cpu_seconds(stock))
    finally:
        gc.enable()
    with_driver, alone = min(took[True]), min(took[False])
    calls = counted.calls
    return with_driver / alone, 1e6 * (with_driver - alone) / calls, 1e3 * alone / calls


def measured(variant: Variant, repeats: int, call_ms: float) -> dict[str, Any]:
    """The row of a variant."""
    pipe = variant.build()
    stock = variant.latents(pipe, steps=STEPS)
    with attach(pipe, Plain()) as run:
        driven = variant.latents(pipe, steps=STEPS)
        plain = run.stats
    with attach(pipe, W2SD(weak=Guidance(1.0))) as run:
        variant.latents(pipe, steps=STEPS)
        reflected = run.stats
    after = variant.latents(pipe, steps=STEPS)
    oracle = oracle_difference(variant, pipe, steps=STEPS)
    tiny, added, tiny_ms = overhead(variant, pipe, repeats)
    times = max(1, round(call_ms / tiny_ms))
    with run_several_times(variant.network(pipe), times):
        ratio, _, ms = overhead(variant, pipe, repeats)
    # The last step is not reflected.
    more = (reflected.evaluations - plain.evaluations) / (reflected.steps - 1)
    per_step = plain.evaluations / plain.steps
    return {
        "family": variant.family,
        "variant": variant.name,
        "plain_identical": torch.equal(stock, driven) and torch.equal(stock, after),
        "oracle_max_diff": oracle,
        "evaluations_per_step": per_step,
        "evaluations_per_w2sd_step": per_step + more,
        "overhead": ratio,
        "call_ms": ms,
        "added_us": added,
        "overhead_tiny": tiny,
        "call_ms_tiny": tiny_ms,
    }


def against_targets(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each target with the worst of what was measured."""
    different = sum(not row["plain_identical"] for row in rows)
    found = {"variants that are not identical": (different, 0)}
    for name, target in TARGETS.items():
        values = [row[name] for row in rows if row[name] is not None]
        found[f"largest {name}"] = (max(values), target)
    return {
        name: {"measured": value, "target": target, "met": value <= target}
        for name, (value, target) in found.items()
    }


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    oracle = "-" if row["oracle_max_diff"] is None else f"{row['oracle_max_diff']:.1e}"
    identical = "yes" if row["plain_identical"] else "NO"
    plain, w2sd = row["evaluations_per_step"], row["evaluations_per_w2sd_step"]
    return (
        f"{row['family']:<20} {row['variant']:<25} {identical:<9} {oracle:>8} "
        f"{plain:>5g} {w2sd:>5g} {row['overhead']:>8.3f} {row['added_us']:>9.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", help="names of rows; all by default")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--call-ms", type=float, default=20.0)
    parser.add_argument("--out", type=Path, default=RESULTS / "families.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    diffusers.logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)

    chosen = [v for v in variants() if v.installed]
    if args.variants:
        unknown = set(args.variants) - {v.name for v in chosen}
        if unknown:
            parser.error(f"no variants {sorted(unknown)}")
        chosen = [v for v in chosen if v.name in args.variants]
    print(
        f"{'family':<20} {'variant':<25} {'identical':<9} {'oracle':>8} "
        f"{'plain':>5} {'w2sd':>5} {'overhead':>8} {'us a call':>9}"
    )
    rows = []
    for variant in chosen:
        rows.append(rounded(measured(variant, args.repeats, args.call_ms)))
        print(line(rows[-1]), flush=True)
    result = {
        "benchmark": "families",
        "versions": {
            "w2sdiff": w2sdiff.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
        "settings": {"repeats": args.repeats, "steps": STEPS, "call_ms": args.call_ms},
        "clock": "CPU time of one thread",
        "rows": rows,
        "targets": rounded(against_targets(rows)),
    }
    for name, target in result["targets"].items():
        verdict = "ok" if target["met"] else "MISSED"
        print(f"{name:<32} {target['measured']:>8}  target {target['target']:<5} {verdict}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
