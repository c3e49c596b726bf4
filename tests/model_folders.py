"""Folders of tiny models with random weights, as `--model` takes them: saved once per test run."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import tiny


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
