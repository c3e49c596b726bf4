"""PixArt-Σ's ablation on a model anyone can run: shapes-dit at 128 pixels, and compressed.

shapes-dit draws 64 x 64 pixels, 64 tokens. Here it is taken to 128 x 128, four times the tokens, by
interpolated positions, adapted there, and then compressed: kinds, layers, steps of adaptation.
The oracle judges held-out captions (pictures of 128 pixels as means of 2 x 2), and the error of the
prediction is measured on rendered pictures that nothing was trained on. Beside "obeyed" stands
"colours", as many objects as demanded in the colours demanded: at 128 pixels most objects are there
and misshapen, and a bar that nobody takes tells nobody apart.

    python benchmarks/shapes_highres.py --train        the trainings, one after another; resumable
    python benchmarks/shapes_highres.py [--limit 100] [--steps 10]     what came of them

Both take --folder (default runs/shapes_highres). The trainings are the commands that `--commands`
prints; on one core (OMP_NUM_THREADS=1) 500 steps take 8 minutes at 128 pixels and 2 at 64. An arm
that was judged is not drawn again, and arms whose training is missing are left out. `--add` puts
arms into the result that is there, if those that both have agree to the last digit.

A network that was compressed and trained has had more training than the one it started from. So its
rival is the same network, trained on for as many steps without compression.

Memory of an evaluation is what torch's allocator counts. The resident size of the process says
nothing here: whatever the process had before and gave back is used again.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _highres import (
    LARGE,
    SMALL,
    TIMES,
    TRAININGS,
    added,
    commands,
    errors,
    is_known,
    others,
    peak_mb,
    predicted,
    remembered,
    train,
    trained,
)
from _shapes import (
    RESULTS,
    VERDICTS,
    Arm,
    Resamples,
    by_part,
    colours_right,
    compared,
    draw,
    interval,
    judged,
    minus,
    proportion,
    verdicts,
    versions,
    write,
)

from w2sdiff import Plain
from w2sdiff.attention import KVCompression
from w2sdiff.generate import Model, find_model
from w2sdiff.highres import Setup
from w2sdiff.highres.data import Batch
from w2sdiff.shapes.captions import parse
from w2sdiff.shapes.world import Caption, batch, evaluation_captions

TUNED, STOCK = "tuned, 2,000 steps", "64 pixels, as it is"
STOCK_CONTROL = "64 pixels, 500 more steps"
DEEP = "deep"


@dataclass(frozen=True)
class Network:
    """A network to be judged.

    Attributes:
        size: pixels per side.
        training: whose network or adapter it is; empty: shapes-dit's own.
        step: at which it was kept; None: the end.
        positions: see `w2sdiff.highres.Setup`.
        kind: of compression; empty: none.
        ratio: of compression.
        layers: that are compressed.
        trained: whether the compression was trained too.
        rival: the arm it is compared with; empty: none.
    """

    size: int = LARGE
    training: str = ""
    step: int | None = None
    positions: str = "interpolated"
    kind: str = ""
    ratio: int = 2
    layers: str = DEEP
    trained: bool = False
    rival: str = TUNED

    def setup(self, model: Model, folder: Path) -> Setup | None:
        """How it is built; None: its training is missing."""
        place = trained(folder, self.training, self.step) if self.training else None
        if self.training and place is None:
            return None
        alone = place is not None and place.is_file()  # an adapter without a network
        start = TRAININGS[self.training].start if alone else ""
        return Setup(
            model,
            transformer=trained(folder, start) if alone and start else None if alone else place,
            size=self.size if self.size != SMALL else None,
            positions=self.positions,  # type: ignore[arg-type]
            compression=KVCompression(self.kind, self.ratio, self.layers) if self.kind else None,
            adapter=place if self.trained else None,
        )


NETWORKS = {
    "positions kept": Network(positions="kept", rival="positions interpolated"),
    "positions interpolated": Network(rival=""),
    "tuned, 500 steps": Network(training="tuned", step=500, rival="positions interpolated"),
    TUNED: Network(training="tuned", rival="positions interpolated"),
    **{
        f"tuned, {2000 + steps:,} steps": Network(training="control", step=step)
        for steps, step in ((100, 100), (200, 200), (500, 500), (2000, None))
    },
    **{
        f"{kind}, untuned": Network(training="tuned", kind=kind)
        for kind in ("average", "uniform", "uniform_every", "nearest", "conv")
    },
    **{
        f"average, {layers}, untuned": Network(training="tuned", kind="average", layers=layers)
        for layers in ("middle", "shallow")
    },
    **{
        f"average, R = 4, {layers}untuned": Network(
            training="tuned", kind="average", ratio=4, layers=which
        )
        for layers, which in (("", DEEP), ("all, ", "all"))
    },
    **{
        f"conv, {steps:,} steps": Network(
            training="conv",
            step=step,
            kind="conv",
            trained=True,
            rival=f"tuned, {2000 + steps:,} steps",
        )
        for steps, step in ((100, 100), (200, 200), (500, 500), (2000, None))
    },
    **{
        f"conv, {layers}, 200 steps": Network(
            training=layers, kind="conv", layers=layers, trained=True, rival="conv, 200 steps"
        )
        for layers in ("middle", "shallow")
    },
    **{
        f"{kind}, 200 steps": Network(
            training=kind, kind=kind, trained=True, rival="conv, 200 steps"
        )
        for kind in ("average", "uniform")
    },
    "conv alone, 200 steps": Network(training="adapter", kind="conv", trained=True),
    "conv, R = 4, 200 steps": Network(
        training="conv-4", kind="conv", ratio=4, trained=True, rival="tuned, 2,200 steps"
    ),
    "conv, R = 4, all, 200 steps": Network(
        training="conv-4-all",
        kind="conv",
        ratio=4,
        layers="all",
        trained=True,
        rival="tuned, 2,200 steps",
    ),
    STOCK: Network(SMALL, rival=""),
    STOCK_CONTROL: Network(SMALL, "control64", rival=STOCK),
    **{
        f"64 pixels, {kind}, untuned": Network(SMALL, kind=kind, rival=STOCK)
        for kind in ("average", "conv")
    },
    "64 pixels, conv, 500 steps": Network(
        SMALL, "conv64", kind="conv", trained=True, rival=STOCK_CONTROL
    ),
    **{
        f"64 pixels, conv alone, {steps:,} steps": Network(
            SMALL, "adapter64", step, kind="conv", trained=True, rival=STOCK
        )
        for steps, step in ((500, 500), (2000, None))
    },
    "64 pixels, R = 4, average, untuned": Network(SMALL, kind="average", ratio=4, rival=STOCK),
    "64 pixels, R = 4, conv alone, 500 steps": Network(
        SMALL, "adapter64-4", kind="conv", ratio=4, trained=True, rival=STOCK
    ),
    "64 pixels, R = 4, conv, 500 steps": Network(
        SMALL, "conv64-4", kind="conv", ratio=4, trained=True, rival=STOCK_CONTROL
    ),
}


def measure(pipe: Any, size: int, args: argparse.Namespace) -> dict[str, Any]:
    """Errors of a network's predictions."""
    return {"errors": errors(pipe, others(pipe, size, args.pictures, args.folder)).tolist()}


