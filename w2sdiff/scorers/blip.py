"""BLIP as ImageReward publishes it, read into the stock classes of transformers.

Every size is read off the tensors. What tensors do not tell is fixed: 64 channels per attention
head (12 heads for BERT-base, not the 8 that transformers assumes; both load, 8 is silently wrong),
layer-norm eps 1e-6 in the picture tower and 1e-12 in the text tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from w2sdiff.scorers.tensors import count_layers, filled, part

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["text_tower", "vision_tower"]

_HEAD_CHANNELS = 64
_VISION_NAMES = {  # timm's names, as BLIP has them, to those of transformers
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "blocks.": "encoder.layers.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    "norm.": "post_layernorm.",
}


def vision_tower(state: Mapping[str, Tensor]) -> Any:
    """The `BlipVisionModel` of a published state dict (keys `blip.visual_encoder.*`).

    Raises:
        InputError: a tensor is missing, or is one too many.
    """
    from transformers import BlipVisionConfig, BlipVisionModel

    tensors = part(state, "blip.visual_encoder.")
    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    grid = round((tensors["pos_embed"].shape[1] - 1) ** 0.5)
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=tensors["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=count_layers(tensors, r"blocks\.(\d+)\."),
        num_attention_heads=width // _HEAD_CHANNELS,
        image_size=grid * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    named = {_vision_name(name): tensor for name, tensor in tensors.items()}
    return filled(BlipVisionModel, config, named).float()


def text_tower(state: Mapping[str, Tensor]) -> Any:
    """The `BlipTextModel`, with cross-attention, of a published state dict (`blip.text_encoder.*`).

    Raises:
        InputError: a tensor is missing, or is one too many.
    """
    from transformers import BlipTextModel
    from transformers.models.blip.configuration_blip import BlipTextConfig

    tensors = part(state, "blip.text_encoder.")
    tensors.pop("embeddings.position_ids", None)  # 0, 1, 2, ...: older releases stored it
    words, width = tensors["embeddings.word_embeddings.weight"].shape
    first = "encoder.layer.0."
    config = BlipTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=tensors[first + "intermediate.dense.weight"].shape[0],
        num_hidden_layers=count_layers(tensors, r"encoder\.layer\.(\d+)\."),
        num_attention_heads=width // _HEAD_CHANNELS,
        max_position_embeddings=tensors["embeddings.position_embeddings.weight"].shape[0],
        encoder_hidden_size=tensors[first + "crossattention.self.key.weight"].shape[1],
        layer_norm_eps=1e-12,
    )
    return filled(BlipTextModel, config, tensors, add_pooling_layer=False).float()


def _vision_name(name: str) -> str:
    for old, new in _VISION_NAMES.items():
        if old.startswith("."):
            name = name.replace(old, new)
        elif name.startswith(old):
            name = new + name.removeprefix(old)
    return name
