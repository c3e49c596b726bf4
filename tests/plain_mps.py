"""MPS as published: a small random copy, and its forward pass in plain torch."""

from __future__ import annotations

import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from w2sdiff.scorers.mps import CONDITION
from w2sdiff.scorers.preprocess import normalise, resize_crop

TEXT, VISION, WIDTH, HEAD, HEADS = 32, 48, 24, 8, 3
PATCH, SIZE, TOWER_HEADS, END = 14, 28, 16, 49407
State = dict[str, Tensor]


def published_state(seed: int = 0) -> State:
    """Random tensors under the names of the release: two towers of two layers, four of cross."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 0.25) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    state: State = {"model.logit_scale": torch.tensor(2.3)}

    def linear(name: str, out: int, into: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = draw(out, into), draw(out)

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + draw(width), draw(width)

    for tower, width in (("text", TEXT), ("vision", VISION)):
        for i in range(2):
            layer = f"model.{tower}_model.encoder.layers.{i}."
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                linear(f"{layer}self_attn.{name}", width, width)
            norm(layer + "layer_norm1", width)
            norm(layer + "layer_norm2", width)
            linear(layer + "mlp.fc1", 2 * width, width)
            linear(layer + "mlp.fc2", width, 2 * width)
    text, vision = "model.text_model.", "model.vision_model."
    state[text + "embeddings.token_embedding.weight"] = draw(END + 1, TEXT)
    state[text + "embeddings.position_embedding.weight"] = draw(77, TEXT)
    norm(text + "final_layer_norm", TEXT)
    state[vision + "embeddings.class_embedding"] = draw(VISION)
    state[vision + "embeddings.patch_embedding.weight"] = draw(VISION, 3, PATCH, PATCH, scale=0.05)
    state[vision + "embeddings.position_embedding.weight"] = draw(1 + (SIZE // PATCH) ** 2, VISION)
    state[vision + "embeddings.position_ids"] = torch.arange(5)[None]
    norm(vision + "pre_layrnorm", VISION)
    norm(vision + "post_layernorm", VISION)
    state["model.visual_projection.weight"] = draw(WIDTH, VISION)
    # One strong direction, so that words differ in how near they are to the condition.
    state["model.text_projection.weight"] = draw(WIDTH, TEXT) + draw(WIDTH, 1) * draw(TEXT) * 20

    inner, wide = HEAD * HEADS, 4 * WIDTH
    for i in range(4):
        cross, own = (f"cross_model.layers.{i}.{k}.fn." for k in (0, 1))
        for block in (cross, own):
            state[block + "norm.weight"] = 1 + draw(WIDTH)
            state[block + "norm.bias"] = torch.zeros(WIDTH)
        state[cross + "to_q.weight"] = draw(inner, WIDTH)
        state[cross + "to_kv.weight"] = draw(2 * HEAD, WIDTH)
        state[cross + "to_out.weight"] = draw(WIDTH, inner)
        state[cross + "ff.0.weight"] = draw(2 * wide, WIDTH)
        state[cross + "ff.2.weight"] = draw(WIDTH, wide)
        state[own + "rotary_emb.inv_freq"] = 10000 ** -(torch.arange(0, HEAD, 2) / HEAD)
        state[own + "fused_attn_ff_proj.weight"] = draw(inner + 2 * HEAD + 2 * wide, WIDTH)
        state[own + "attn_out.weight"] = draw(WIDTH, inner)
        state[own + "ff_out.1.weight"] = draw(WIDTH, wide)
    return {f"mps.{name}": tensor for name, tensor in state.items()}


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"mps.{name}.weight"], state.get(f"mps.{name}.bias"))


def norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(
        x, x.shape[-1:], state[f"mps.{name}.weight"], state.get(f"mps.{name}.bias"), 1e-5
    )


def plain_tower(state: State, tower: str, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """One sequence [p, width] through a pre-norm CLIP tower, GELU."""
    for i in range(2):
        layer = f"model.{tower}_model.encoder.layers.{i}."
        y = norm(state, layer + "layer_norm1", x)
        q, k, v = (
            linear(state, f"{layer}self_attn.{name}", y).unflatten(-1, (TOWER_HEADS, -1))
            for name in ("q_proj", "k_proj", "v_proj")
        )
        weights = torch.einsum("phc,qhc->hpq", q, k) / q.shape[-1] ** 0.5
        if mask is not None:
            weights = weights + mask
        y = torch.einsum("hpq,qhc->phc", weights.softmax(-1), v).flatten(1)
        x = x + linear(state, layer + "self_attn.out_proj", y)
        y = F.gelu(linear(state, layer + "mlp.fc1", norm(state, layer + "layer_norm2", x)))
        x = x + linear(state, layer + "mlp.fc2", y)
    return x


def plain_text(state: State, text: str) -> tuple[Tensor, int]:
    """Features of the 77 tokens, padded with the end mark; and where the first end mark is."""
    bpe = SimpleTokenizer()
    ids = [49406, *bpe.encode(text)[:75], END]
    end = len(ids) - 1
    ids += [END] * (77 - len(ids))
    table = state["mps.model.text_model.embeddings.token_embedding.weight"]
    places = state["mps.model.text_model.embeddings.position_embedding.weight"]
    causal = torch.full((77, 77), -torch.inf).triu(1)
    x = plain_tower(state, "text", table[ids] + places, causal)
    x = norm(state, "model.text_model.final_layer_norm", x)
    return linear(state, "model.text_projection", x), end


def plain_image(state: State, pixels: Tensor) -> Tensor:
    v = "mps.model.vision_model.embeddings."
    x = F.conv2d(pixels[None], state[v + "patch_embedding.weight"], stride=PATCH)[0].flatten(1).T
    x = torch.cat([state[v + "class_embedding"][None], x])
    x = norm(state, "model.vision_model.pre_layrnorm", x + state[v + "position_embedding.weight"])
    return linear(state, "model.visual_projection", plain_tower(state, "vision", x))


def swiglu(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, -1)
    return value * F.silu(gate)


def rotary(x: Tensor) -> Tensor:
    """As complex numbers: channel k and k + c/2 are one, turned by position · 10000^(-2k/c)."""
    first, second = x.chunk(2, -1)
    place = torch.arange(len(x), dtype=torch.float64)[:, None]
    turn = place * 10000.0 ** (-torch.arange(HEAD // 2) * 2 / HEAD)
    turned = torch.complex(first.double(), second.double()) * torch.polar(
        torch.ones_like(turn), turn
    )
    return torch.cat([turned.real, turned.imag], -1).float()


def plain_cross(state: State, x: Tensor, words: Tensor, keep: Tensor) -> Tensor:
    for i in range(4):
        cross, own = (f"cross_model.layers.{i}.{k}.fn." for k in (0, 1))
        y = norm(state, cross + "norm", x)
        key, value = linear(state, cross + "to_kv", words[keep]).chunk(2, -1)
        seen = [
            (q @ key.T / HEAD**0.5).softmax(-1) @ value
            for q in linear(state, cross + "to_q", y).split(HEAD, -1)
        ]
        x = x + linear(state, cross + "to_out", torch.cat(seen, -1))
        x = x + linear(state, cross + "ff.2", swiglu(linear(state, cross + "ff.0", y)))

        y = linear(state, own + "fused_attn_ff_proj", norm(state, own + "norm", x))
        q, key, value, wide = y.split((HEAD * HEADS, HEAD, HEAD, 8 * WIDTH), -1)
        seen = [
            (rotary(part) @ rotary(key).T / HEAD**0.5).softmax(-1) @ value
            for part in q.split(HEAD, -1)
        ]
        x = x + linear(state, own + "attn_out", torch.cat(seen, -1))
        x = x + linear(state, own + "ff_out.1", swiglu(wide))
    return x


def plain_keep(words: Tensor, condition: Tensor, threshold: float = 0.3) -> Tensor:
    near = (words @ condition.T).max(1).values
    return near / near.max() > threshold


def plain_score(state: State, image: Image.Image, prompt: str, threshold: float = 0.3) -> float:
    words, end = plain_text(state, prompt)
    keep = plain_keep(words, plain_text(state, CONDITION)[0], threshold)
    patches = plain_image(state, normalise(resize_crop(image, SIZE, crop="down")))
    looked = plain_cross(state, patches, words, keep)[0]
    scale = state["mps.model.logit_scale"].exp()
    return float(scale * F.cosine_similarity(words[end], looked, dim=0))
