"""CLIPScore: how well a picture fits its prompt, by CLIP's cosine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from w2sdiff.errors import InputError
from w2sdiff.scorers.base import SCORERS, Scorer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from w2sdiff.scorers.clip import Clip
    from w2sdiff.scorers.clip_files import ClipFiles

__all__ = ["ClipScore"]

_FORMULAS = {"paper": "2.5 * max(cos, 0)", "plain": "100 * cos"}


@SCORERS.register
@dataclass(frozen=True)
class ClipScore(Scorer):
    """Cosine of a picture's and a prompt's CLIP features, with any CLIP.

    Hessel et al. 2021, arXiv 2104.08718, eq. 1. The published numbers differ in backbone, prefix,
    factor and clipping; here each is an option and part of the name. Clipped is each score, not
    the mean.

    Args:
        model: "shapes-clip" (comes with the package); a folder in the layout of open_clip or
            transformers; a hub id in that of transformers; or an open_clip model name, with
            `pretrained`.
        pretrained: tag of open_clip's weights, for a model name of open_clip.
        form: "paper", 2.5·max(cos, 0), usually 0.6..0.9; or "plain", 100·cos, usually 20..35.
        prefix: put before each prompt; the paper has "A photo depicts".

    Example:
        >>> ClipScore(model="shapes-clip", form="plain").to_text()
        'clipscore:model=shapes-clip,form=plain'
    """

    kind = "clipscore"
    group = "rises with guidance"
    expected = (0.0, 100.0)
    model: str = "openai/clip-vit-base-patch32"
    pretrained: str | None = None
    form: str = "paper"
    prefix: str = ""

    def __post_init__(self) -> None:
        """Refuse a form that does not exist."""
        if self.form not in _FORMULAS:
            raise InputError(f"expected form=paper or form=plain, got form={self.form}")

    @property
    def max_tokens(self) -> int | None:
        """The context of the CLIP, prefix and marks included: 77 in all that OpenAI published."""
        return self._files.context

    def fingerprint(self) -> dict[str, Any]:
        """The CLIP by content, and the formula."""
        files = self._files
        return {
            "scorer": self.kind,
            "weights": files.identity(),
            "preprocessing": files.describe(),
            "dtype": "float32, cosine float64",
            "formula": _FORMULAS[self.form],
            "prefix": self.prefix,
            "tokens": files.context,
        }

    def tokens(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens each prompt has with its prefix."""
        return self._clip.words.count([self._text(prompt) for prompt in prompts])

    def score(
        self, images: Sequence[Image], prompts: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        """The scores, float32 [n]."""
        import numpy as np

        texts = [self._text(prompt) for prompt in self._check_prompts(images, prompts)]
        if not texts:
            return np.zeros(0, np.float32)
        cosines = self._clip.cosines(images, texts)
        scores = 2.5 * cosines.clamp(min=0) if self.form == "paper" else 100 * cosines
        return scores.numpy().astype(np.float32)

    def _text(self, prompt: str) -> str:
        return f"{self.prefix.rstrip()} {prompt}" if self.prefix else prompt

    @cached_property
    def _files(self) -> ClipFiles:
        from w2sdiff.scorers.clip_files import find_clip

        return find_clip(self.model, pretrained=self.pretrained, download=self.may_download)

    @cached_property
    def _clip(self) -> Clip:
        from w2sdiff.scorers.clip import load_clip

        return load_clip(self._files, self.device)