def judge(pipe: Any, captions: list[Caption], args: argparse.Namespace) -> dict[str, Any]:
    """Whether a network's pictures obey."""
    arm = Arm(Plain(), args.steps, args.guidance)
    images, _ = draw(pipe, [c.text for c in captions], arm, seed=args.seed)
    found = verdicts(images, captions)
    pairs = zip(found, captions, strict=True)
    return {
        "hits": [int(verdict.obeyed) for verdict in found],
        "colours": [int(colours_right(verdict, caption)) for verdict, caption in pairs],
    }


def judge_all(model: Model, args: argparse.Namespace) -> dict[str, dict]:
    """Every network whose training is there; what is known stays."""
    known = {}
    for name in args.arms or NETWORKS:
        network = NETWORKS[name]
        setup = network.setup(model, args.folder)
        if setup is None:
            print(f"  {name}: its training is missing", flush=True)
            continue
        size, stem = network.size, name.replace(" ", "_").replace(",", "")
        pipe = setup.build().pipe
        assert pipe.transformer.eval().config.sample_size == size // 8
        known[name] = remembered(
            args.folder / "errors" / f"{stem}.json",
            {"pictures": args.pictures, **setup.to_json()},
            functools.partial(measure, pipe, size, args),
        )
        told = f"  {name}: error {np.mean(known[name]['errors']):.4f}"
        captions = evaluation_captions(args.limit_of(size), seed=args.seed)
        asked = {"limit": len(captions), "steps": args.steps, "guidance": args.guidance}
        key = {**asked, "seed": args.seed, **setup.to_json()}
        file = args.folder / "judged" / f"{stem}.json"
        if not args.draw_nothing or is_known(file, key):
            known[name] |= remembered(file, key, functools.partial(judge, pipe, captions, args))
            told += f", obeyed {np.mean(known[name]['hits']):.3f}"
            told += f", colours {np.mean(known[name]['colours']):.3f}"
        print(told, flush=True)
    return known


