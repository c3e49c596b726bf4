"""LAION's aesthetic predictors: one affine map of a picture's CLIP features."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2sdiff.errors import InputError
from w2sdiff.jobs import file_sha256
from w2sdiff.scorers.base import SCORERS, Scorer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

    from w2sdiff.scorers.clip import Clip
    from w2sdiff.scorers.clip_files import ClipFiles

__all__ = ["Aesthetic", "affine", "load_head"]

_V2_NAME = "sac+logos+ava1-l14-linearMSE.pth"
_V2_SHA256 = "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"
_V2_URL = (
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
    "sac%2Blogos%2Bava1-l14-linearMSE.pth"
)
_V1_URL = "https://github.com/LAION-AI/aesthetic-predictor"


@SCORERS.register
@dataclass(frozen=True)
class Aesthetic(Scorer):
    """How good a picture looks, whatever its prompt, in the opinion of LAION's raters.

    w·x + b, with x the unit vector of the picture from OpenAI's CLIP ViT-L/14. The published
    network of version 2 has five layers and nothing between them, so it is affine as well; it is
    multiplied out in float64, where the published code in sixteen bits is off by up to 0.0025.
    From 1 to 10, in practice 4 to 7.

    Args:
        head: "v2" (trained on SAC, Logos and AVA), "v1" (on SAC), or a file of either: the
            published `.pth`, safetensors, or JSON lines with the tensors.
        model: hub id or folder of the CLIP that the head was trained on.
        sha256: of the head's file, if it is a pickle other than the published one.

    Example:
        >>> Aesthetic().needs_prompt
        False
    """

    kind = "aesthetic"
    group = "does not rise with guidance"
    expected = (1.0, 10.0)
    needs_prompt = False
    head: str = "v2"
    model: str = "openai/clip-vit-large-patch14"
    sha256: str | None = None

    def fingerprint(self) -> dict[str, Any]:
        """CLIP and head by content."""
        head = self._head_file
        return {
            "scorer": self.kind,
            "weights": self._files.identity() | {"head": file_sha256(head)},
            "preprocessing": self._files.describe(),
            "dtype": "float32, head float64",
            "formula": "w.x + b, |x| = 1",
        }

    def score(
        self, images: Sequence[Image], prompts: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        """The scores, float32 [n]."""
        import numpy as np

        self._check_prompts(images, prompts)
        if not images:
            return np.zeros(0, np.float32)
        weight, bias = self._head
        seen = self._clip.image_features(images).double()
        if seen.shape[1] != len(weight):
            raise InputError(
                f"the head reads {len(weight)} numbers and {self.model} gives {seen.shape[1]}: "
                "it was trained on another CLIP"
            )
        scores = seen @ weight + bias
        return scores.numpy().astype(np.float32)

    @cached_property
    def _head_file(self) -> Path:
        from w2sdiff.scorers.weights import fetch_file, find_weights

        if self.head == "v2":
            return fetch_file(_V2_NAME, _V2_URL, _V2_SHA256, download=self.may_download)
        if self.head == "v1":
            raise InputError(
                f"the first head has no known hash: get sa_0_4_vit_l_14_linear.pth from {_V1_URL}, "
                "and name the file: head=FILE,sha256=..."
            )
        return find_weights(self.head, sha256=self.sha256)

    @cached_property
    def _head(self) -> tuple[Tensor, float]:
        return load_head(self._head_file, sha256=self.sha256)

    @cached_property
    def _files(self) -> ClipFiles:
        from w2sdiff.scorers.clip_files import find_clip

        return find_clip(self.model, download=self.may_download)

    @cached_property
    def _clip(self) -> Clip:
        from w2sdiff.scorers.clip import load_clip

        return load_clip(self._files, self.device)


def load_head(file: Path, *, sha256: str | None = None) -> tuple[Tensor, float]:
    """Read a head: weight, float64 [d], and bias.

    Args:
        file: `.pth` or safetensors with the layers, or JSON lines, each with a tensor's "name",
            "shape" and "data".
        sha256: of a pickle.

    Raises:
        InputError: the file holds no stack of linear layers that ends in one number.
    """
    from w2sdiff.scorers.weights import load_state

    state = _json_lines(file) if file.suffix == ".jsonl" else load_state(file, sha256=sha256)
    return affine(state, file.name)


def affine(state: Mapping[str, Tensor], name: str = "the head") -> tuple[Tensor, float]:
    """Multiply a stack of linear layers out to one weight, float64 [d], and bias.

    Args:
        state: `...weight` [out, in] and `...bias` [out] of each layer, in order of their number.
        name: for messages.

    Raises:
        InputError: the layers do not fit, or do not end in one number.

    Example:
        >>> import torch
        >>> weight, bias = affine({"weight": torch.tensor([[2.0, 1.0]]), "bias": torch.ones(1)})
        >>> weight.tolist(), bias
        ([2.0, 1.0], 1.0)
    """
    import torch

    layers = sorted(
        (key.removesuffix("weight") for key in state if key.endswith("weight")),
        key=lambda prefix: [int(part) for part in prefix.split(".") if part.isdigit()],
    )
    try:
        weight, bias = None, torch.zeros(1, dtype=torch.float64)
        for prefix in layers:
            matrix, shift = state[f"{prefix}weight"].double(), state[f"{prefix}bias"].double()
            weight, bias = (
                (matrix, shift) if weight is None else (matrix @ weight, matrix @ bias + shift)
            )
        if weight is None or weight.shape[0] != 1:
            raise InputError(f"{name} does not end in one number: it is no aesthetic head")
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{name} is no stack of linear layers: {error}") from error
    return weight[0], float(bias)


def _json_lines(file: Path) -> dict[str, Tensor]:
    import torch

    try:
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
        return {
            row["name"]: torch.tensor(row["data"], dtype=torch.float64).reshape(row["shape"])
            for row in rows
            if "name" in row
        }
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{file.name} holds no tensors as JSON lines: {error}") from error
