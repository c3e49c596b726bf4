"""What the evaluation harness costs beside the models: scoring, the ledger, the report.

    python benchmarks/harness.py [--parts scoring ledger report] [--repeats 5] [--out FILE]

scoring: pictures per second of `score_pictures` with CLIPScore on a ViT-B/32 of random weights,
against the bare network: `encode_image` and `encode_text` of open_clip in a loop over batches that
lie ready in memory. Ours is the whole call: files read and hashed, decoded, resized, prompts cut
into tokens, scores written to a ledger; only the loading of the weights is left out. Repeats take
turns and the median of the ratios of one round is given. The network has one thread, so that
another core can read ahead, as it does beside an accelerator. "all threads" gives the network every
core there is: reading then takes time from it, whoever does it, which "by hand" shows: the loop one
writes first (open, prepare, forward).

ledger: one folder with so many finished items, each with a file of 2 kB, made one by one by
`run_local`. What a made item costs is the mean of the last tenth; a score record (no file, batches
of 32) is measured in the same folder. The resume scan finds them all again. Memory is the growth of
the peak of Python's own memory from a tenth of the items to all of them, by tracemalloc, in scans.

report: 1,000 prompts x 6 arms with pictures of 256 x 256 and three scorers, made up; `analyse`,
`write_summary` and `write_report` together.

Targets: scoring at least 0.85 of the bare network; at most 5 ms per item in a folder of 100,000;
100,000 items found in at most 10 s; no memory per item; the report in at most 20 s. Times are wall
times, so a busy machine shows: the load while it ran is in the result. On two quiet cores it takes
about ten minutes, most of it making items, which waits for the disk.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import w2sdiff
from w2sdiff.bench.report import write_report
from w2sdiff.bench.results import ArmFacts, PromptFacts, Results, Sample, ScorerFacts
from w2sdiff.bench.scoring.score import Picture, score_pictures
from w2sdiff.bench.stats.analyse import analyse
from w2sdiff.bench.tables.summary import write_summary
from w2sdiff.jobs import Done, Item, Ledger, Task, digest, run_local
from w2sdiff.scorers.clipscore import ClipScore

RESULTS = Path(__file__).parent / "results"
PARTS = ("scoring", "ledger", "report")
MODEL = "ViT-B-32"
BATCH = 32


def picture_bytes(seed: int, size: int) -> bytes:
    """A PNG of smooth waves with a little grain: as hard to decode as a photograph."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    waves = [np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in random.uniform(0, 4, (3, 3))]
    pixels = 127 + 100 * np.stack(waves, -1) + random.normal(0, 4, (size, size, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


# Scoring ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept(ClipScore):
    """CLIPScore that stays loaded: loading is not what is measured."""

    def close(self) -> None:
        pass


def random_clip(folder: Path) -> tuple[torch.nn.Module, Callable[[Image.Image], torch.Tensor]]:
    """A ViT-B/32 of random weights, saved in open_clip's layout, and open_clip's own transform."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = open_clip.get_model_config(MODEL)
    model = open_clip.CLIP(**config).eval()
    folder.mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    text = json.dumps({"model_cfg": config, "preprocess_cfg": {}})
    (folder / "open_clip_config.json").write_text(text, encoding="utf-8")
    return model, open_clip.image_transform(224, is_train=False)


def scoring(folder: Path, pictures: int, repeats: int) -> dict:
    """Pictures per second of the bare network, of a loop by hand, and of ours."""
    import open_clip

    model, prepare = random_clip(folder / "clip")
    tokens = open_clip.get_tokenizer(MODEL)
    found = []
    for number in range(pictures):
        path = folder / f"{number}.png"
        path.write_bytes(picture_bytes(number, 512))
        prompt = f"a red circle left of a blue square, number {number}, best quality, on a table"
        found.append(Picture(path, None, prompt))
    groups = [found[start : start + BATCH] for start in range(0, pictures, BATCH)]

    def loaded(group: list[Picture]) -> tuple[torch.Tensor, torch.Tensor]:
        images = [prepare(Image.open(picture.path).convert("RGB")) for picture in group]
        return torch.stack(images), tokens([picture.prompt for picture in group])

    @torch.inference_mode()
    def forward(images: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        seen, read = model.encode_image(images), model.encode_text(words)
        return torch.nn.functional.cosine_similarity(seen, read)

    ready = [loaded(group) for group in groups]
    scorer = Kept(model=str(folder / "clip"), form="plain")
    ledgers = iter(range(1000))

    def ours() -> None:
        with Ledger(folder / f"scores-{next(ledgers)}") as ledger:
            assert score_pictures(found, [scorer], ledger, batch=BATCH).made == pictures

    arms = {
        "bare network": lambda: [forward(*batch) for batch in ready],
        "by hand": lambda: [forward(*loaded(group)) for group in groups],
        "score_pictures": ours,
    }
    result: dict = {"model": MODEL, "pictures": pictures, "pixels": 512, "batch": BATCH}
    all_threads = torch.get_num_threads()
    for name, threads in {"one thread": 1, "all threads": all_threads}.items():
        torch.set_num_threads(threads)
        result[name] = {"threads": threads, **in_turns(arms, pictures, repeats)}
    agreement = agree(folder, found, groups, lambda group: forward(*loaded(group)))
    return result | {"largest_difference_of_scores": agreement}


def in_turns(arms: dict[str, Callable[[], object]], pictures: int, repeats: int) -> dict:
    """Median pictures per second of each arm, and median ratios within a round; one to warm up."""
    rounds = []
    for _ in range(repeats + 1):
        rounds.append({name: seconds(run) for name, run in arms.items()})
    rounds = rounds[1:]
    bare, by_hand, ours = arms
    return {
        "pictures_per_second": {
            name: pictures / statistics.median(times[name] for times in rounds) for name in arms
        },
        "of_the_bare_network": statistics.median(times[bare] / times[ours] for times in rounds),
        "by_hand_of_the_bare_network": statistics.median(
            times[bare] / times[by_hand] for times in rounds
        ),
    }


def agree(folder: Path, found: list, groups: list, cosines: Callable) -> float:
    """How far our scores are from open_clip's own transform, tokeniser and network, in 100 cos."""
    from w2sdiff.bench.scoring.score import read_scores

    scorer = ClipScore(model=str(folder / "clip"), form="plain")
    ours = read_scores(Ledger(folder / "scores-0"), found, [scorer])
    theirs = torch.cat([100 * cosines(group) for group in groups])
    return max(abs(ours[n, scorer.name].score - float(theirs[n])) for n in range(len(found)))


# The ledger ---------------------------------------------------------------------------------------


def tasks(items: int, size: int = 1, kind: str = "picture") -> Iterator[Task]:
    """Items with specs as large as those of pictures."""
    settings = {"steps": 50, "guidance": 5.0, "size": [512, 512], "scheduler": "ddim"}
    method = {"method": "w2sd", "strong": {"guidance": 5.0}, "weak": {"guidance": 1.0}}
    spec = {"kind": kind, "model": "0" * 64, "method": method, "settings": settings}
    for start in range(0, items, size):
        numbers = range(start, min(items, start + size))
        yield Task(tuple(Item(spec | {"prompt": f"a red circle {n}"}) for n in numbers))


def with_file(task: Task) -> list[Done]:
    return [Done({f"{item.key}.png": bytes(2000)}, {"seconds": 0.5}) for item in task.items]


def without_file(task: Task) -> list[Done]:
    facts = {"score": 0.25, "tokens": 11, "truncated": False}
    return [Done({}, facts) for _ in task.items]


def ledger(folder: Path, items: int) -> dict:
    """Per made item, per score record, per found item, in one folder; memory per found item."""
    last = items // 10
    run_local(Ledger(folder), tasks(items - last), with_file)
    # The same generator again, to its last tenth only: what was found is not what is timed.
    rest = list(tasks(items))[-last:]
    made = seconds(lambda: run_local(Ledger(folder), rest, with_file)) / last
    score = seconds(lambda: run_local(Ledger(folder), tasks(last, BATCH, "score"), without_file))
    found: list[int] = []

    def scan() -> None:
        found.append(run_local(Ledger(folder), tasks(items), with_file).found)

    took = seconds(scan)
    assert found == [items]
    few, many = (peak(folder, count) for count in (items // 10, items))
    return {
        "items": items,
        "made_ms": 1e3 * made,
        "score_record_ms": 1e3 * score / last,
        "scan_s": took,
        "found_us": 1e6 * took / items,
        "peak_kb": {"a tenth": few / 1024, "all": many / 1024},
        "memory_per_item_bytes": (many - few) / (items - items // 10),
    }


def peak(folder: Path, items: int) -> int:
    """Bytes at the peak of a scan."""
    tracemalloc.start()
    run_local(Ledger(folder), tasks(items), with_file)
    bytes_ = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return bytes_


# The report ---------------------------------------------------------------------------------------


def made_up(folder: Path, prompts: int) -> Results:
    """Six arms, two of them with two rivals each, three scorers, a picture for every sample."""
    arms = []
    for name in ("w2sd", "zigzag"):
        arms.append(ArmFacts(name, f"{name}, made up", 20, 3.0, 80))
        arms.append(ArmFacts(f"{name} = steps", "plain", 40, 3.0, 80, name, "evaluations"))
        arms.append(ArmFacts(f"{name} = strength", "plain", 40, 4.4, 80, name, "strength", 4.4))
    judges = {
        "clipscore": "rises with guidance",
        "aesthetic": "does not rise with guidance",
        "saturation": "statistic",
    }
    scorers = tuple(
        ScorerFacts(name, group, None if group == "statistic" else True, (0.0, 10.0))  # type: ignore[arg-type]
        for name, group in judges.items()
    )
    random = np.random.default_rng(0)
    level = random.normal(5, 1, (prompts, len(scorers)))
    values = level + random.normal(0, 0.5, (len(arms), prompts, len(scorers)))
    (folder / "images").mkdir(parents=True)
    samples = []
    for arm in range(len(arms)):
        for prompt in range(prompts):
            data = picture_bytes(arm * prompts + prompt, 256)
            place = f"images/{arm}-{prompt}.png"
            (folder / place).write_bytes(data)
            scores = dict(zip(judges, map(float, values[arm, prompt]), strict=True))
            samples.append(
                Sample(
                    arm,
                    prompt,
                    0,
                    image=place,
                    sha256=digest([arm, prompt]),
                    seed=prompt,
                    noise=digest(prompt),
                    scores=scores,
                    seconds=1.5,
                )
            )
    names = [f"made-up prompt number {n}, with some words to it" for n in range(prompts)]
    rows = [PromptFacts(f"{n:04d}", name, f"kind {n % 4}") for n, name in enumerate(names)]
    return Results("Made up", folder, tuple(arms), tuple(rows), scorers, tuple(samples))


def report(folder: Path, prompts: int) -> dict:
    """Seconds of the statistics, of the tables and of the page with its plots."""
    results = made_up(folder, prompts)
    took = {"analyse_s": seconds(lambda: analyse(results))}
    analysis = analyse(results)
    took["write_summary_s"] = seconds(lambda: write_summary(results, analysis, folder))
    took["write_report_s"] = seconds(lambda: write_report(results, analysis, folder))
    return {
        "prompts": prompts,
        "arms": len(results.arms),
        "pixels": 256,
        **took,
        "total_s": sum(took.values()),
        "page_mb": (folder / "index.html").stat().st_size / 2**20,
    }


# --------------------------------------------------------------------------------------------------


def against_targets(result: dict) -> dict[str, dict]:
    """Each target that was measured at its own size."""
    rows: dict[str, tuple[float, float, bool]] = {}
    if "scoring" in result:
        ratio = result["scoring"]["one thread"]["of_the_bare_network"]
        rows["scoring / bare network"] = (ratio, 0.85, ratio >= 0.85)
    if "ledger" in result:
        part = result["ledger"]
        for name, key, most in (
            ("made item (ms)", "made_ms", 5.0),
            ("score record (ms)", "score_record_ms", 5.0),
            ("resume scan (s)", "scan_s", 10.0),
            ("memory per item (bytes)", "memory_per_item_bytes", 10.0),
        ):
            rows[f"{part['items']} items: {name}"] = (part[key], most, part[key] <= most)
    if "report" in result:
        part = result["report"]
        name = f"report, {part['prompts']} prompts x {part['arms']} arms (s)"
        rows[name] = (part["total_s"], 20.0, part["total_s"] <= 20.0)
    return {
        name: {"measured": value, "target": target, "met": met}
        for name, (value, target, met) in rows.items()
    }


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=5, help="rounds of the scoring part")
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULTS / "harness.json")
    args = parser.parse_args()

    result: dict = {
        "benchmark": "harness",
        "versions": {"w2sdiff": w2sdiff.__version__, "torch": torch.__version__},
        "settings": {"repeats": args.repeats, "cores": os.cpu_count()},
        "load": {"before": os.getloadavg()[0]},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "scoring" in args.parts:
            result["scoring"] = scoring(folder, args.pictures, args.repeats)
        if "ledger" in args.parts:
            result["ledger"] = ledger(folder / "ledger", args.items)
        if "report" in args.parts:
            result["report"] = report(folder / "report", args.prompts)
    result["load"]["after"] = os.getloadavg()[0]
    result["targets"] = against_targets(result)
    result = rounded(result)
    for name, row in result["targets"].items():
        verdict = "ok" if row["met"] else "MISSED"
        print(f"{name:<44} {row['measured']:>8}  target {row['target']:<5} {verdict}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