def summed_up(known: dict[str, dict], args: argparse.Namespace) -> dict[str, dict]:
    """Shares, errors and paired differences of all arms."""
    arms: dict[str, dict] = {}
    for name, found in known.items():
        error = np.array(found["errors"]).mean(1)
        again = Resamples(len(error))
        arm = arms[name] = {
            "error": {
                "mean": round(float(error.mean()), 4),
                "interval": interval(again.sums(error) / len(error)),
                "by_time": np.round(np.mean(found["errors"], 0), 4).tolist(),
            }
        }
        rival = known.get(NETWORKS[name].rival, {})
        if "errors" in rival:
            more = error - np.array(rival["errors"]).mean(1)
            arm["rival"] = NETWORKS[name].rival
            arm["error_minus_rival"] = compared(
                more.mean(), again.sums(more) / len(more), "difference", VERDICTS[::-1]
            )
        if "hits" in found:
            arm |= obedience(found, rival, args.limit_of(NETWORKS[name].size), args.seed)
    return arms


def obedience(found: dict, rival: dict, limit: int, seed: int) -> dict[str, Any]:
    """What the oracle said of an arm's pictures."""
    captions, again = evaluation_captions(limit, seed=seed), Resamples(limit)
    hits, colours = (np.array(found[what], bool) for what in ("hits", "colours"))
    told = {
        "score": proportion(hits.sum(), limit),
        "parts": by_part(hits, captions),
        "colours_right": proportion(colours.sum(), limit),
    }
    for what, mine in (("hits", hits), ("colours", colours)):
        if what in rival:
            told[f"{what}_minus_rival"] = minus(mine, np.array(rival[what]), again)
    return told


def ceiling(model: Model, captions_seed: int, n: int = 200) -> dict[str, dict]:
    """What the oracle says of true pictures of 128 pixels, as they are and through the VAE."""
    pipe = Setup(model).build().pipe
    captions, images = batch(captions_seed, n, side=LARGE)
    parsed = [parse(caption) for caption in captions]
    back = []
    with torch.no_grad():
        for start in range(0, n, 20):
            pixels = torch.from_numpy(images[start : start + 20]).permute(0, 3, 1, 2) / 127.5 - 1
            latents = pipe.vae.encode(pixels).latent_dist.mode()
            decoded = pipe.vae.decode(latents).sample.clamp(-1, 1).permute(0, 2, 3, 1)
            back.append(np.rint((decoded.numpy() + 1) * 127.5).astype(np.uint8))
    return {
        "true pictures": proportion(judged(images, parsed).sum(), n),
        "through the VAE": proportion(judged(np.concatenate(back), parsed).sum(), n),
    }


