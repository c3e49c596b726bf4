"""w2sdiff: diffusion sampling with weak-to-strong guidance on stock diffusers pipelines.

Names are loaded when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from w2sdiff import shapes
    from w2sdiff.drivers.attach import attach
    from w2sdiff.edits import (
        Checkpoint,
        CompressedKV,
        ControlScale,
        EmbeddedGuidance,
        Experts,
        Guidance,
        IPAdapterScale,
        LearnedGuidance,
        Lora,
        NoControl,
        Prompt,
        SkipLayers,
        load_lora,
    )
    from w2sdiff.errors import InputError, UnsupportedError, W2SDiffError
    from w2sdiff.generate import preset
    from w2sdiff.methods import (
        W2SD,
        AutoGuidance,
        Core2,
        Plain,
        StaleGuidance,
        Window,
        ZCore2,
        ZigZag,
    )

__version__ = "0.1.0"

__all__ = [
    "W2SD",
    "AutoGuidance",
    "Checkpoint",
    "CompressedKV",
    "ControlScale",
    "Core2",
    "EmbeddedGuidance",
    "Experts",
    "Guidance",
    "IPAdapterScale",
    "InputError",
    "LearnedGuidance",
    "Lora",
    "NoControl",
    "Plain",
    "Prompt",
    "SkipLayers",
    "StaleGuidance",
    "UnsupportedError",
    "W2SDiffError",
    "Window",
    "ZCore2",
    "ZigZag",
    "attach",
    "load_lora",
    "preset",
    "shapes",
]

_HOMES = {
    "w2sdiff.drivers": ("attach",),
    "w2sdiff.edits": (
        *("Checkpoint", "CompressedKV", "ControlScale", "EmbeddedGuidance", "Experts", "Guidance"),
        *("IPAdapterScale", "LearnedGuidance", "Lora", "NoControl", "Prompt", "SkipLayers"),
        "load_lora",
    ),
    "w2sdiff.errors": ("InputError", "UnsupportedError", "W2SDiffError"),
    "w2sdiff.generate": ("preset",),
    "w2sdiff.methods": (
        *("W2SD", "AutoGuidance", "Core2", "Plain", "StaleGuidance", "Window", "ZCore2", "ZigZag"),
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name == "shapes":
        return importlib.import_module("w2sdiff.shapes")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'w2sdiff' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
