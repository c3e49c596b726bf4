"""The trained judge, shapes-clip: a small open_clip model of the world of shapes.

Contrastive, as CLIP (Radford et al. 2021, arXiv:2103.00020), with two changes that the world of
shapes affords. Negatives are hard: captions and pictures that differ in one thing (Yuksekgonul et
al. 2023, arXiv:2210.01936). And the oracle says of every pair whether it belongs together, so no
true pair is ever pushed apart, and the pairwise sigmoid loss (Zhai et al. 2023, arXiv:2303.15343)
can make scores of different captions comparable.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from w2sdiff.shapes.alter import ALTERATIONS
from w2sdiff.shapes.captions import Caption
from w2sdiff.shapes.render import COLOURS, SHAPES
from w2sdiff.shapes.train.clip_data import GROUP, Pictures, altered, make_pictures, obeys_slots
from w2sdiff.shapes.train.clip_facts import Facts, of_captions, of_pictures
from w2sdiff.shapes.train.loop import Schedule, train
from w2sdiff.shapes.train.text import MAX_TOKENS, build_tokenizer, tokenise

__all__ = [
    "CONFIG",
    "NAME",
    "POOL_SIZE",
    "SCHEDULE",
    "SECOND_SCHEDULE",
    "build",
    "export_clip",
    "train_clip",
]

NAME = "shapes-clip"
SCHEDULE = Schedule(
    steps=1200,
    batch=64,
    lr=1.5e-3,
    warmup=100,
    cooldown=0.24,
    ema=0.995,
    muon="model.visual.transformer",
)
SECOND_SCHEDULE = replace(SCHEDULE, steps=2000, lr=1e-3, warmup=50, cooldown=0.3)
SECOND_ALTERATIONS = (*ALTERATIONS, *("relation", "swap") * 2)
POOL_SIZE = 12_288
POOL_SEED = 501
ALTERED_CAPTIONS = 2  # for each picture, beside those of the other pictures
CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "init_logit_bias": -5.0,
    "vision_cfg": {
        "image_size": 64,
        "patch_size": 8,
        "width": 128,
        "layers": 4,
        "head_width": 32,
    },
    "text_cfg": {
        "context_length": MAX_TOKENS,
        "width": 96,
        "heads": 3,
        "layers": 2,
        "hf_tokenizer_name": NAME,
    },
}
_HALF = [0.5, 0.5, 0.5]
PREPROCESS = {"mean": _HALF, "std": _HALF, "interpolation": "bicubic", "resize_mode": "shortest"}


class Judge(nn.Module):
    """The model, with a head that reads off each patch which object covers it.

    The head teaches the picture tower to see before it can tell captions apart, and is then
    thrown away. So are `facts`, which the second part of the training adds.
    """

    def __init__(self, vocabulary: int) -> None:
        """Build both from nothing."""
        super().__init__()
        self.model = build(vocabulary)
        self.model.visual.output_tokens = True
        self.head = nn.Linear(CONFIG["vision_cfg"]["width"], 1 + len(SHAPES) * len(COLOURS))
        self.facts: Facts | None = None

    def forward(
        self,
        pixels: Tensor,
        ids: Tensor,
        obeyed: Tensor,
        covered: Tensor,
        facts: tuple[Tensor, ...],
    ) -> Tensor:
        """Return the loss.

        Args:
            pixels: [n, 3, 64, 64] in -1..1.
            ids: tokens of m >= n captions, [m, 16]; the first n are those of the pictures.
            obeyed: which picture obeys which caption, bool [n, m].
            covered: the kind that covers each patch, 0 for none, -100 for unknown, [n, 64].
            facts: of the pictures and of the captions, as in `clip_facts`.
        """
        pictures, patches = self.model.visual(pixels)
        pictures = functional.normalize(pictures, dim=-1)
        texts = self.model.encode_text(ids, normalize=True)
        scale, bias = self.model.logit_scale.exp(), self.model.logit_bias
        scores = scale * pictures @ texts.T + bias
        n = len(pixels)
        own = torch.arange(n, device=scores.device)
        true = obeyed[own, own]
        # Another caption that is true as well is no negative, nor is another picture.
        others = obeyed.clone()
        others[own, own] = False
        open_scores = scores.masked_fill(others, -torch.inf)
        rows = functional.cross_entropy(open_scores[true], own[true])
        columns = functional.cross_entropy(open_scores[:, :n].T[true], own[true])
        signs = torch.where(obeyed, 1.0, -1.0)
        pairs = -functional.logsigmoid(signs * scores).sum() / n
        seen = functional.cross_entropy(self.head(patches).flatten(0, 1), covered.flatten())
        loss = rows + columns + pairs + seen
        if self.facts is not None:
            loss = loss + self.facts(pictures, *facts[:2]) + self.facts(texts, *facts[2:])
        return loss


def build(vocabulary: int) -> Any:
    """Return a fresh `open_clip.model.CLIP` for a tokenizer of this many tokens."""
    from open_clip.model import CLIP

    config = json.loads(json.dumps(CONFIG))
    config["text_cfg"]["vocab_size"] = vocabulary
    return CLIP(**config)


def train_clip(
    out: Path,
    *,
    seed: int = 0,
    schedule: Schedule = SCHEDULE,
    second: Schedule = SECOND_SCHEDULE,
    pool_size: int = POOL_SIZE,
    device: str = "cpu",
) -> Path:
    """Train the judge and save it as a stock open_clip folder, `out/shapes-clip`; return that.

    First it learns what is in a picture; left to itself it would take captions for bags of words
    for a long time. So in the second part a head reads off who is where, and altered captions are
    mostly those with another relation or swapped colours.

    The partly wrong pictures come from the codec in `out/vae`, or from the shipped one where none
    was trained.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer("clip")
    judge = Judge(len(tokenizer)).to(device)
    pool = make_pictures(_codec(out), pool_size, out / "pools" / "clip.safetensors", seed=POOL_SEED)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng((seed, step))
        groups = rng.choice(len(pool) // GROUP, schedule.batch // GROUP, replace=False)
        items = (groups[:, None] * GROUP + np.arange(GROUP)).ravel()
        kinds = SECOND_ALTERATIONS if judge.facts else ALTERATIONS
        pixels, captions, obeyed, covered, facts = _batch(pool, items, rng, generator, kinds)
        ids, _ = tokenise(tokenizer, [c.text for c in captions])
        value: Tensor = judge(
            *(t.to(device) for t in (pixels, ids, obeyed, covered)),
            tuple(t.to(device) for t in facts),
        )
        return value

    train(judge, loss, schedule, out / "runs" / "clip", seed=seed)
    torch.manual_seed(seed)
    judge.facts = Facts(CONFIG["embed_dim"]).to(device)
    train(judge, loss, second, out / "runs" / "clip-second", seed=seed + 1)
    # A fresh tokenizer: one that was used remembers how it padded.
    return export_clip(judge.model, build_tokenizer("clip"), out / NAME)


def export_clip(model: Any, tokenizer: Any, folder: Path) -> Path:
    """Write a folder that open_clip reads as `local-dir:<folder>`, in float16; return it."""
    from safetensors.torch import save_file

    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    portable = json.loads(file.read_text())
    portable.pop("backend", None)  # older versions of transformers do not know it
    file.write_text(json.dumps(portable, indent=2, sort_keys=True) + "\n")
    config = json.loads(json.dumps(CONFIG))
    config["text_cfg"]["vocab_size"] = len(tokenizer)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}, indent=2) + "\n"
    )
    weights = {name: t.detach().half().contiguous() for name, t in model.state_dict().items()}
    file = folder / "open_clip_model.safetensors"
    save_file(weights, file, metadata={"format": "pt"})
    file.chmod(0o644)
    return folder


