"""CoRe2 (arXiv 2503.09662): collect predictions, reflect (train a noise model), refine with it.

The noise model lies on the ground floor of the package, so that edits and methods can wear it;
collecting and training stand above the drivers. Names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from w2sdiff.core2.noise_model import Given, NoiseModel, load_noise_model, save_noise_model

_HOMES = {
    "noise_model": ("Given", "NoiseModel", "load_noise_model", "save_noise_model"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["Given", "NoiseModel", "load_noise_model", "save_noise_model"]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
