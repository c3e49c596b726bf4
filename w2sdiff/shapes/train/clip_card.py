"""The model card of the trained judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from w2sdiff.shapes.train.clip import NAME, SCHEDULE, SECOND_SCHEDULE

__all__ = ["BENCHMARK", "clip_card"]

BENCHMARK = "shapes_clip"


def clip_card(out: Path, figures: dict[str, Any] | None) -> str:
    """Return README.md of `out/shapes-clip`.

    Args:
        out: the training folder, with its log.
        figures: what `benchmarks/shapes_clip.py` wrote; None where it was not run.
    """
    blocks = [_HEAD, "## Figures", _figures(figures), "## Training", _training(out), _LIMITS]
    return "\n\n".join(blocks) + "\n"


def _figures(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return "Not evaluated."
    seen, held_out = (figures["true_above_altered"][group] for group in ("seen", "held out"))
    lines = [
        "How often the true caption scores above the same caption with one thing altered, on fresh "
        "renders, in percent, with 95% intervals (Wilson):",
        "",
        "| altered | seen combinations | n | held-out combinations | n |",
        "| --- | --- | ---: | --- | ---: |",
    ]
    lines += [
        f"| {kind} | {_share(seen[kind])} | {seen[kind]['n']} | {_share(held_out[kind])} | "
        f"{held_out[kind]['n']} |"
        for kind in seen
    ]
    agreement = figures["agreement_with_oracle"]
    rows = {
        "all": agreement["all"],
        **agreement["categories"],
        **{f"shapes-unet {arm}": value for arm, value in agreement["arms"].items()},
    }
    lines += [
        "",
        "How well the score tells pictures that obey their caption (as the exact oracle judges) "
        "from those that do not, on pictures that shapes-unet made, strong and weak, at guidance 1 "
        "and 3: area under the ROC curve, with 95% intervals (bootstrap of captions):",
        "",
        "| pictures | n | obeyed, percent | area |",
        "| --- | ---: | ---: | --- |",
    ]
    lines += [
        f"| {name} | {v['pictures']} | {100 * v['obeyed']:.0f} | "
        f"{v['auc']:.3f} ({v['low']:.3f} to {v['high']:.3f}) |"
        for name, v in rows.items()
    ]
    return "\n".join([*lines, "", "Made by `python benchmarks/shapes_clip.py`."])


def _share(value: dict[str, Any]) -> str:
    return f"{100 * value['share']:.1f} ({100 * value['low']:.1f} to {100 * value['high']:.1f})"


def _training(out: Path) -> str:
    lines = [
        "`python -m w2sdiff.shapes.train clip --seed 0 --out DIR`",
        "",
        "| part | steps | batch | peak learning rate | minutes | last loss |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    runs = {"clip": ("first", SCHEDULE), "clip-second": ("second", SECOND_SCHEDULE)}
    for run, (name, schedule) in runs.items():
        log = out / "runs" / run / "log.jsonl"
        if log.is_file():
            end = json.loads(log.read_text().splitlines()[-1])
            lines.append(
                f"| {name} | {end['step']} | {schedule.batch} | {schedule.lr:g} | "
                f"{end['seconds'] / 60:.0f} | {end['loss']:g} |"
            )
    return "\n".join([*lines, "", _TRAINING])


_HEAD = f"""---
license: apache-2.0
library_name: open_clip
pipeline_tag: zero-shot-image-classification
---

# {NAME}

A small CLIP of the world of shapes (`w2sdiff.shapes.world`): pictures of 64 × 64 pixels, captions
of up to 16 tokens, features of 128 numbers. It is the judge that needs no download: the scorer
`clipscore:model={NAME}`. Taught by the exact oracle which picture belongs to which caption, with
captions and pictures that differ in one thing as hard negatives, and with pictures that were sent
through the codec of the generators, roughened, or mixed from two.

## Use

```python
import open_clip
from w2sdiff.shapes import judge_path

folder = judge_path("{NAME}")
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{{folder}}")
tokenizer = open_clip.get_tokenizer(f"local-dir:{{folder}}")
```"""

_TRAINING = """Each picture of a batch comes with its caption and two altered ones. Left to itself
the model takes captions for bags of words for a long time. So the second part adds a linear head,
thrown away afterwards, that reads who is where off the features of pictures and captions alike, and
alters relations and swaps colours more often. Wall-clock minutes of one thread on a two-core CPU
machine that other work kept busy. Weights are averaged over each part; the file holds float16."""

_LIMITS = """## Data, licence, limitations

Every picture comes from the world of shapes: drawn, endless, free of rights. Held-out combinations
of kinds never occur in training. Weights, data and code are under Apache-2.0.

It is a learned judge and errs; the oracle (`w2sdiff.shapes.judge`) does not. Its weak side is that
of large CLIPs: relations (the figures above say how weak). Among good pictures it tells right from
wrong less well than among bad ones.

It exists so that a
scorer of the usual kind can be studied beside the truth: how far its gains are real. It knows the
words of this world and nothing else."""
