"""Optimisers by name, from well-kept libraries."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from torch import nn

from w2sdiff.errors import InputError
from w2sdiff.registry import unknown

__all__ = ["OPTIMISERS", "build_optimiser", "check_optimiser"]

# Name -> module, class, what to install, arguments that make the learning rate ours.
OPTIMISERS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "adamw": ("torch.optim", "AdamW", "torch", {"betas": (0.9, 0.99)}),
    "adafactor": (
        "transformers.optimization",
        "Adafactor",
        "transformers",
        {"scale_parameter": False, "relative_step": False, "warmup_init": False},
    ),
    "came": ("came_pytorch", "CAME", "came-pytorch", {}),  # the published choice
    "prodigy": ("prodigyopt", "Prodigy", "prodigyopt", {}),  # takes a learning rate near 1
    "adamw8bit": ("bitsandbytes.optim", "AdamW8bit", "bitsandbytes", {}),
}


def check_optimiser(name: str) -> None:
    """Find out whether an optimiser is there, before anything is loaded.

    Raises:
        InputError: an unknown name, or a library that is not installed; says which.
    """
    _class(name)


def build_optimiser(
    name: str, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float
) -> Any:
    """The optimiser of this name.

    Raises:
        InputError: as `check_optimiser`.
    """
    options = OPTIMISERS[name][3] if name in OPTIMISERS else {}
    return _class(name)(list(parameters), lr=lr, weight_decay=weight_decay, **options)


def _class(name: str) -> Any:
    if name not in OPTIMISERS:
        raise unknown("optimiser", name, sorted(OPTIMISERS))
    module, cls, package, _ = OPTIMISERS[name]
    try:
        return getattr(importlib.import_module(module), cls)
    except ImportError:
        raise InputError(
            f"The optimiser {name!r} needs {package}, which is not installed here: "
            f"pip install {package}, or take adamw or adafactor."
        ) from None
