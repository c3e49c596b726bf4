"""What a published `.pth` of PixArt holds: weights, perhaps their average, and our own remarks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from w2sdiff.errors import InputError
from w2sdiff.pickles import load_pickle, tensors_of

__all__ = ["ABOUT", "Weights", "read_weights"]

ABOUT = "w2sdiff"  # beside the weights: JSON with what weights alone do not say
_EMA = "state_dict_ema"


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
    found = load_pickle(path)
    about = found.get(ABOUT, "{}") if isinstance(found, Mapping) else "{}"
    if ema:
        if not isinstance(found, Mapping) or _EMA not in found:
            there = ", ".join(map(str, list(found)[:4])) if isinstance(found, Mapping) else "none"
            raise InputError(
                f"{path.name} holds no running average ({_EMA}); at its top are: {there}. "
                "Read the weights themselves, without ema."
            )
        found = found[_EMA]
    return Weights(
        tensors_of(found, path.name), json.loads(about) if isinstance(about, str) else {}
    )
