"""The embedded world: captions, pictures, an exact oracle, and small checkpoints trained on it.

Importing this package costs nothing; what is used is imported when it is used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2sdiff.errors import InputError
from w2sdiff.registry import unknown

if TYPE_CHECKING:
    from w2sdiff.shapes.oracle import Verdict, judge, judge_all
    from w2sdiff.shapes.world import batch, evaluation_captions, parse

__all__ = [
    "Verdict",
    "batch",
    "checkpoint_names",
    "checkpoint_path",
    "evaluation_captions",
    "judge",
    "judge_all",
    "judge_path",
    "lora_path",
    "noise_model_path",
    "parse",
    "weak_path",
]

_CHECKPOINTS = Path(__file__).parent / "checkpoints"
_HOMES = {
    "Verdict": "oracle",
    "batch": "world",
    "evaluation_captions": "world",
    "judge": "oracle",
    "judge_all": "oracle",
    "parse": "world",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def checkpoint_names() -> list[str]:
    """Return the names of the checkpoints that come with the package, sorted."""
    return sorted(index.parent.name for index in _CHECKPOINTS.glob("*/model_index.json"))


def checkpoint_path(name: str = "shapes-unet") -> Path:
    """Return the folder of an embedded checkpoint: a stock diffusers folder.

    Raises `InputError` with the nearest names if there is none of this name.
    """
    names = checkpoint_names()
    if name not in names:
        raise unknown("embedded checkpoint", name, names)
    return _CHECKPOINTS / name


def weak_path(name: str = "shapes-unet") -> Path:
    """Return the folder of the weak denoiser that comes with an embedded checkpoint.

    It lies beside the denoiser, under the denoiser's name with `_weak` appended. Raises
    `InputError` if there is no such checkpoint, or it has no weak denoiser.
    """
    folder = checkpoint_path(name)
    for denoiser in ("unet", "transformer"):
        if (weak := folder / f"{denoiser}_weak").is_dir():
            return weak
    raise InputError(f"{name} comes without a weak denoiser (no unet_weak or transformer_weak)")


def lora_path(name: str, lora: str) -> Path:
    """Return the file of a LoRA that comes with an embedded checkpoint.

    Raises `InputError` with the nearest names if there is no such checkpoint or LoRA.
    """
    files = {file.stem: file for file in (checkpoint_path(name) / "loras").glob("*.safetensors")}
    if lora not in files:
        raise unknown(f"LoRA of {name}", lora, sorted(files))
    return files[lora]


def noise_model_path(name: str, noise_model: str = "guidance") -> Path:
    """Return the file of a noise model that comes with an embedded checkpoint.

    Raises `InputError` with the nearest names if there is no such checkpoint or noise model.
    """
    folder = checkpoint_path(name) / "noise_models"
    files = {file.stem: file for file in folder.glob("*.safetensors")}
    if noise_model not in files:
        raise unknown(f"noise model of {name}", noise_model, sorted(files))
    return files[noise_model]


def judge_path(name: str = "shapes-clip") -> Path:
    """Return the folder of an embedded judge: a stock open_clip folder.

    `open_clip.create_model_and_transforms(f"local-dir:{folder}")` reads it. Raises `InputError`
    with the nearest names if there is none of this name.
    """
    names = sorted(file.parent.name for file in _CHECKPOINTS.glob("*/open_clip_config.json"))
    if name not in names:
        raise unknown("embedded judge", name, names)
    return _CHECKPOINTS / name
