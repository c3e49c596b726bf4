"""Is a network with compressed keys and values a good weak model? A hypothesis, tested.

`W2SD(weak=CompressedKV(...))` and AutoGuidance with it need no second checkpoint. On shapes-dit at
64 pixels and, adapted, at 128 (`shapes_highres.py --train` comes first), with untuned and trained
compressors, against the early checkpoint, guidance as the pair, and plain guidance.

Two questions, asked apart:

* **Direction.** Extrapolation, s + a (s - w), makes the error of the strong model's prediction s
  smaller for small a > 0 if <w - s, s - y> > 0, where y is what s was trained to predict. The noise
  in y is independent of both, so the mean over pictures is that of the true error. Its ratio to
  |w - s|² is the a that makes the squared error least; AutoGuidance's scale is 1 + a. By noise
  level, on rendered pictures that nothing was trained on.
* **Pictures.** Captions obeyed at equal evaluations, from the same noise: every arm may spend what
  W2SD does at --steps steps. AutoGuidance at scale 2 is W2SD's equal to first order.

Guidance is the pair that needs no second network either: W2SD with guidance 2 and 1 (the pipeline
as called, at g = 2, against its conditional half), and with 1 and 0, which costs what every other
pair here costs. Both are plain guidance at g + 1 to first order. AutoGuidance with them is plain
guidance at g + scale - 1 itself, only dearer, and has no arm.

    python benchmarks/compressed_weak.py [--sizes 64 128] [--folder runs/shapes_highres]

`--arms` draws some arms only, and `--add` puts them into the result that is there, if what both
have agrees to the last digit.

The guidance scale g, at both sizes, is the one that shapes_methods.py chose for plain sampling at
64 pixels, on other captions.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _highres import (
    LARGE,
    SMALL,
    TIMES,
    added,
    is_known,
    noised,
    others,
    predicted,
    remembered,
    trained,
)
from _shapes import (
    RESULTS,
    Arm,
    Resamples,
    by_part,
    colours_right,
    draw,
    minus,
    proportion,
    rounded,
    verdicts,
    versions,
    write,
)

from w2sdiff import W2SD, AutoGuidance, Checkpoint, CompressedKV, Guidance, Plain
from w2sdiff.attention import Patch, load_adapter
from w2sdiff.edits import Edit, Edits
from w2sdiff.generate import Model, find_model
from w2sdiff.highres import Setup
from w2sdiff.highres.data import Batch
from w2sdiff.jobs import weights_sha256
from w2sdiff.shapes.world import Caption, evaluation_captions

REFERENCE = "plain, equal evaluations"
EARLY = "early checkpoint"
UNCONDITIONAL = "no caption"  # guidance: what is extrapolated away from is the same network's


@dataclass(frozen=True)
class Place:
    """One size: the strong network and the weak ones.

    Attributes:
        size: pixels per side.
        setup: of the strong network.
        weak: name -> edits.
        drawn: which of them draw pictures too.
    """

    size: int
    setup: Setup
    weak: dict[str, Edits]
    drawn: tuple[str, ...]


def place_of(size: int, model: Model, folder: Path) -> Place:
    """Compressions without training, and trained ones where they are there."""
    compressed: dict[str, Edit] = {
        f"average, R = {ratio}, {layers}": CompressedKV("average", ratio, layers)
        for ratio, layers in ((2, "deep"), (2, "all"), (4, "deep"), (4, "all"))
    }
    names = (
        {"adapter64": (2, "deep"), "adapter64-4": (4, "deep"), "adapter64-all": (4, "all")}
        if size == SMALL
        else {"adapter": (2, "deep"), "adapter-4-all": (4, "all")}
    )
    for name, (ratio, layers) in names.items():
        if (file := trained(folder, name)) is not None:
            edit = CompressedKV("conv", ratio, layers, adapter=file)
            compressed[f"conv trained, R = {ratio}, {layers}"] = edit
    weak = {name: Edits((edit,)) for name, edit in compressed.items()}
    wholes = (
        {2: trained(folder, "conv64"), 4: trained(folder, "conv64-4")}
        if size == SMALL
        else {2: trained(folder, "conv", 500), 4: trained(folder, "conv-4")}
    )
    for ratio, whole in wholes.items():
        if whole is not None:
            edits = Checkpoint(whole) | CompressedKV("conv", ratio, "deep", adapter=whole)
            weak[f"network trained with conv, R = {ratio}, deep"] = edits
    drawn = ("average, R = 2, deep", "average, R = 4, all", "conv trained, R = 2, deep")
    drawn += ("conv trained, R = 4, all", "network trained with conv, R = 2, deep")
    drawn += ("network trained with conv, R = 4, deep",)
    drawn = (EARLY, *(name for name in drawn if name in weak))
    if size == SMALL:
        assert model.weak is not None
        return Place(size, Setup(model), {EARLY: Edits((Checkpoint(model.weak),)), **weak}, drawn)
    start, early = trained(folder, "tuned"), trained(folder, "tuned", 500)
    if start is None or early is None:
        raise SystemExit("at 128 pixels: python benchmarks/shapes_highres.py --train tuned, first")
    setup = Setup(model, transformer=start, size=LARGE)
    return Place(size, setup, {EARLY: Edits((Checkpoint(early),)), **weak}, drawn)


# ---- direction


@dataclass(frozen=True)
class View:
    """What the strong network predicts of noised pictures, and how wrong it is."""

    data: Batch
    nothing: Batch
    levels: list[tuple[torch.Tensor, torch.Tensor]]
    strong: list[torch.Tensor]
    wrong: list[torch.Tensor]

    @classmethod
    def of(cls, pipe: Any, size: int, args: argparse.Namespace) -> View:
        """At every noise level."""
        count = args.pictures if size == SMALL else args.pictures // 2
        data = others(pipe, size, count, args.folder)
        levels = [noised(pipe, data.latents, time) for time in TIMES]
        network = pipe.transformer.eval()
        strong = [predicted(network, x, t, data) for t, (x, _) in zip(TIMES, levels, strict=True)]
        wrong = [s - y for s, (_, y) in zip(strong, levels, strict=True)]
        return cls(data, _without_caption(pipe, data), levels, strong, wrong)


def directions(pipe: Any, place: Place, args: argparse.Namespace, key: dict) -> dict[str, dict]:
    """For every weak model: does the strong one's error point away from it?"""
    view = functools.cache(lambda: View.of(pipe, place.size, args))
    found = {}
    for name, edits in {UNCONDITIONAL: None, **place.weak}.items():
        file = args.folder / "directions" / f"{place.size}_{name}.json"
        found[name] = remembered(
            file.with_name(file.name.replace(" ", "_").replace(",", "")),
            {**key, "weak": edits and _sha256(edits)},
            functools.partial(direction, pipe, edits, view),
        )
        del found[name]["key"]
        a = found[name]["best_a"]
        print(f"  {name}: a = {a['a']:+.3f} {a['interval']}", flush=True)
    return found


