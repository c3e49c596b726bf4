"""Makes the golden data of `w2sdiff verify`, by ways that share no code with what it checks.

`python tests/golden_scorers.py` writes the files; a test computes them again and compares.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import plain_blip
import plain_hpsv3
import plain_mps
import tiny_qwen
import torch
from PIL import Image
from torchvision.transforms import v2

from w2sdiff.scorers import golden

SIZE = 16
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BICUBIC = v2.InterpolationMode.BICUBIC


def crop(image: Image.Image, size: int) -> Any:
    """CLIP's preprocessing by torchvision."""
    steps = [
        v2.Resize(size, BICUBIC),
        v2.CenterCrop(size),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
    ]
    return v2.Compose(steps)(image)


def ready(image: Image.Image, size: int) -> Any:
    return v2.Normalize(MEAN, STD)(crop(image, size))


def pad(image: Image.Image, antialias: bool) -> Any:
    """HPSv2's: the longest side of the float tensor, then black around it."""
    pixels = v2.ToDtype(torch.float32, scale=True)(v2.PILToTensor()(image))
    scale = SIZE / max(image.size)
    sides = [round(side * scale) for side in pixels.shape[1:]]
    pixels = v2.Resize(sides, BICUBIC, antialias=antialias)(pixels)
    down, across = (SIZE - side for side in sides)
    return v2.Pad([across // 2, down // 2, across - across // 2, down - down // 2])(pixels)


def pictures() -> dict[str, Image.Image]:
    """A wide one, a tall one, and a half transparent one as a viewer shows it."""
    draw = np.random.RandomState(7)
    shapes = {"wide": (22, 37, 3), "tall": (41, 18, 3), "alpha": (20, 29, 4)}
    return {
        name: Image.fromarray(draw.randint(0, 256, shape).astype(np.uint8))
        for name, shape in shapes.items()
    }


def arrays(shared: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, image in pictures().items():
        seen = image
        if image.mode == "RGBA":
            seen = Image.new("RGB", image.size, "white")
            seen.paste(image, mask=image.getchannel("A"))
        found[f"{name}.picture"] = np.asarray(image)
        found[f"{name}.crop"] = (crop(seen, SIZE) * 255).round().byte().numpy()
        for antialias in (False, True):
            found[f"{name}.pad.{antialias}"] = pad(seen, antialias).numpy()
    lines = (shared / "golden_vit_l_14_embeddings.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "embedding" in row]
    found["laion.embeddings"] = np.array([row["embedding"] for row in rows], np.float32)
    found["laion.v1"] = np.array([row["expected_v1"] for row in rows])
    found["laion.v2"] = np.array([row["expected_v2"] for row in rows])
    return found


def shapes(state: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    constants = ("position_ids", "inv_freq", ".fn.norm.bias")
    return {name: list(t.shape) for name, t in state.items() if not name.endswith(constants)}


def imagereward() -> dict[str, Any]:
    facts: dict[str, Any] = {
        "tensors": shapes(plain_blip.published_state()),
        "files": {"vocab.txt": "\n".join(plain_blip.WORDS) + "\n"},
        "prompts": ["a red circle", "a blue, blue circles"],
    }
    state = golden.tensors(facts["tensors"])
    ids = torch.tensor([[2, 5, 6, 8, 3, 0, 0, 0], [2, 5, 7, 10, 7, 8, 9, 3]])
    pixels = torch.stack([ready(golden.picture(number), plain_blip.SIZE) for number in (0, 1)])
    seen = plain_blip.plain_vision(state, pixels)
    cls = plain_blip.plain_text(state, ids, (ids != 0).long(), seen)[:, 0]
    rewards = (plain_blip.plain_head(state, cls) - 0.16717362830052426) / 1.0333394966054072
    return facts | {"expected": rewards.tolist()}


def mps() -> dict[str, Any]:
    facts: dict[str, Any] = {
        "tensors": shapes(plain_mps.published_state()),
        "prompts": ["a red circle", "an old man at a blue door"],
    }
    state = golden.tensors(facts["tensors"])
    pairs = enumerate(facts["prompts"])
    scores = [plain_mps.plain_score(state, golden.picture(n), p) for n, p in pairs]
    return facts | {"expected": scores}


def hpsv3() -> dict[str, Any]:
    facts: dict[str, Any] = {
        "tensors": shapes(plain_hpsv3.published_state()),
        "files": {
            "config.json": json.dumps(tiny_qwen.CONFIG),
            "tokenizer.json": tiny_qwen.tokenizer().to_str(),
        },
        "prompts": ["a red circle", "an old man at a blue door"],
    }
    state = golden.tensors(facts["tensors"])
    pairs = enumerate(facts["prompts"])
    scores = [plain_hpsv3.plain_score(state, golden.picture(n), p) for n, p in pairs]
    return facts | {"expected": scores}


def numbers() -> dict[str, Any]:
    return {"imagereward": imagereward(), "mps": mps(), "hpsv3": hpsv3()}


if __name__ == "__main__":
    data = Path(golden.__file__).parent / "data"
    np.savez_compressed(data / "golden.npz", **arrays(Path(sys.argv[1])))
    (data / "golden.json").write_text(json.dumps(numbers()) + "\n")