def _codec(out: Path) -> Any:
    from diffusers import AutoencoderKL

    from w2sdiff.shapes import checkpoint_path

    trained = out / "vae"
    folder = trained if trained.is_dir() else checkpoint_path("shapes-unet") / "vae"
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval()


def _batch(
    pool: Pictures,
    items: np.ndarray,
    rng: np.random.Generator,
    generator: torch.Generator,
    alterations: tuple[str, ...] = ALTERATIONS,
) -> tuple[Tensor, list[Caption], Tensor, Tensor, tuple[Tensor, ...]]:
    """Return pixels, captions (those of the pictures, then altered ones), truth, patches, facts."""
    index = torch.from_numpy(items)
    pixels = pool.pixels[index].permute(0, 3, 1, 2).float()
    places = pool.places[index].clone()
    mirrored = torch.from_numpy(rng.random(len(items)) < 0.5)
    pixels[mirrored] = pixels[mirrored].flip(-1)
    places[mirrored, :, 0] = pixels.shape[-1] - 1 - places[mirrored, :, 0]
    kinds, objects = pool.kinds[index], pool.objects[index]
    captions = [
        _mirror(pool.captions[i]) if m else pool.captions[i]
        for i, m in zip(items, mirrored.tolist(), strict=True)
    ]
    captions += [
        altered(c, rng, alterations)
        for _ in range(ALTERED_CAPTIONS)
        for c in captions[: len(items)]
    ]
    slots = torch.tensor([c.slots for c in captions])
    obeyed = obeys_slots(objects, kinds, places, slots)
    covered = _covered(objects, kinds, places)
    facts = (*of_pictures(objects, kinds, places), *of_captions(captions))
    return _grain(pixels, generator) / 127.5 - 1, captions, obeyed, covered, facts


def _mirror(caption: Caption) -> Caption:
    mirrored = {"left of": "right of", "right of": "left of"}
    relation = mirrored.get(caption.relation or "", caption.relation)
    return Caption(caption.category, caption.demands, relation)


def _grain(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, shift and roughen pictures [n, 3, 64, 64] in 0..255, each by its own amount."""
    n = len(pixels)
    blur, shift, noise = (torch.rand(n, 1, 1, 1, generator=generator) for _ in range(3))
    soft = functional.avg_pool2d(functional.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    pixels = pixels + (blur - 0.5).clamp(min=0) * (soft - pixels)
    pixels = pixels + 12 * (shift - 0.5)
    pixels = pixels + 8 * noise**2 * torch.randn(pixels.shape, generator=generator)
    return pixels.clamp(0, 255)


def _covered(objects: Tensor, kinds: Tensor, places: Tensor) -> Tensor:
    """Return 1 + the number of the kind that covers each 8 x 8 patch's centre, int64 [n, 64]."""
    centres = torch.arange(8) * 8 + 3.5
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    covered = torch.zeros(len(objects), 8, 8, dtype=torch.int64)
    for i in range(kinds.shape[1]):
        px, py, size = (v[:, None, None] for v in places[:, i].unbind(-1))
        inside = ((x - px).abs() < size / 2) & ((y - py).abs() < size / 2)
        kind = 1 + kinds[:, i, 0] * len(COLOURS) + kinds[:, i, 1]
        there = inside & (kinds[:, i, 0] >= 0)[:, None, None]
        covered = torch.where(there, kind[:, None, None], covered)
    covered[objects < 0] = -100
    return covered.flatten(1)
