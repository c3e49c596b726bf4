"""VQAScore: ask a vision-language model whether the picture shows the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from w2sdiff.errors import InputError
from w2sdiff.jobs import file_sha256
from w2sdiff.scorers.base import SCORERS, Scorer

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

__all__ = ["VQAScore"]

_QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
_ANSWER = "Yes"
_TYPES = ("bfloat16", "float32")
_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
_IGNORED = ("generation_config.json", "README")  # nothing is generated


@SCORERS.register
@dataclass(frozen=True)
class VQAScore(Scorer):
    """Probability that a vision-language model answers "Yes" to: does this show the prompt?

    Lin et al. 2024, arXiv 2404.01291, over a chat model instead of the paper's CLIP-FlanT5 (whose
    number is the geometric mean of two probabilities, so the two are not comparable). One forward
    pass on the chat prompt; softmax of the raw logits at its end; the probability of the first
    token of "Yes". Nothing is generated, so no generation setting plays a part. One picture at a
    time. Whether it rises with guidance alone has not been measured; it is counted there, to be
    careful.

    Args:
        model: hub id or folder of a vision-language chat model with safetensors.
        dtype: "bfloat16" or "float32".

    Raises:
        InputError: another dtype.

    Example:
        >>> VQAScore().name
        'vqascore:model=Qwen/Qwen2.5-VL-7B-Instruct'
    """

    kind = "vqascore"
    group = "rises with guidance"
    expected = (0.0, 1.0)
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        """Check the dtype."""
        if self.dtype not in _TYPES:
            raise InputError(f"dtype={self.dtype!r}: expected one of {', '.join(_TYPES)}")

    @property
    def name(self) -> str:
        """Always with the model: a VQAScore without it says nothing."""
        kind, _, options = super().name.partition(":")
        if "model=" in options:
            return f"{kind}:{options}"
        return f"{kind}:model={self.model}" + (f",{options}" if options else "")

    def fingerprint(self) -> dict[str, Any]:
        """Every file of the model's folder that decides an answer, by content."""
        folder = self._folder()
        found = sorted({path for pattern in _FILES for path in folder.glob(pattern)})
        return {
            "scorer": self.kind,
            "weights": {p.name: file_sha256(p) for p in found if not p.name.startswith(_IGNORED)},
            "preprocessing": "8-bit RGB, then the model's own processor",
            "dtype": f"{self.dtype}, softmax float32",
            "formula": f"P(first token of {_ANSWER!r}) after the chat prompt {_QUESTION!r}",
        }

    def score(
        self, images: Sequence[Image], prompts: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        """The probabilities, float32 [n].

        Raises:
            InputError: a prompt holds a token of the model's own, such as `<|im_end|>`.
        """
        import numpy as np
        import torch

        texts = self._check_prompts(images, prompts)
        with torch.inference_mode():
            scores = [self._one(i, t) for i, t in zip(images, texts, strict=True)]
        return np.array(scores, np.float32)

    def _one(self, image: Image, prompt: str) -> float:
        from w2sdiff.scorers.preprocess import rgb

        processor, model = self._model
        if held := sorted(
            token for token in processor.tokenizer.get_added_vocab() if token in prompt
        ):
            raise InputError(f"a prompt must not hold the model's own token {held[0]!r}")
        picture = {"type": "image", "image": rgb(image)}
        question = {"type": "text", "text": _QUESTION.format(prompt)}
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": [picture, question]}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.device, model.dtype)
        answer = processor.tokenizer.encode(_ANSWER, add_special_tokens=False)[0]
        return float(model(**inputs).logits[0, -1].float().softmax(dim=-1)[answer])

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = self._folder()
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=getattr(torch, self.dtype), use_safetensors=True, local_files_only=True
        )
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        return processor, model.to(self.device).eval().requires_grad_(False)

    def _folder(self) -> Path:
        from w2sdiff.scorers.weights import find_weights

        folder = find_weights(self.model, download=self.may_download)
        if not (folder / "config.json").is_file():
            raise InputError(f"{self.model} is no folder of a model: it has no config.json")
        return folder