def direction(pipe: Any, edits: Edits | None, view: Callable[[], View]) -> dict[str, Any]:
    """Where one weak model lies, seen from the strong one and from its error."""
    seen = view()
    asked = seen.nothing if edits is None else seen.data
    with weak_network(pipe, edits) as other:
        weak = [predicted(other, x, t, asked) for t, (x, _) in zip(TIMES, seen.levels, strict=True)]
    away = [w - s for w, s in zip(weak, seen.strong, strict=True)]
    pairs = zip(away, seen.wrong, strict=True)
    inner = torch.stack([_mean(d * e) for d, e in pairs], 1).numpy()  # [pictures, levels]
    square = torch.stack([_mean(d.square()) for d in away], 1).numpy()
    own = torch.stack([_mean(e.square()) for e in seen.wrong], 1).numpy()
    again = Resamples(len(inner))
    whole = again.sums(inner.sum(1)) / again.sums(square.sum(1))
    by_level = again.sums(inner) / again.sums(square)
    return {
        "strong_error": round(float(own.mean()), 4),
        "error": round(float((own + 2 * inner + square).mean()), 4),
        "best_a": {
            "a": round(float(inner.sum() / square.sum()), 4),
            "interval": rounded(np.quantile(whole, [0.025, 0.975])),
        },
        "best_a_by_time": rounded(inner.sum(0) / square.sum(0)),
        "interval_by_time": [rounded(ends) for ends in np.quantile(by_level, [0.025, 0.975], 0).T],
        # With the noise of the target in it: a lower bound of the cosine with the true error.
        "cosine_by_time": rounded(inner.sum(0) / np.sqrt(square.sum(0) * own.sum(0))),
    }


@contextmanager
def weak_network(pipe: Any, edits: Edits | None) -> Iterator[Any]:
    """The network of a weak role, without a pipeline around it."""
    network = pipe.transformer
    for edit in edits.items if edits else ():
        if isinstance(edit, Checkpoint):
            network = type(network).from_pretrained(edit.source).eval()
    patches = [
        _patch(network, edit)
        for edit in (edits.items if edits else ())
        if isinstance(edit, CompressedKV)
    ]
    for patch in patches:
        patch.enable()
    try:
        yield network
    finally:
        for patch in patches:
            patch.disable()