def timing(model: Model, repeats: int, items: int = 8) -> dict[str, dict]:
    """Milliseconds of the processor and memory of one evaluation, by tokens, interleaved."""
    found = {}
    for size in (SMALL, LARGE, 2 * LARGE):
        made = {"none": Setup(model, size=size)}
        for kind, ratio, layers in (
            ("conv", 2, "deep"),
            ("conv", 2, "all"),
            ("conv", 4, "all"),
            ("average", 2, "deep"),
            ("average", 2, "all"),
            ("average", 4, "all"),
            ("uniform", 2, "all"),
        ):
            compression = KVCompression(kind, ratio, layers)
            made[f"{kind}, R = {ratio}, {layers}"] = Setup(
                model, size=size, compression=compression
            )
        pipes = {name: setup.build().pipe for name, setup in made.items()}
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(items, 8, size // 8, size // 8, generator=generator)
        states = torch.randn(items, 12, 64, generator=generator)
        data = Batch(x, states, torch.ones(items, 12))
        calls = {
            name: functools.partial(predicted, pipe.transformer.eval(), x, 500, data, chunk=items)
            for name, pipe in pipes.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in pipes}
        for repeat in range(repeats + 1):
            for name, call in calls.items():
                began = time.process_time()  # whoever else uses the machine does not count
                call()
                if repeat:
                    seconds[name].append((time.process_time() - began) / items)
        least = {name: min(values) for name, values in seconds.items()}
        found[f"{(size // 8) ** 2} tokens"] = {
            name: {
                "ms": round(1000 * value, 2),
                "over_none": round(value / least["none"], 3),
                "peak_mb": peak_mb(calls[name]),
            }
            for name, value in least.items()
        }
    return found


def table(arms: dict[str, dict]) -> str:
    lines = [f"{'':42s}{'error':>8s}{'obeyed':>8s}{'colours':>8s}   error against rival"]
    for name, arm in arms.items():
        row = f"{name:42s}{arm['error']['mean']:8.4f}"
        for what in ("score", "colours_right"):
            row += f"{arm[what]['share']:8.3f}" if what in arm else f"{'':8s}"
        if "rival" in arm:
            d = arm["error_minus_rival"]
            row += f"   {d['difference']:+.4f} ({d['interval'][0]:+.4f} to {d['interval'][1]:+.4f})"
            row += f", {arm['rival']}"
        lines.append(row)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/shapes_highres"))
    parser.add_argument("--train", nargs="*", metavar="NAME", help="train; no name: all")
    parser.add_argument("--commands", action="store_true", help="say what --train runs")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="only these; default: all")
    parser.add_argument("--limit", type=int, default=100, help="captions at 128 pixels")
    parser.add_argument("--limit-small", type=int, default=160, help="captions at 64 pixels")
    parser.add_argument("--pictures", type=int, default=64, help="of which errors are measured")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=7, help="of timings")
    parser.add_argument("--no-extras", action="store_true", help="judge, and write no result")
    parser.add_argument("--draw-nothing", action="store_true", help="what is known, and errors")
    parser.add_argument("--add", action="store_true", help="arms that the file has stay in it")
    parser.add_argument("--out", type=Path, default=RESULTS / "shapes_highres.json")
    args = parser.parse_args()

    if args.commands:
        print(commands(args.folder))
        return
    if args.train is not None:
        train(args.folder, args.train or list(TRAININGS))
        return
    model = find_model("shapes-dit")
    args.guidance = model.default("guidance_scale", None)
    args.limit_of = lambda size: args.limit_small if size == SMALL else args.limit
    known = judge_all(model, args)
    if args.no_extras:
        return
    arms = summed_up(known, args)
    print(table(arms), flush=True)
    result = {
        "benchmark": "shapes_highres",
        "versions": versions(),
        "settings": {
            "limit": {"64": args.limit_small, "128": args.limit},
            "steps": args.steps,
            "guidance_scale": args.guidance,
            "seed": args.seed,
            "pictures": args.pictures,
            "times": list(TIMES),
            "unit": "caption with its start noise",
        },
        "trainings": commands(Path("runs/shapes_highres")).splitlines(),
        "ceiling": ceiling(model, 9001),
        "arms": arms,
        "timing": timing(model, args.repeats),
    }
    if args.add:
        old = json.loads(args.out.read_text(encoding="utf-8"))
        assert old["settings"] == result["settings"], "measured with other settings"
        figures = ("error", "score", "colours_right")
        result["arms"] = added(arms, old["arms"], NETWORKS, figures)
    write(result, args.out)


if __name__ == "__main__":
    main()
