"""How well the trained judge, shapes-clip, tells true captions from altered ones and right pictures
from wrong ones.

Two questions. On fresh renders, seen and held-out combinations apart: how often does the true
caption score above the same caption with one thing altered, by kind of alteration (95% Wilson
intervals)? And on pictures that shapes-unet really makes, strong and weak, at guidance 1 and 3: how
well does the score tell those that obey their caption, as the exact oracle judges, from those that
do not (area under the ROC curve, 95% interval from 2,000 bootstrap draws of captions)?

    python benchmarks/shapes_clip.py [--captions 400] [--renders 1000]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import rankdata

from w2sdiff.scorers.clipscore import ClipScore
from w2sdiff.shapes import checkpoint_path, judge_all
from w2sdiff.shapes.alter import ALTERATIONS, alter
from w2sdiff.shapes.train.evaluate import STEPS, pictures, wilson
from w2sdiff.shapes.world import (
    CATEGORIES,
    evaluation_captions,
    render,
    sample_caption,
    sample_scene,
)

RESULTS = Path(__file__).parent / "results" / "shapes_clip.json"
RENDER_SEED, CAPTION_SEED, FIRST_NOISE = 701, 702, 400_000
ARMS = [(role, scale) for role in ("strong", "weak") for scale in (1.0, 3.0)]
DRAWS = 2_000


def share(hits: list[bool]) -> dict:
    """A proportion with its interval."""
    low, high = wilson(sum(hits), len(hits))
    return {
        "share": round(sum(hits) / max(1, len(hits)), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "n": len(hits),
    }


def ranking(judge: ClipScore, renders: int) -> dict:
    """How often the true caption of a render is above an altered one."""
    found = {}
    for held_out in (False, True):
        rng = np.random.default_rng((RENDER_SEED, held_out))
        captions = [sample_caption(rng, held_out, open_share=0.0) for _ in range(renders)]
        images = [Image.fromarray(p) for p in render([sample_scene(c, rng) for c in captions])]
        true = judge.score(images, [c.text for c in captions])
        hits: dict[str, list[bool]] = {}
        for kind in ALTERATIONS:
            others = [alter(caption, kind, rng) for caption in captions]
            rows = [i for i, other in enumerate(others) if other is not None]
            wrong = judge.score([images[i] for i in rows], [others[i].text for i in rows])
            hits[kind] = (true[rows] > wrong).tolist()
        hits["any"] = [hit for kind in ALTERATIONS for hit in hits[kind]]
        found["held out" if held_out else "seen"] = {k: share(v) for k, v in hits.items()}
    return found


def area(scores: np.ndarray, obeyed: np.ndarray) -> float:
    """Area under the ROC curve: the share of (right, wrong) pairs that the score puts in order."""
    right, wrong = obeyed.sum(), (~obeyed).sum()
    if not right or not wrong:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[obeyed].sum() - right * (right + 1) / 2) / (right * wrong))


def interval(scores: np.ndarray, obeyed: np.ndarray) -> dict:
    """The area of scores [captions, arms], with an interval that draws whole captions."""
    rng = np.random.default_rng(0)
    n = len(scores)
    drawn = [
        area(scores[rows].ravel(), obeyed[rows].ravel())
        for rows in (rng.integers(0, n, n) for _ in range(DRAWS))
    ]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return {
        "auc": round(area(scores.ravel(), obeyed.ravel()), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "pictures": int(scores.size),
        "obeyed": round(float(obeyed.mean()), 4),
    }


def agreement(judge: ClipScore, captions: int) -> dict:
    """How far score and oracle agree on pictures that were really made."""
    from diffusers import DiffusionPipeline, UNet2DConditionModel

    asked = evaluation_captions(captions, seed=CAPTION_SEED)
    texts = [c.text for c in asked]
    folder = checkpoint_path("shapes-unet")
    pipe = DiffusionPipeline.from_pretrained(folder)
    unets = {
        "strong": pipe.unet,
        "weak": UNet2DConditionModel.from_pretrained(folder / "unet_weak"),
    }
    scores, obeyed = np.zeros((captions, len(ARMS))), np.zeros((captions, len(ARMS)), bool)
    for column, (role, scale) in enumerate(ARMS):
        pipe.register_modules(unet=unets[role])
        made = pictures(pipe, texts, guidance_scale=scale, first_seed=FIRST_NOISE)
        images = np.concatenate(list(made))
        scores[:, column] = judge.score([Image.fromarray(image) for image in images], texts)
        obeyed[:, column] = [verdict.obeyed for verdict in judge_all(images, asked)]
        print(f"{role}, guidance {scale:g}: {obeyed[:, column].mean():.3f} obeyed", flush=True)
    of = np.array([c.category for c in asked])
    return {
        "all": interval(scores, obeyed),
        "categories": {c: interval(scores[of == c], obeyed[of == c]) for c in CATEGORIES},
        "arms": {
            f"{role}, guidance {scale:g}": interval(scores[:, [i]], obeyed[:, [i]])
            for i, (role, scale) in enumerate(ARMS)
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--judge", default="shapes-clip", help="a name or an open_clip folder")
    parser.add_argument(
        "--renders", type=int, default=1000, help="pictures, seen and held out each"
    )
    parser.add_argument("--captions", type=int, default=400, help="each drawn by four arms")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    judge = ClipScore(model=arguments.judge, form="plain")
    found = {
        "benchmark": "shapes_clip",
        "weights": judge.fingerprint()["weights"],
        "true_above_altered": ranking(judge, arguments.renders),
        "num_inference_steps": STEPS,
        "agreement_with_oracle": agreement(judge, arguments.captions),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
