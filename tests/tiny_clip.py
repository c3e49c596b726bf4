"""Small random CLIPs in the layouts of open_clip and transformers, and CLIP in plain torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]

SIZE, PATCH, WIDTH, TEXT, DIM, HEADS, LAYERS, VOCABULARY = 32, 8, 48, 32, 24, 2, 2, 49408


def config(*, quick_gelu: bool = False) -> dict[str, Any]:
    """The small architecture as open_clip writes it."""
    return {
        "embed_dim": DIM,
        "quick_gelu": quick_gelu,
        "vision_cfg": {
            "image_size": SIZE,
            "patch_size": PATCH,
            "width": WIDTH,
            "layers": LAYERS,
            "head_width": WIDTH // HEADS,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": VOCABULARY,
            "width": TEXT,
            "heads": HEADS,
            "layers": LAYERS,
        },
    }


def random_state(seed: int = 0) -> State:
    """Random weights under open_clip's names, large enough for every detail to show."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 0.3) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    state = {
        "positional_embedding": draw(77, TEXT),
        "text_projection": draw(TEXT, DIM),
        "logit_scale": torch.tensor(4.6),
        "token_embedding.weight": draw(VOCABULARY, TEXT),
        "visual.class_embedding": draw(WIDTH),
        "visual.positional_embedding": draw(1 + (SIZE // PATCH) ** 2, WIDTH),
        "visual.proj": draw(WIDTH, DIM),
        "visual.conv1.weight": draw(WIDTH, 3, PATCH, PATCH, scale=0.1),
    }

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + draw(width), draw(width)

    for name, width in (
        ("ln_final", TEXT),
        ("visual.ln_pre", WIDTH),
        ("visual.ln_post", WIDTH),
    ):
        norm(name, width)
    for tower, width in (("visual.transformer", WIDTH), ("transformer", TEXT)):
        for layer in range(LAYERS):
            block = f"{tower}.resblocks.{layer}."
            norm(block + "ln_1", width)
            norm(block + "ln_2", width)
            for part, out, into in (
                ("attn.out_proj", width, width),
                ("mlp.c_fc", 4 * width, width),
                ("mlp.c_proj", width, 4 * width),
            ):
                state[f"{block}{part}.weight"] = draw(out, into)
                state[f"{block}{part}.bias"] = draw(out)
            state[f"{block}attn.in_proj_weight"] = draw(3 * width, width)
            state[f"{block}attn.in_proj_bias"] = draw(3 * width)
    return state


def open_clip_folder(folder: Path, *, seed: int = 0, quick_gelu: bool = False) -> Path:
    """Write the small CLIP as open_clip does."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"model_cfg": config(quick_gelu=quick_gelu), "preprocess_cfg": {}})
    (folder / "open_clip_config.json").write_text(text)
    save_file(random_state(seed), folder / "open_clip_model.safetensors")
    return folder


def transformers_folder(folder: Path, *, seed: int = 0, act: str = "quick_gelu") -> Path:
    """Write the small CLIP with `CLIPModel.save_pretrained`; it has no tokenizer of its own."""
    from transformers import CLIPConfig, CLIPModel

    tower = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "hidden_act": act}
    model = CLIPModel(
        CLIPConfig(
            projection_dim=DIM,
            text_config=tower
            | {"hidden_size": TEXT, "intermediate_size": 4 * TEXT, "eos_token_id": 49407},
            vision_config=tower
            | {
                "hidden_size": WIDTH,
                "intermediate_size": 4 * WIDTH,
                "image_size": SIZE,
                "patch_size": PATCH,
            },
        )
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        model.logit_scale.fill_(4.6)
    model.save_pretrained(folder)
    return folder


def as_open_clip(state: State) -> State:
    """The names of transformers, turned into open_clip's."""
    renamed: State = {}
    for name, value in state.items():
        new = name.replace("vision_model.", "visual.").replace("text_model.", "")
        for old, other in (
            ("encoder.layers.", "transformer.resblocks."),
            ("layer_norm", "ln_"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
            ("self_attn.", "attn."),
            ("visual.embeddings.patch_embedding", "visual.conv1"),
            ("visual.embeddings.position_embedding.weight", "visual.positional_embedding"),
            ("visual.embeddings.", "visual."),
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("embeddings.", ""),
            ("pre_layrnorm", "ln_pre"),
            ("post_layernorm", "ln_post"),
            ("final_ln_", "ln_final"),
            ("final_layer_norm", "ln_final"),
        ):
            new = new.replace(old, other)
        renamed[new] = value
    for name in [n for n in renamed if n.endswith("attn.q_proj.weight")]:
        stem = name.removesuffix("q_proj.weight")
        for part in ("weight", "bias"):
            split = [renamed.pop(f"{stem}{x}_proj.{part}") for x in "qkv"]
            renamed[f"{stem}in_proj_{part}"] = torch.cat(split)
    renamed["visual.proj"] = renamed.pop("visual_projection.weight").T
    renamed["text_projection"] = renamed.pop("text_projection.weight").T
    return renamed


def plain_image(state: State, pixels: Tensor, *, quick_gelu: bool = False) -> Tensor:
    """CLIP's picture tower, written out: unit vectors of pixels [n, 3, 32, 32]."""
    x = F.conv2d(pixels, state["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, x], 1) + state["visual.positional_embedding"]
    x = _norm(x, state, "visual.ln_pre")
    x = _blocks(x, state, "visual.transformer", None, quick_gelu)
    return F.normalize(_norm(x[:, 0], state, "visual.ln_post") @ state["visual.proj"], dim=-1)


def plain_text(state: State, ids: Tensor, *, quick_gelu: bool = False) -> Tensor:
    """CLIP's text tower, written out: unit vectors of ids [n, t], read at the end mark."""
    x = state["token_embedding.weight"][ids] + state["positional_embedding"][: ids.shape[1]]
    causal = torch.full((ids.shape[1],) * 2, -torch.inf).triu(1)
    x = _norm(_blocks(x, state, "transformer", causal, quick_gelu), state, "ln_final")
    ends = [row.tolist().index(VOCABULARY - 1) for row in ids]
    return F.normalize(x[torch.arange(len(x)), ends] @ state["text_projection"], dim=-1)


def _norm(x: Tensor, state: State, name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)


def _blocks(x: Tensor, state: State, tower: str, mask: Tensor | None, quick: bool) -> Tensor:
    for layer in range(LAYERS):
        p = f"{tower}.resblocks.{layer}."
        y = _norm(x, state, p + "ln_1")
        qkv = y @ state[p + "attn.in_proj_weight"].T + state[p + "attn.in_proj_bias"]
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
        weights = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        weights = (weights if mask is None else weights + mask).softmax(-1)
        y = (weights @ v).transpose(1, 2).flatten(2)
        x = x + y @ state[p + "attn.out_proj.weight"].T + state[p + "attn.out_proj.bias"]
        y = _norm(x, state, p + "ln_2")
        y = y @ state[p + "mlp.c_fc.weight"].T + state[p + "mlp.c_fc.bias"]
        y = y * torch.sigmoid(1.702 * y) if quick else F.gelu(y)
        x = x + y @ state[p + "mlp.c_proj.weight"].T + state[p + "mlp.c_proj.bias"]
    return x


def pictures(n: int = 5, size: tuple[int, int] = (40, 28), seed: int = 0) -> list[Image.Image]:
    """Random coarse pictures, wider than high."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 5, 7, generator=generator)
    fine = F.interpolate(coarse, size=size[::-1], mode="bilinear") * 255
    return [Image.fromarray(p.byte().permute(1, 2, 0).numpy()) for p in fine]
