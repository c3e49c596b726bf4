"""How different the pictures of one prompt are from each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from w2sdiff.errors import InputError
from w2sdiff.scorers.base import SCORERS, Scorer
from w2sdiff.scorers.colour import lab

if TYPE_CHECKING:
    from PIL.Image import Image

    from w2sdiff.scorers.clip import Clip
    from w2sdiff.scorers.clip_files import ClipFiles

__all__ = ["Diversity"]

_SIZE = 32


@SCORERS.register
@dataclass(frozen=True)
class Diversity(Scorer):
    """Mean distance between the pictures of one prompt: in colour, or in the features of a CLIP.

    Without a model: mean over pairs of mean over cells of |Lab_i - Lab_j|, where Lab is the CIELAB
    colour of the 32x32 cells into which a picture is averaged (so layout and colour count, texture
    does not); 0 for equal pictures, 100 between black and white. With a model: mean over pairs of
    100 (1 - cos) of the picture features. Guidance that is too strong makes the pictures of a
    prompt alike; a low number beside good scores shows it.

    Args:
        model: None, or a CLIP as `clipscore` names it ("shapes-clip", a folder, a hub id).

    Raises (from `score`):
        InputError: fewer than two pictures.

    Example:
        >>> from PIL import Image
        >>> black, white = (Image.new("RGB", (64, 64), colour) for colour in ("black", "white"))
        >>> Diversity().score([black, white]).round(2).tolist()
        [100.0, 100.0]
    """

    kind = "diversity"
    group = "statistic"
    higher_is_better = None
    expected = (5.0, 60.0)
    needs_prompt = False
    per_prompt = True
    model: str | None = None

    def fingerprint(self) -> dict[str, Any]:
        """The formula, and the CLIP by content."""
        if self.model is not None:
            return {
                "scorer": self.kind,
                "weights": self._files.identity(),
                "preprocessing": self._files.describe(),
                "dtype": "float32, cosine float64",
                "formula": "mean over pairs of 100 * (1 - cos)",
            }
        return {
            "scorer": self.kind,
            "weights": {},
            "preprocessing": f"8-bit RGB, averaged into {_SIZE}x{_SIZE} cells",
            "dtype": "float64",
            "formula": "mean over pairs and cells of the CIE 1976 colour difference",
        }

    def score(
        self, images: Sequence[Image], prompts: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        """The same number for each of these pictures, float32 [n]."""
        self._check_prompts(images, prompts)
        if len(images) < 2:
            raise InputError(
                f"diversity compares the pictures of a prompt with each other; expected two or "
                f"more (replicates), got {len(images)}"
            )
        pairs = itertools.combinations(range(len(images)), 2)
        if self.model is None:
            colours = [lab(_cells(image)) for image in images]
            distances = [np.linalg.norm(colours[i] - colours[j], axis=-1).mean() for i, j in pairs]
        else:
            seen = self._clip.image_features(images).double().numpy()
            distances = [100 * (1 - (seen[i] * seen[j]).sum()) for i, j in pairs]
        # fsum is exact, so the order of the pictures does not matter.
        return np.full(len(images), math.fsum(distances) / len(distances), np.float32)

    @cached_property
    def _files(self) -> ClipFiles:
        from w2sdiff.scorers.clip_files import find_clip

        return find_clip(str(self.model), download=self.may_download)

    @cached_property
    def _clip(self) -> Clip:
        from w2sdiff.scorers.clip import load_clip

        return load_clip(self._files, self.device)


def _cells(image: Image) -> NDArray[np.float64]:
    """The picture averaged into cells, [32, 32, 3] in 0..1."""
    import torch

    from w2sdiff.scorers.preprocess import rgb

    pixels = torch.from_numpy(np.array(rgb(image), np.float64) / 255).permute(2, 0, 1)
    cells = torch.nn.functional.adaptive_avg_pool2d(pixels, _SIZE)
    return cells.permute(1, 2, 0).numpy()