def _patch(network: Any, edit: CompressedKV) -> Patch:
    patch = Patch(network, edit.compression)
    if edit.adapter is not None:
        load_adapter(patch, edit.adapter)
    return patch


def _without_caption(pipe: Any, data: Batch) -> Batch:
    states, mask, *_ = pipe.encode_prompt("", do_classifier_free_guidance=False)
    states = states[:, : int(mask.sum())].detach()
    count = len(data.latents)
    ones = torch.ones(count, states.shape[1], dtype=data.mask.dtype)
    return dataclasses.replace(data, states=states.expand(count, -1, -1), mask=ones)


def _mean(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1).mean(1)


# ---- pictures


def entrants(place: Place, g: float, steps: int) -> dict[str, tuple[Arm, str | None]]:
    """name -> (arm, its rival of the same first-order strength)."""
    one = Guidance(1.0)
    budget = W2SD(strong=one, weak=one | place.weak[EARLY]).cost(steps, g)

    def within(method: Any, scale: float = g) -> Arm:
        return Arm.within(budget, method, scale)

    arms: dict[str, tuple[Arm, str | None]] = {
        REFERENCE: (within(Plain()), None),
        "plain, guidance g + 1": (within(Plain(), g + 1), None),
        "plain, as many steps": (Arm(Plain(), steps, g), None),
    }
    for high in (2, 1):
        pair = W2SD(strong=Guidance(high), weak=Guidance(high - 1))
        arms[f"W2SD, guidance {high} and {high - 1}"] = (within(pair), "plain, guidance g + 1")
    for name in place.drawn:
        roles: Any = {"strong": one, "weak": one | place.weak[name]}
        arms[f"W2SD, {name}"] = (within(W2SD(**roles)), f"AutoGuidance 2, {name}")
        for scale in (1.25, 1.5, 2.0) if place.size == SMALL else (1.25, 2.0):
            method = AutoGuidance(**roles, scale=scale, base=Edits())
            arms[f"AutoGuidance {scale:g}, {name}"] = (within(method), None)
    return arms


def chosen() -> dict:
    """The guidance scale that shapes_methods.py chose for plain sampling, and on what."""
    earlier = json.loads((RESULTS / "shapes_methods.json").read_text(encoding="utf-8"))
    return dict(earlier["models"]["shapes-dit"]["guidance"])


def bench(size: int, model: Model, args: argparse.Namespace) -> dict:
    place = place_of(size, model, args.folder)
    pipe = place.setup.build().pipe
    folder = args.folder / "weak"
    shared = {"size": size, "setup": place.setup.to_json(), "seed": args.seed}
    print(f"{size} pixels", flush=True)
    key = {**shared, "pictures": args.pictures, "times": TIMES}
    found = directions(pipe, place, args, key)
    g = chosen()["g"]
    limit = args.limit if size == SMALL else args.limit_large
    captions = evaluation_captions(limit, seed=args.seed)
    field, again = entrants(place, g, args.steps), Resamples(limit)
    hits, colours, arms = {}, {}, {}
    for name, (arm, _) in field.items():
        edits = place.weak.get(name.partition(", ")[2])
        told = {"arm": {**arm.to_json(model)}, "limit": limit, "weak": edits and _sha256(edits)}
        told["arm"].pop("method")
        told["arm"]["name"] = name
        file = folder / f"{size}_{name}.json".replace(" ", "_").replace(",", "")
        key = {**shared, **told}
        asked = not args.draw_nothing and (not args.arms or name in {REFERENCE, *args.arms})
        if not asked and not is_known(file, key):
            continue
        kept = remembered(file, key, functools.partial(_obeyed, pipe, captions, arm, args.seed))
        hits[name], colours[name] = (np.array(kept[n], bool) for n in ("hits", "colours"))
        arms[name] = {
            "steps": arm.steps,
            "guidance_scale": arm.guidance_scale,
            "evaluations": arm.evaluations,
            "score": proportion(hits[name].sum(), limit),
            "parts": by_part(hits[name], captions),
            "colours_right": proportion(sum(kept["colours"]), limit),
            "seconds_per_picture": round(kept["seconds"] / limit, 4),
        }
        print(f"  {name}: {hits[name].mean():.3f}, {arm.evaluations}", flush=True)
    for name in arms:
        rival = field[name][1]
        if name != REFERENCE and REFERENCE in arms:
            arms[name]["minus_reference"] = minus(hits[name], hits[REFERENCE], again)
            arms[name]["colours_minus_reference"] = minus(colours[name], colours[REFERENCE], again)
        if rival in arms:
            difference = minus(hits[name], hits[rival], again)
            arms[name]["minus_rival"] = {"rival": rival, **difference}
    return {
        "guidance_scale": g,
        "limit": limit,
        "budget": max(arm.evaluations for arm, _ in field.values()),
        "directions": found,
        "arms": arms,
    }


