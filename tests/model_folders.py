"""Folders of tiny models with random weights, as `--model` takes them: saved once per test run."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import tiny

from w2sdiff.testing.parts import EMBEDDING, ip_adapter_weights


@cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="w2sdiff-models-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


@cache
def model_folder(family: str, *, weak: bool = False, lora: bool = False) -> Path:
    """A saved tiny pipeline; with a weak denoiser beside the denoiser, with the LoRA "style"."""
    folder = _root() / f"{family}-{weak}-{lora}"
    pipe = tiny.build(family)
    pipe.save_pretrained(folder, safe_serialization=True)
    if weak:
        name = f"{tiny.denoiser_name(family)}_weak"
        tiny.build_denoiser(family).save_pretrained(folder / name)
    if lora:
        file = tiny.lora_file(pipe, family, _root())
        (folder / "loras").mkdir()
        shutil.copyfile(file, folder / "loras" / "style.safetensors")
    return folder


@cache
def ip_adapter_file(family: str = "sd") -> Path:
    """A random IP-Adapter for a tiny pipeline, its image encoder beside it, as on the hub."""
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = _root() / f"{family}-adapter"
    network = tiny.denoiser(tiny.build(family), family)
    parts = ip_adapter_weights(network, seed=0)
    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=EMBEDDING,
    )
    encoder = tiny.randomise(CLIPVisionModelWithProjection(vision), 0)
    encoder.save_pretrained(folder / "image_encoder")
    file = folder / "ip-adapter.safetensors"
    state = {f"{part}.{name}": x for part, inside in parts.items() for name, x in inside.items()}
    save_file({name: torch.Tensor.contiguous(x) for name, x in state.items()}, file)
    return file
