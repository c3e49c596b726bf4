"""What `verify` compares with: small models and pictures anyone can build, and known results.

The results were computed without this package: forward passes in plain torch, and torchvision for
the preprocessing. The random numbers are those of numpy's `RandomState`, which never change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor

__all__ = ["arrays", "numbers", "picture", "tensors", "write_model"]

_SEED = 20240521


@cache
def numbers() -> dict[str, Any]:
    """For each model: the shapes of its tensors, what it is asked, and what it answers."""
    text = (files("w2sdiff.scorers") / "data" / "golden.json").read_text("utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


@cache
def arrays() -> dict[str, NDArray[Any]]:
    """Pictures and what the networks should be shown of them; embeddings and their scores."""
    with (files("w2sdiff.scorers") / "data" / "golden.npz").open("rb") as file:
        return dict(np.load(file, allow_pickle=False))


def picture(number: int) -> Image:
    """A picture of random pixels, 40x56."""
    from PIL import Image as PILImage

    values = np.random.RandomState(number).randint(0, 256, (56, 40, 3))
    return PILImage.fromarray(values.astype(np.uint8))


def tensors(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Tensors of these names and shapes, drawn in this order; the weights of norms are about 1."""
    import torch

    draw = np.random.RandomState(_SEED)
    state = {}
    for name, shape in shapes.items():
        values = draw.uniform(-1, 1, shape) * (0.3 if len(shape) < 2 else 2 / shape[-1] ** 0.5)
        if len(shape) == 1 and name.endswith(".weight"):
            values = 1 + values
        state[name] = torch.from_numpy(np.array(values)).float()
    return state


def write_model(kind: str, folder: Path) -> None:
    """Write the small model of this kind as its release has it: weights, tokenizer, settings."""
    from safetensors.torch import save_file

    golden = numbers()[kind]
    save_file(tensors(golden["tensors"]), folder / "model.safetensors")
    for name, content in golden.get("files", {}).items():
        (folder / name).write_text(content, encoding="utf-8")
