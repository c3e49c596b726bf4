"""ImageReward: a reward model of human preference, over BLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from w2sdiff.jobs import file_sha256
from w2sdiff.scorers.base import SCORERS, Scorer

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from w2sdiff.scorers.text import Tokeniser

__all__ = ["ImageReward"]

_TOKENS, _PADDING = 35, 0
_MEAN, _STD = 0.16717362830052426, 1.0333394966054072  # of the rewards of the training set


@SCORERS.register
@dataclass(frozen=True)
class ImageReward(Scorer):
    """Reward learned from human comparisons: how well liked, and how well it fits the prompt.

    Xu et al. 2023, arXiv 2304.05977. (w·CLS + b - 0.16717) / 1.03334, where CLS is the first output
    of BLIP's text tower, which looks at the picture through cross-attention; the published
    five-layer head has no nonlinearity and is multiplied out. A prompt is cut after 35 tokens.

    Args:
        weights: hub id or folder that holds `ImageReward.pt`, or the file itself.
        tokenizer: hub id or folder that holds `vocab.txt` of bert-base-uncased, or the file itself.
        sha256: of the weights, if they are not the published ones.

    Example:
        >>> ImageReward().max_tokens
        35
    """

    kind = "imagereward"
    group = "rises with guidance"
    expected = (-2.5, 2.5)
    weights: str = "THUDM/ImageReward"
    tokenizer: str = "google-bert/bert-base-uncased"
    sha256: str | None = None

    @property
    def max_tokens(self) -> int | None:
        """35 word pieces, [CLS] and [SEP] included."""
        return _TOKENS

    def fingerprint(self) -> dict[str, Any]:
        """Both files by content."""
        return {
            "scorer": self.kind,
            "weights": {
                "ImageReward.pt": file_sha256(self._weights()),
                "vocab.txt": file_sha256(self._vocabulary()),
            },
            "preprocessing": "shortest side to 224 bicubic (PIL), centre crop, OpenAI mean and std",
            "dtype": "float32, head float64",
            "formula": f"(w.CLS + b - {_MEAN}) / {_STD}, {_TOKENS} tokens",
        }

    def tokens(self, prompts: Sequence[str]) -> list[int]:
        """How many word pieces each prompt has, [CLS] and [SEP] included."""
        return self._words.count(prompts)

    def score(
        self, images: Sequence[Image], prompts: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        """The rewards, float32 [n]."""
        import numpy as np
        import torch

        texts = self._check_prompts(images, prompts)
        if not images:
            return np.zeros(0, np.float32)
        with torch.inference_mode():
            cls = self._cls(images, texts)
            weight, bias = self._model["head"]
            rewards = (cls.double().cpu() @ weight + bias - _MEAN) / _STD
        return np.asarray(rewards.numpy(), np.float32)

    def _cls(self, images: Sequence[Image], texts: list[str]) -> Any:
        """BLIP's first output for each picture and its prompt, [n, width]."""
        import torch

        from w2sdiff.scorers.preprocess import normalise, resize_crop

        vision, text = self._model["vision"], self._model["text"]
        size = vision.config.image_size
        pixels = torch.stack([normalise(resize_crop(image, size)) for image in images])
        seen = vision(pixels.to(self.device)).last_hidden_state
        ids = self._words.encode(texts).to(self.device)
        return text(
            input_ids=ids,
            attention_mask=(ids != _PADDING).long(),
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=ids.device),
            is_decoder=False,  # every token sees every other; the stock default is causal
        ).last_hidden_state[:, 0]

    @cached_property
    def _model(self) -> dict[str, Any]:
        from w2sdiff.scorers.aesthetic import affine
        from w2sdiff.scorers.blip import text_tower, vision_tower
        from w2sdiff.scorers.tensors import part
        from w2sdiff.scorers.weights import load_state

        state = load_state(self._weights(), sha256=self.sha256)
        return {
            "vision": vision_tower(state).to(self.device),
            "text": text_tower(state).to(self.device),
            "head": affine(part(state, "mlp.layers."), "the head of ImageReward"),
        }

    @cached_property
    def _words(self) -> Tokeniser:
        from tokenizers import BertWordPieceTokenizer

        from w2sdiff.scorers.text import Tokeniser

        bert = BertWordPieceTokenizer.from_file(str(self._vocabulary()), lowercase=True)
        return Tokeniser(_TOKENS, lambda text: list(bert.encode(text).ids), _PADDING)

    def _weights(self) -> Path:
        from w2sdiff.scorers.weights import find_weights

        return find_weights(
            self.weights, "ImageReward.pt", download=self.may_download, sha256=self.sha256
        )

    def _vocabulary(self) -> Path:
        from w2sdiff.scorers.weights import find_weights

        return find_weights(self.tokenizer, "vocab.txt", download=self.may_download, sha256=None)
