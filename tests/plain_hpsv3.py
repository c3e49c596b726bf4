"""HPSv3 as published: a tiny random copy, and its language model in plain torch."""

from __future__ import annotations

import tiny_qwen
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from w2sdiff.scorers.hpsv3 import _instruction
from w2sdiff.scorers.qwen import patches

PIXELS = 256 * 28 * 28
REWARD = tiny_qwen.SYMBOLS  # the token added last
State = dict[str, Tensor]


def published_state() -> State:
    """The names the release was saved with (transformers 4.45), and its head."""
    network = tiny_qwen.model()
    network.resize_token_embeddings(tiny_qwen.SYMBOLS + 1)
    state = {}
    for name, tensor in network.state_dict().items():
        name = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        state[name] = tensor.contiguous()
    generator = torch.Generator().manual_seed(1)
    for name, (out, into) in {"0": (32, 64), "3": (16, 32), "5": (2, 16)}.items():
        state[f"rm_head.{name}.weight"] = torch.randn(out, into, generator=generator) * 0.3
        state[f"rm_head.{name}.bias"] = torch.randn(out, generator=generator)
    return state


def plain_hidden(state: State, x: Tensor) -> Tensor:
    """[length, 64] through the language model, at the positions 0, 1, 2, ..."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * state[f"{name}.weight"]

    half = torch.arange(8)
    angle = torch.arange(len(x))[:, None] * 1e6 ** (-half / 8)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]

    def turned(x: Tensor) -> Tensor:
        one, other = x.chunk(2, -1)
        return torch.cat([one * cos - other * sin, other * cos + one * sin], -1)

    causal = torch.full((len(x), len(x)), -torch.inf).triu(1)
    for i in range(2):
        layer = f"model.layers.{i}."
        y = norm(layer + "input_layernorm", x)
        q, k, v = (linear(f"{layer}self_attn.{n}_proj", y).unflatten(-1, (-1, 16)) for n in "qkv")
        k, v = (t.repeat_interleave(2, dim=1) for t in (turned(k), v))  # four heads share two
        weights = torch.einsum("phc,qhc->hpq", turned(q), k) / 4 + causal
        seen = torch.einsum("hpq,qhc->phc", weights.softmax(-1), v).flatten(1)
        x = x + linear(layer + "self_attn.o_proj", seen)
        y = norm(layer + "post_attention_layernorm", x)
        gated = F.silu(linear(layer + "mlp.gate_proj", y)) * linear(layer + "mlp.up_proj", y)
        x = x + linear(layer + "mlp.down_proj", gated)
    return norm("model.norm", x)


def plain_score(state: State, image: Image.Image, prompt: str) -> float:
    words = tiny_qwen.tokenizer()
    words.add_special_tokens(["<|Reward|>"])
    pixels, grid = patches(image, PIXELS)
    chat = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"<|vision_start|>{'<|image_pad|>' * (len(pixels) // 4)}<|vision_end|>"
        f"{_instruction().format(text_prompt=prompt)}<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = torch.tensor(words.encode(chat).ids)
    x = state["model.embed_tokens.weight"][ids].clone()
    x[ids == words.token_to_id("<|image_pad|>")] = seen_by(state, pixels, grid)
    x = plain_hidden(state, x)[ids == REWARD]
    for name in ("0", "3", "5"):
        x = F.linear(x, state[f"rm_head.{name}.weight"], state[f"rm_head.{name}.bias"])
        x = x if name == "5" else x.relu()
    assert x.shape == (1, 2)
    return float(x[0, 0])


def seen_by(state: State, pixels: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """The picture as the stock vision tower gives it to the language model."""
    tower = tiny_qwen.model().model.visual
    tower.load_state_dict({n[7:]: t for n, t in state.items() if n.startswith("visual.")})
    with torch.no_grad():
        out = tower(pixels, grid_thw=torch.tensor([grid]))
    return getattr(out, "pooler_output", out)
