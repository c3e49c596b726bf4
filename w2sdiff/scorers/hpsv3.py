"""HPSv3: human preference read off a vision-language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from w2sdiff.errors import InputError
from w2sdiff.jobs import digest, file_sha256
from w2sdiff.scorers.base import SCORERS, Scorer
from w2sdiff.scorers.tensors import filled, part

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

__all__ = ["HPSv3"]

_PIXELS = 256 * 28 * 28
_REWARD = "<|Reward|>"
_TYPES = ("bfloat16", "float32")
_CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{text}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@SCORERS.register
@dataclass(frozen=True)
class HPSv3(Scorer):
    """Human preference, version 3: a reward head on Qwen2-VL-7B.

    Ma et al. 2025, arXiv 2508.03789. The model reads the picture, a long instruction and the
    prompt; at the token `<|Reward|>` a small head gives (mu, sigma), and the score is mu. The
    language model is given the positions 0, 1, 2, ... for all three axes, as the release was
    trained and run with, not Qwen2-VL's own three-dimensional ones. One picture at a time.

    The weights take 16.5 GB. Whether the score rises with guidance alone has not been measured; it
    is counted there, to be careful. The instruction is the release's own (MIT licence).

    Args:
        weights: hub id or folder that holds `HPSv3.safetensors`, or the file itself.
        base: hub id or folder of Qwen2-VL-7B-Instruct; only `config.json` and `tokenizer.json` are
            read.
        dtype: "bfloat16", as published, or "float32"; the head is in float32 either way.
        sha256: of the weights, to be sure of them.

    Raises:
        InputError: another dtype.

    Example:
        >>> HPSv3(dtype="float32").to_text()
        'hpsv3:dtype=float32'
    """

    kind = "hpsv3"
    group = "rises with guidance"
    expected = (-5.0, 15.0)
    weights: str = "MizzenAI/HPSv3"
    base: str = "Qwen/Qwen2-VL-7B-Instruct"
    dtype: str = "bfloat16"
    sha256: str | None = None

    def __post_init__(self) -> None:
        """Check the dtype."""
        if self.dtype not in _TYPES:
            raise InputError(f"dtype={self.dtype!r}: expected one of {', '.join(_TYPES)}")

    def fingerprint(self) -> dict[str, Any]:
        """The weights, the tokenizer and the instruction by content."""
        return {
            "scorer": self.kind,
            "weights": {
                "HPSv3.safetensors": file_sha256(self._weights()),
                "config.json": file_sha256(self._base("config.json")),
                "tokenizer.json": file_sha256(self._base("tokenizer.json")),
            },
            "preprocessing": f"bicubic (PIL) to {_PIXELS} pixels in cells of 28, "
            "OpenAI mean and std",
            "dtype": f"{self.dtype}, head float32",
            "formula": f"mu at {_REWARD}, positions 0, 1, 2, ...; instruction "
            + digest(_CHAT + _instruction()),
        }

    def score(
        self, images: Sequence[Image], prompts: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        """The scores, float32 [n].

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
        import torch

        from w2sdiff.scorers.qwen import patches

        model, head = self._model
        pixels, grid = patches(image, _PIXELS)
        ids = self._encode(prompt, image_tokens=len(pixels) // 4)
        hidden = model(
            input_ids=ids.to(self.device),
            pixel_values=pixels.to(self.device, model.dtype),
            image_grid_thw=torch.tensor([grid]).to(self.device),
            position_ids=torch.arange(ids.shape[1]).expand(3, 1, -1).to(self.device),
            use_cache=False,
        ).last_hidden_state
        at = int((ids[0] == self._tokenizer.token_to_id(_REWARD)).nonzero())
        return float(head(hidden[0, at].float())[0])

    def _encode(self, prompt: str, image_tokens: int) -> Tensor:
        """The whole conversation as token ids, [1, length]."""
        import torch

        special = {t.content for t in self._tokenizer.get_added_tokens_decoder().values()}
        if held := sorted(token for token in special if token in prompt):
            raise InputError(f"a prompt must not hold the model's own token {held[0]!r}")
        text = _instruction().replace("{text_prompt}", prompt)
        chat = _CHAT.replace("{image}", "<|image_pad|>" * image_tokens).replace("{text}", text)
        return torch.tensor([self._tokenizer.encode(chat, add_special_tokens=False).ids])

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        import torch
        from transformers import Qwen2VLConfig, Qwen2VLModel

        from w2sdiff.scorers.weights import load_state

        state = load_state(self._weights(), sha256=self.sha256)
        config = Qwen2VLConfig.from_json_file(str(self._base("config.json")))
        names = _backbone(state)
        config.text_config.vocab_size = len(names["language_model.embed_tokens.weight"])
        if self._tokenizer.token_to_id(_REWARD) >= config.text_config.vocab_size:
            raise InputError(
                f"the weights know {config.text_config.vocab_size} tokens, but {_REWARD} is number "
                f"{self._tokenizer.token_to_id(_REWARD)}: is `base` another model than theirs?"
            )
        # All of it, the frequencies of the positions too: the release was trained and is run so.
        model = filled(Qwen2VLModel, config, names).to(self.device, getattr(torch, self.dtype))
        return model, _head(part(state, "rm_head.")).to(self.device)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._base("tokenizer.json")))
        tokenizer.add_special_tokens([_REWARD])
        return tokenizer

    def _weights(self) -> Path:
        from w2sdiff.scorers.weights import find_weights

        return find_weights(
            self.weights, "HPSv3.safetensors", download=self.may_download, sha256=self.sha256
        )

    def _base(self, file: str) -> Path:
        from w2sdiff.scorers.weights import find_weights

        return find_weights(self.base, file, download=self.may_download)


def _instruction() -> str:
    return (files("w2sdiff.scorers") / "data" / "hpsv3.txt").read_bytes().decode()


def _backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of transformers 4.45, which the release was saved with, to today's."""
    names = {f"visual.{name}": tensor for name, tensor in part(state, "visual.").items()}
    return names | {f"language_model.{n}": tensor for n, tensor in part(state, "model.").items()}


def _head(tensors: Mapping[str, Tensor]) -> Any:
    """Linear, ReLU, Linear, ReLU, Linear; 1 and 2 are the ReLU and the dropout of training."""
    from torch import nn

    layers: list[nn.Module] = []
    for name in ("0", "3", "5"):
        out, into = tensors[f"{name}.weight"].shape
        linear = nn.Linear(into, out)
        linear.load_state_dict(part(tensors, f"{name}."))
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval().requires_grad_(False)
