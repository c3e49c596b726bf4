"""BLIP as ImageReward publishes it: a small random copy, and its forward pass in plain torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

VISION, TEXT, PATCH, SIZE, LAYERS = 192, 128, 16, 48, 2
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "circle", "##s", ","]
State = dict[str, Tensor]


def published_state(seed: int = 0) -> State:
    """Random tensors under the published names. The picture tower's inputs are tiny, so that its
    layer-norm eps shows, and its norms are not the identity.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 0.2) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    state: State = {
        "cls_token": draw(1, 1, VISION, scale=0.003),
        "pos_embed": draw(1, 1 + (SIZE // PATCH) ** 2, VISION, scale=0.003),
        "patch_embed.proj.weight": draw(VISION, 3, PATCH, PATCH, scale=1e-4),
        "patch_embed.proj.bias": draw(VISION, scale=1e-4),
    }

    def linear(name: str, out: int, into: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = draw(out, into, scale=0.08), draw(out)

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + draw(width), draw(width)

    for i in range(LAYERS):
        block = f"blocks.{i}."
        norm(block + "norm1", VISION)
        linear(block + "attn.qkv", 3 * VISION, VISION)
        linear(block + "attn.proj", VISION, VISION)
        norm(block + "norm2", VISION)
        linear(block + "mlp.fc1", 2 * VISION, VISION)
        linear(block + "mlp.fc2", VISION, 2 * VISION)
    norm("norm", VISION)
    state = {f"visual_encoder.{name}": value for name, value in state.items()}

    text = "text_encoder."
    state[text + "embeddings.position_ids"] = torch.arange(64)[None]
    state[text + "embeddings.word_embeddings.weight"] = draw(len(WORDS), TEXT)
    state[text + "embeddings.position_embeddings.weight"] = draw(64, TEXT)
    norm(text + "embeddings.LayerNorm", TEXT)
    for i in range(LAYERS):
        layer = f"{text}encoder.layer.{i}."
        for kind, source in (("attention", TEXT), ("crossattention", VISION)):
            for name, into in (("query", TEXT), ("key", source), ("value", source)):
                linear(f"{layer}{kind}.self.{name}", TEXT, into)
            linear(f"{layer}{kind}.output.dense", TEXT, TEXT)
            norm(f"{layer}{kind}.output.LayerNorm", TEXT)
        linear(layer + "intermediate.dense", 2 * TEXT, TEXT)
        linear(layer + "output.dense", TEXT, 2 * TEXT)
        norm(layer + "output.LayerNorm", TEXT)
    linear("vision_proj", 16, VISION)
    linear("text_proj", 16, TEXT)
    state = {f"blip.{name}": value for name, value in state.items()}

    for index, (out, into) in {0: (64, TEXT), 2: (32, 64), 4: (16, 32), 6: (8, 16)}.items():
        linear(f"mlp.layers.{index}", out, into)
    linear("mlp.layers.7", 1, 8)
    return state


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    weights = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        weights = weights.masked_fill(mask[:, None, None] == 0, -torch.inf)
    return (weights.softmax(-1) @ v).transpose(1, 2).flatten(2)


def plain_vision(state: State, pixels: Tensor, heads: int = VISION // 64, eps: float = 1e-6) -> Any:
    """The ViT of BLIP (Li et al. 2022): pre-norm, one fused projection for q, k and v."""
    v = "blip.visual_encoder."
    x = F.conv2d(pixels, state[v + "patch_embed.proj.weight"], None, stride=PATCH)
    x = x.flatten(2).mT + state[v + "patch_embed.proj.bias"]
    x = torch.cat([state[v + "cls_token"].expand(len(x), -1, -1), x], 1) + state[v + "pos_embed"]
    for i in range(LAYERS):
        b = f"{v}blocks.{i}."
        q, k, value = linear(state, b + "attn.qkv", norm(state, b + "norm1", x, eps)).chunk(3, -1)
        x = x + linear(state, b + "attn.proj", attend(q, k, value, heads))
        hidden = F.gelu(linear(state, b + "mlp.fc1", norm(state, b + "norm2", x, eps)))
        x = x + linear(state, b + "mlp.fc2", hidden)
    return norm(state, v + "norm", x, eps)


def plain_text(
    state: State, ids: Tensor, mask: Tensor, seen: Tensor, heads: int = TEXT // 64
) -> Tensor:
    """BERT with cross-attention: post-norm, no token types; every token sees every other."""
    t = "blip.text_encoder."
    x = state[t + "embeddings.word_embeddings.weight"][ids]
    x = x + state[t + "embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(state, t + "embeddings.LayerNorm", x, 1e-12)
    for i in range(LAYERS):
        layer = f"{t}encoder.layer.{i}."
        for kind, source, hide in (("attention", None, mask), ("crossattention", seen, None)):
            name = f"{layer}{kind}."
            q = linear(state, name + "self.query", x)
            k = linear(state, name + "self.key", x if source is None else source)
            v = linear(state, name + "self.value", x if source is None else source)
            out = linear(state, name + "output.dense", attend(q, k, v, heads, hide))
            x = norm(state, name + "output.LayerNorm", out + x, 1e-12)
        hidden = F.gelu(linear(state, layer + "intermediate.dense", x))
        out = linear(state, layer + "output.dense", hidden)
        x = norm(state, layer + "output.LayerNorm", out + x, 1e-12)
    return x


def plain_head(state: State, cls: Tensor) -> Tensor:
    for index in (0, 2, 4, 6, 7):
        cls = linear(state, f"mlp.layers.{index}", cls)
    return cls[:, 0]