def _obeyed(pipe: Any, captions: list[Caption], arm: Arm, seed: int) -> dict:
    images, seconds = draw(pipe, [c.text for c in captions], arm, seed=seed)
    found = verdicts(images, captions)
    return {
        "hits": [int(verdict.obeyed) for verdict in found],
        "colours": [int(colours_right(v, c)) for v, c in zip(found, captions, strict=True)],
        "seconds": seconds,
    }


def _sha256(edits: Edits) -> str:
    """What decides a weak model, whatever its files are called."""
    parts = []
    for edit in edits.items:
        if isinstance(edit, CompressedKV):
            parts.append(str(edit.compression))
        file = edit.adapter if isinstance(edit, CompressedKV) else edit.source
        parts += [weights_sha256(Path(file))] if file is not None else []
    return " ".join(parts)


def beside(result: dict, old: dict) -> dict:
    """The sizes of a result with what the file has besides."""
    assert old["settings"] == result["settings"], "measured with other settings"
    sizes = {**old["sizes"], **result["sizes"]}
    for size in result["sizes"].keys() & old["sizes"].keys():
        new, known = sizes[size], old["sizes"][size]
        assert new["limit"] == known["limit"], "measured on other captions"
        for part, figures in (
            ("directions", ("strong_error", "error")),
            ("arms", ("evaluations", "score", "colours_right")),
        ):
            order = dict.fromkeys([*known[part], *new[part]])
            new[part] = added(new[part], known[part], order, figures)
    return sizes


def table(size: int, found: dict) -> str:
    lines = [f"\n{size} pixels: g = {found['guidance_scale']:g}"]
    lines.append(f"{'weak model':44s}{'error':>8s}{'best a':>9s}   by noise level, low to high")
    rows = found["directions"]
    lines.append(f"{'none: the strong one':44s}{rows[UNCONDITIONAL]['strong_error']:8.4f}")
    for name, row in rows.items():
        levels = " ".join(f"{a:+.2f}" for a in row["best_a_by_time"])
        lines.append(f"{name:44s}{row['error']:8.4f}{row['best_a']['a']:+9.3f}   {levels}")
    lines.append(f"\n{'':44s}{'evals':>6s}{'obeyed':>8s}   difference from {REFERENCE!r}")
    for name, arm in found["arms"].items():
        row = f"{name:44s}{arm['evaluations']:6d}{arm['score']['share']:8.3f}"
        if "minus_reference" in arm:
            d = arm["minus_reference"]
            low, high = (100 * end for end in d["interval"])
            row += f"   {100 * d['difference']:+.1f} ({low:+.1f} to {high:+.1f}) {d['verdict']}"
        lines.append(row)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/shapes_highres"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[SMALL, LARGE])
    parser.add_argument("--limit", type=int, default=160, help="captions at 64 pixels")
    parser.add_argument("--limit-large", type=int, default=60, help="captions at 128 pixels")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="draw only these; default: all")
    parser.add_argument("--draw-nothing", action="store_true", help="what is known, and directions")
    parser.add_argument("--pictures", type=int, default=192, help="for the direction; 128: half")
    parser.add_argument("--steps", type=int, default=10, help="steps of W2SD; sets the budget")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--add", action="store_true", help="what the file has stays in it")
    parser.add_argument("--out", type=Path, default=RESULTS / "compressed_weak.json")
    args = parser.parse_args()

    model, found = find_model("shapes-dit"), {}
    for size in args.sizes:
        found[str(size)] = bench(size, model, args)
        print(table(size, found[str(size)]), flush=True)
    result = {
        "benchmark": "compressed_weak",
        "versions": versions(),
        "settings": {
            "steps": args.steps,
            "seed": args.seed,
            "guidance_in_pair": 1.0,
            "times": list(TIMES),
            "unit": "caption with its start noise",
        },
        "sizes": found,
    }
    if args.add:
        result["sizes"] = beside(result, json.loads(args.out.read_text(encoding="utf-8")))
    write(result, args.out)


if __name__ == "__main__":
    main()
