"""Reading the weights of somebody else's `.pth`: tensors and plain values, no code."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2sdiff.errors import InputError

__all__ = ["ABOUT", "Weights", "read_weights"]

ABOUT = "w2sdiff"  # beside the weights: JSON with what weights alone do not say
_EMA = "state_dict_ema"
_WRAPPERS = ("state_dict", "model", "module")
_PREFIXES = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile prepend


@dataclass(frozen=True)
class Weights:
    """What a checkpoint holds.

    Attributes:
        state: the tensors by name.
        about: what our own files say beside them; nothing in others.
    """

    state: dict[str, Tensor]
    about: Mapping[str, Any]


def read_weights(path: Path, *, ema: bool = False) -> Weights:
    """Read a checkpoint of torch: a dictionary of tensors, perhaps in dictionaries of a training.

    Args:
        path: the file.
        ema: the running average under "state_dict_ema" instead of the weights themselves.

    Raises:
        InputError: no such file, damaged, or with code in it, which is not run; no dictionary of
            tensors, or no average.
    """
    found = _load(path)
    about = found.get(ABOUT, "{}") if isinstance(found, Mapping) else "{}"
    if ema:
        if not isinstance(found, Mapping) or _EMA not in found:
            there = ", ".join(map(str, list(found)[:4])) if isinstance(found, Mapping) else "none"
            raise InputError(
                f"{path.name} holds no running average ({_EMA}); at its top are: {there}. "
                "Read the weights themselves, without ema."
            )
        found = found[_EMA]
    return Weights(_unwrap(found, path.name), json.loads(about) if isinstance(about, str) else {})


def _load(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"Expected a published checkpoint, and there is no file {path}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code or "function" in str(error):
            what = f" ({code[1]})" if code else ""
            raise InputError(
                f"{path.name} contains code{what} and is not loaded. Expected a dictionary of "
                "tensors; ask whoever made it for the model's state_dict()."
            ) from error
        raise InputError(f"{path.name} is damaged or no checkpoint: {_first(error)}.") from error
    # Damaged bytes raise whatever the place they are in leads to.
    except Exception as error:
        raise InputError(
            f"{path.name} is damaged, cut off or no checkpoint: {_first(error)}."
        ) from error


def _unwrap(state: Any, name: str) -> dict[str, Tensor]:
    while isinstance(state, Mapping):
        inner = next((state[w] for w in _WRAPPERS if isinstance(state.get(w), Mapping)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{name} holds no dictionary of tensors.")
    wrong = [str(key) for key, value in state.items() if not _is_weight(key, value)]
    if wrong:
        raise InputError(f"{name} holds other things than weights: {', '.join(wrong[:3])}.")
    tensors = dict(state)
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _is_weight(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor) and value.dtype.is_floating_point


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
