"""PixArt-Σ with the published names, written plainly from the paper: a second opinion.

No module of diffusers or of the package is used: only tensors, by their published names.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def predict(
    w: Weights, x: Tensor, t: Tensor, text: Tensor, mask: Tensor, heads: int, positions: Tensor
) -> Tensor:
    """Prediction [B, 8, H, W] for latents x [B, 4, H, W] and text [B, T, D] with mask [B, T]."""
    patch = w["x_embedder.proj.weight"].shape[2]
    height, width = x.shape[2] // patch, x.shape[3] // patch
    patches = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=patch)
    hidden = patches.flatten(2).transpose(1, 2) + positions
    when = linear(w, "t_embedder.mlp.2", F.silu(linear(w, "t_embedder.mlp.0", frequencies(t))))
    shifts = linear(w, "t_block.1", F.silu(when)).reshape(len(x), 6, -1)
    words = F.gelu(linear(w, "y_embedder.y_proj.fc1", text), approximate="tanh")
    words = linear(w, "y_embedder.y_proj.fc2", words)
    depth = 1 + max(int(key.split(".")[1]) for key in w if key.startswith("blocks."))
    for n in range(depth):
        hidden = block(w, f"blocks.{n}", hidden, shifts, words, mask, heads, (height, width))
    shift, scale = (w["final_layer.scale_shift_table"][None] + when[:, None]).chunk(2, dim=1)
    hidden = linear(w, "final_layer.linear", norm(hidden) * (1 + scale) + shift)
    image = hidden.reshape(len(x), height, width, patch, patch, -1)
    return image.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, *x.shape[2:])


def block(w, name, x, shifts, words, mask, heads, grid) -> Tensor:
    parts = (w[f"{name}.scale_shift_table"][None] + shifts).chunk(6, dim=1)
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = parts
    attended = self_attention(w, f"{name}.attn", norm(x) * (1 + scale) + shift, heads, grid)
    x = x + gate * attended
    q = linear(w, f"{name}.cross_attn.q_linear", x)
    k, v = linear(w, f"{name}.cross_attn.kv_linear", words).chunk(2, dim=-1)
    x = x + linear(w, f"{name}.cross_attn.proj", attention(q, k, v, heads, mask))
    inner = linear(w, f"{name}.mlp.fc1", norm(x) * (1 + scale_mlp) + shift_mlp)
    return x + gate_mlp * linear(w, f"{name}.mlp.fc2", F.gelu(inner, approximate="tanh"))


def self_attention(w, name, x, heads, grid) -> Tensor:
    q, k, v = linear(w, f"{name}.qkv", x).chunk(3, dim=-1)
    if f"{name}.sr.weight" in w:
        k, v = compressed(w, name, k, grid), compressed(w, name, v, grid)
    return linear(w, f"{name}.proj", attention(q, k, v, heads))


def compressed(w, name, x, grid) -> Tensor:
    """Depthwise kernel over cells, then LayerNorm; shared by keys and values."""
    kernel = w[f"{name}.sr.weight"]
    image = x.transpose(1, 2).reshape(len(x), -1, *grid)
    ratio = tuple(kernel.shape[2:])
    image = F.conv2d(image, kernel, w[f"{name}.sr.bias"], stride=ratio, groups=len(kernel))
    x = image.flatten(2).transpose(1, 2)
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.norm.weight"], w[f"{name}.norm.bias"])


def attention(q, k, v, heads, mask=None) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(mask[:, None, None] == 0, -10000.0)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def frequencies(t: Tensor) -> Tensor:
    angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])
