"""Human Preference Score v2 and v2.1, as published and as installed today."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from w2sdiff.scorers.base import SCORERS, Scorer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

    from w2sdiff.scorers.clip import Clip
    from w2sdiff.scorers.clip_files import ClipFiles

__all__ = ["HPSv2", "HPSv21"]


@SCORERS.register
@dataclass(frozen=True)
class HPSv2(Scorer):
    """Preference learned from human rankings, first version of the weights.

    Wu et al. 2023, arXiv 2306.09341: 100·cos of CLIP ViT-H/14 features. The whole picture is read,
    on black, not its middle. Two recipes that must not be mixed: without antialias, as published,
    and with it, as the published code does on torchvision 0.17 or newer (likely why people who
    rerun the published benchmark find about two points less). The published code computes the
    cosine in sixteen bits, on a grid of 0.024 points; here it is exact.

    Args:
        antialias: false as published, true as installed today.
        weights: hub id or folder that holds the published file; the file itself, or a safetensors
            copy of it; or an open_clip folder.
        sha256: of the file, which is a pickle; not needed for safetensors.

    Example:
        >>> HPSv2(antialias=True).to_text()
        'hpsv2:antialias=true'
    """

    kind = "hpsv2"
    group = "rises with guidance"
    expected = (20.0, 31.0)
    published: ClassVar[str] = "HPS_v2_compressed.pt"
    antialias: bool = False
    weights: str = "xswu/HPSv2"
    sha256: str | None = None

    @property
    def max_tokens(self) -> int | None:
        """CLIP's 77, start and end mark included."""
        return 77

    def fingerprint(self) -> dict[str, Any]:
        """The weights by content, and which of the two recipes."""
        files = self._files
        return {
            "scorer": self.kind,
            "weights": files.identity(),
            "preprocessing": (
                f"8-bit RGB on white, longest side to {files.image_size} bicubic on the float "
                f"tensor, {'antialias' if self.antialias else 'no antialias'}, not clamped, "
                f"padded with black, mean {list(files.mean)}, std {list(files.std)}"
            ),
            "dtype": "float32, cosine float64",
            "formula": "100 * cos",
            "tokens": files.context,
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
        scores = 100 * self._clip.cosines(images, texts, self._prepare)
        return scores.numpy().astype(np.float32)

    def _prepare(self, image: Image) -> Tensor:
        from w2sdiff.scorers.preprocess import normalise, resize_pad

        pixels = resize_pad(image, self._files.image_size, antialias=self.antialias)
        return normalise(pixels, self._files.mean, self._files.std)

    @cached_property
    def _files(self) -> ClipFiles:
        """The published file has the names of open_clip's ViT-H-14 and no configuration."""
        import open_clip

        from w2sdiff.scorers.clip_files import OPEN_CLIP_CONFIG, ClipFiles, from_open_clip
        from w2sdiff.scorers.weights import find_weights

        folder = Path(self.weights).expanduser()
        if (folder / OPEN_CLIP_CONFIG).is_file():
            return from_open_clip(folder)
        file = find_weights(
            self.weights, self.published, download=self.may_download, sha256=self.sha256
        )
        return ClipFiles(
            "open_clip", open_clip.get_model_config("ViT-H-14"), file, sha256=self.sha256
        )

    @cached_property
    def _clip(self) -> Clip:
        from w2sdiff.scorers.clip import load_clip

        return load_clip(self._files, self.device)


@SCORERS.register
@dataclass(frozen=True)
class HPSv21(HPSv2):
    """Preference learned from human rankings, the weights of 2024; not comparable with `hpsv2`.

    Options and recipes are those of `HPSv2`.

    Example:
        >>> HPSv21().to_text()
        'hpsv2.1'
    """

    kind = "hpsv2.1"
    expected = (10.0, 36.0)
    published = "HPS_v2.1_compressed.pt"
