"""Published settings by name, each with its source, so that nobody has to look them up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from w2sdiff.registry import unknown

__all__ = ["PRESETS", "Preset", "preset"]


@dataclass(frozen=True)
class Preset:
    """A method with its options, and the settings it was published with.

    Attributes:
        method: a name of `METHODS`.
        options: of the method, as `choose_method` takes them.
        settings: of `Settings`: steps, guidance, scheduler.
        model: what it was published for.
        source: where the numbers come from.
        needs: what has to be there besides the model; "" for nothing.
    """

    method: str
    model: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""


_SDXL, _SD35 = "Stable Diffusion XL", "Stable Diffusion 3.5 Large"
_CORE2 = "arXiv 2503.09662 and its authors' code (xie-lab-ml/CoRe)"
_NEEDS = "a published noise model (.pth), read by `w2sdiff core2 convert`, as --noise-model"
_DDIM = {"steps": 50, "guidance": 5.5, "scheduler": "ddim"}
_FLOW = {"steps": 28, "guidance": 3.5}

PRESETS: dict[str, Preset] = {
    # Slow nearly to the end, as the script's comment recommends: all steps but two.
    "core2/sdxl": Preset(
        *("core2", _SDXL, _CORE2),
        {"scale": 1.5, "slow_until": 0.96, "reference": True},
        *(_DDIM, _NEEDS),
    ),
    "core2/sdxl-fast": Preset(
        *("core2", _SDXL, _CORE2),
        {"slow_until": 0.0, "reference": True},
        *(_DDIM, _NEEDS),
    ),
    "core2/sd35": Preset(
        *("core2", _SD35, _CORE2),
        {"scale": 1.5, "slow_until": 0.93, "reference": True},
        *(_FLOW, _NEEDS),
    ),
    "core2/sd35-fast": Preset(
        *("core2", _SD35, _CORE2),
        {"slow_until": 0.0, "reference": True},
        *(_FLOW, _NEEDS),
    ),
    "zcore2/sdxl": Preset(
        *("zcore2", _SDXL, _CORE2),
        {"scale": 1.5, "inversion": "reference", "reference": True},
        *(_DDIM, _NEEDS),
    ),
    # The published code has 3.5 in the last leg, whatever it is called with.
    "zcore2/sd35": Preset(
        *("zcore2", _SD35, _CORE2),
        {"scale": 1.5, "real_scale": 3.5, "inversion": "reference", "reference": True},
        *(_FLOW, _NEEDS),
    ),
}


def preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
        InputError: there is none; says the nearest.

    Example:
        >>> preset("core2/sdxl").settings["guidance"]
        5.5
    """
    if name not in PRESETS:
        raise unknown("preset", name, sorted(PRESETS))
    return PRESETS[name]
