"""MPS: CLIP ViT-H/14 with a transformer between its towers, trained on human preference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from w2sdiff.jobs import file_sha256
from w2sdiff.scorers.base import SCORERS, Scorer
from w2sdiff.scorers.tensors import count_layers, filled, part

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

    from w2sdiff.scorers.text import Tokeniser

__all__ = ["CONDITION", "MPS"]

CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, "
    "structure, instance, texture, quantity, attributes, position, number, location, word, things."
)
"""What the published overall score looks out for: the words of a prompt that are near to it."""

_TOKENS, _END = 77, 49407
_HEADS = 16  # of both towers of ViT-H/14; tensors do not tell
_THRESHOLD = 0.3


@SCORERS.register
@dataclass(frozen=True)
class MPS(Scorer):
    """Preference learned on four dimensions (overall score): CLIP with cross-attention.

    Zhang et al. 2024, arXiv 2405.14705. exp(logit_scale) · cos(text at its end mark, [CLS] of the
    patches after four layers of cross-attention to the words). A word is looked at if its largest
    similarity to `CONDITION`, divided by the largest of the prompt, is above 0.3. The published
    code divides by the largest of the whole *batch*, so that a score depends on its neighbours;
    here every picture is scored as if it were alone, which is what its evaluation script does.

    Whether it rises with guidance alone has not been measured; it is counted there, to be careful.

    Args:
        weights: hub id or folder that holds `model.safetensors`, or the file itself. The original
            release is a pickled program, which is refused; the default is the re-hosted tensors.
        sha256: of the weights, to be sure of them.

    Example:
        >>> MPS().to_text()
        'mps'
    """

    kind = "mps"
    group = "rises with guidance"
    expected = (0.0, 20.0)
    weights: str = "RE-N-Y/mpsv1"
    sha256: str | None = None

    @property
    def max_tokens(self) -> int | None:
        """77, start and end mark included."""
        return _TOKENS

    def fingerprint(self) -> dict[str, Any]:
        """The weights by content, and the recipe."""
        return {
            "scorer": self.kind,
            "weights": {"model.safetensors": file_sha256(self._weights())},
            "preprocessing": "shortest side to 224 bicubic (PIL), centre crop rounded down, "
            "OpenAI mean and std",
            "dtype": "float32",
            "formula": f"exp(logit_scale) cos, one picture at a time, words above {_THRESHOLD}; "
            f"CLIP BPE, {_TOKENS} tokens padded with the end mark; {CONDITION}",
        }

    def tokens(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens each prompt has, start and end mark included."""
        return self._words.count(prompts)

    def score(
        self, images: Sequence[Image], prompts: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        """The scores, float32 [n]."""
        import numpy as np
        import torch
        from torch.nn.functional import cosine_similarity

        from w2sdiff.scorers.preprocess import normalise, resize_crop

        texts = self._check_prompts(images, prompts)
        if not images:
            return np.zeros(0, np.float32)
        clip, cross = self._model
        size = clip.config.vision_config.image_size
        pixels = torch.stack([normalise(resize_crop(image, size, crop="down")) for image in images])
        with torch.inference_mode():
            words, ends = self._read(texts)
            patches = clip.vision_model(pixels.to(self.device)).last_hidden_state
            looked = self._look(cross, clip.visual_projection(patches), words)
            cosines = cosine_similarity(words[range(len(texts)), ends], looked[:, 0])
            scores: NDArray[np.float32] = (clip.logit_scale.exp() * cosines).cpu().numpy()
        return scores

    def _look(self, cross: Mapping[str, Tensor], patches: Tensor, words: Tensor) -> Tensor:
        from w2sdiff.scorers.cross import cross_transformer

        near = (words @ self._condition.mT).amax(dim=-1)
        keep = near / near.amax(dim=-1, keepdim=True) > _THRESHOLD
        return cross_transformer(cross, patches, words, keep)

    def _read(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Features of every token [n, 77, d], and where the end mark is [n]."""
        clip, _ = self._model
        ids = self._words.encode(texts)
        ends = (ids == _END).int().argmax(dim=1)
        hidden = clip.text_model(input_ids=ids.to(self.device)).last_hidden_state
        return clip.text_projection(hidden), ends

    @cached_property
    def _condition(self) -> Tensor:
        return self._read([CONDITION])[0][0]

    @cached_property
    def _model(self) -> tuple[Any, dict[str, Tensor]]:
        from w2sdiff.scorers.weights import load_state

        state = load_state(self._weights(), sha256=self.sha256)
        state = {name.removeprefix("mps."): tensor.float() for name, tensor in state.items()}
        cross = part(state, "cross_model.")
        cross = {name: tensor.to(self.device) for name, tensor in cross.items()}
        return _clip(part(state, "model.")).to(self.device), cross

    @cached_property
    def _words(self) -> Tokeniser:
        from w2sdiff.scorers.text import clip_tokeniser

        return replace(clip_tokeniser(_TOKENS), padding=_END)  # as it was trained

    def _weights(self) -> Path:
        from w2sdiff.scorers.weights import find_weights

        return find_weights(
            self.weights, "model.safetensors", download=self.may_download, sha256=self.sha256
        )


def _clip(tensors: Mapping[str, Tensor]) -> Any:
    """The stock `CLIPModel` of these tensors, every size read off them."""
    from transformers import CLIPConfig, CLIPModel

    tensors = {name: t for name, t in tensors.items() if not name.endswith("position_ids")}
    text, vision = part(tensors, "text_model."), part(tensors, "vision_model.")
    patch = vision["embeddings.patch_embedding.weight"]
    grid = round((len(vision["embeddings.position_embedding.weight"]) - 1) ** 0.5)
    config = CLIPConfig(
        projection_dim=len(tensors["text_projection.weight"]),
        text_config={
            **_sizes(text),
            "vocab_size": len(text["embeddings.token_embedding.weight"]),
            "max_position_embeddings": len(text["embeddings.position_embedding.weight"]),
        },
        vision_config={
            **_sizes(vision),
            "image_size": grid * patch.shape[-1],
            "patch_size": patch.shape[-1],
        },
    )
    return filled(CLIPModel, config, tensors)


def _sizes(tower: Mapping[str, Tensor]) -> dict[str, Any]:
    wide, width = tower["encoder.layers.0.mlp.fc1.weight"].shape
    return {
        "hidden_size": width,
        "intermediate_size": wide,
        "num_hidden_layers": count_layers(tower, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": _HEADS,
        "hidden_act": "gelu",  # OpenCLIP's ViT-H; OpenAI's own models have quick_gelu
    }
