"""PickScore: a CLIP taught by the choices of people who made pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from w2sdiff.scorers.base import SCORERS, Scorer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

    from w2sdiff.scorers.clip import Clip
    from w2sdiff.scorers.clip_files import ClipFiles

__all__ = ["PickScore"]


@SCORERS.register
@dataclass(frozen=True)
class PickScore(Scorer):
    """Preference learned from users' choices between two pictures of their prompt.

    Kirstain et al. 2023, arXiv 2305.01569: exp(logit scale)·cos, about 100·cos. (Some tables print
    the cosine, or divide by 26.)

    Args:
        weights: hub id or folder in the layout of transformers.

    Example:
        >>> PickScore().max_tokens
        77
    """

    kind = "pickscore"
    group = "does not rise with guidance"
    expected = (14.0, 27.0)
    weights: str = "yuvalkirstain/PickScore_v1"

    @property
    def max_tokens(self) -> int | None:
        """CLIP's 77, start and end mark included."""
        return 77

    def fingerprint(self) -> dict[str, Any]:
        """The weights by content, and the recipe."""
        return {
            "scorer": self.kind,
            "weights": self._files.identity(),
            "preprocessing": f"{self._files.describe()}, crop rounded down",
            "dtype": "float32, cosine float64",
            "formula": "exp(logit_scale) * cos",
            "tokens": self._files.context,
        }

    def tokens(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens each prompt has."""
        return self._clip.words.count(prompts)

    def score(
        self, images: Sequence[Image], prompts: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        """The scores, float32 [n]."""
        import numpy as np

        texts = self._check_prompts(images, prompts)
        if not texts:
            return np.zeros(0, np.float32)
        scores = self._clip.logit_scale * self._clip.cosines(images, texts, self._prepare)
        return scores.numpy().astype(np.float32)

    def _prepare(self, image: Image) -> Tensor:
        """As the processor of transformers does, whose crop is rounded down."""
        from w2sdiff.scorers.preprocess import normalise, resize_crop

        pixels = resize_crop(image, self._files.image_size, crop="down")
        return normalise(pixels, self._files.mean, self._files.std)

    @cached_property
    def _files(self) -> ClipFiles:
        from w2sdiff.scorers.clip_files import find_clip

        return find_clip(self.weights, download=self.may_download)

    @cached_property
    def _clip(self) -> Clip:
        from w2sdiff.scorers.clip import load_clip

        return load_clip(self._files, self.device)
