"""`Lora(name, scale)`: another weight of a loaded LoRA adapter for one role."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2sdiff.edits.base import EDITS, Context, Edit
from w2sdiff.edits.guidance import number
from w2sdiff.edits.undo import Value, assigned
from w2sdiff.errors import InputError, UnsupportedError
from w2sdiff.forms import text
from w2sdiff.jobs import weights_sha256

if TYPE_CHECKING:
    from torch import nn


@EDITS.register
@dataclass(frozen=True)
class Lora(Edit):
    """lora:NAME=W           adapter NAME, loaded in the pipeline, at weight W (negative allowed).

    `set_adapters` walks the whole network (20 ms at SDXL size); this assigns cached per-layer
    values instead (hundredths of a millisecond) and puts back exactly what was there. Other
    adapters stay as they are.

    Args:
        name: the adapter's name, as in `pipe.load_lora_weights(file, adapter_name=name)`, or in
            `load_lora` for pipelines without it (PixArt, HunyuanDiT, DiT).
        scale: its weight in this role, as in `pipe.set_adapters(name, scale)`; any finite number.
        sha256: hash of the adapter's file, needed for the JSON form only; `Lora.of_file` computes
            it.

    Cost: no evaluation.

    Raises:
        InputError: the scale is not a finite number.
        UnsupportedError: while running, if the adapter is not loaded or is fused.

    Example:
        >>> Lora("dpo", -1.5).scale
        -1.5
    """

    kind = "lora"
    changes_weights = True
    name: str
    scale: float
    sha256: str | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        text(self.name, "The name of a LoRA")
        if self.sha256 is not None:
            text(self.sha256, "The sha256 of a LoRA")
        object.__setattr__(self, "scale", number(self.scale, f"weight of LoRA {self.name!r}"))

    @classmethod
    def of_file(cls, name: str, scale: float, file: str | Path) -> Lora:
        """The same, with the hash of the file the adapter was loaded from."""
        return cls(name, scale, weights_sha256(Path(file)))

    @classmethod
    def from_text(cls, argument: str | None, value: str) -> Lora:
        """`lora:dpo=-1.5`."""
        if not argument:
            raise InputError(
                f"Write lora:NAME=W with the adapter's name, for example lora:dpo={value}."
            )
        return cls(argument, number(value, f"weight of LoRA {argument!r}"))

    def to_json(self) -> dict[str, Any]:
        """Name, scale and hash; a name alone does not say which weights ran."""
        if self.sha256 is None:
            raise InputError(
                f"{self} has no JSON form: its file is not known. "
                f"Use Lora.of_file({self.name!r}, {self.scale:g}, FILE)."
            )
        return super().to_json()

    def enter(self, context: Context) -> Callable[[], None]:
        """Assign the role's scalings; the returned function assigns the old ones."""
        denoisers = [context.pipe.__dict__[name] for name in context.denoisers]
        key = ("lora", self, *map(id, denoisers))
        switches: list[Value] = context.remember_in_call(key, lambda: self._switches(denoisers))
        return assigned(switches)

    def _switches(self, denoisers: list[nn.Module]) -> list[Value]:
        """What of the layers differs in the role: in their scalings, and in their `__dict__`."""
        every = [layer for denoiser in denoisers for layer in lora_layers(denoiser)]
        layers = [layer for layer in every if self.name in layer.scaling]
        if not layers:
            loaded = sorted({name for layer in every for name in layer.scaling})
            raise UnsupportedError(
                f"No LoRA called {self.name!r} is loaded in the denoiser "
                f"(loaded: {', '.join(loaded) or 'none'}). "
                f"Load it first: pipe.load_lora_weights(FILE, adapter_name={self.name!r}), or "
                "w2sdiff.load_lora where a pipeline has no such method; "
                f"on the command line: --lora {self.name}=FILE."
            )
        if any(layer.merged for layer in layers):
            raise UnsupportedError(
                f"The LoRA {self.name!r} is fused into the weights "
                "and cannot change between passes. "
                "Call pipe.unfuse_lora() first."
            )
        return [switch for layer in layers for switch in self._of_layer(layer)]

    def _of_layer(self, layer: Any) -> list[Value]:
        called = layer.scaling[self.name]
        # PEFT's own rule: alpha / r, or alpha / sqrt(r) for rsLoRA.
        layer.set_scale(self.name, self.scale)
        role = layer.scaling[self.name]
        layer.scaling[self.name] = called
        switches: list[Value] = [(layer.scaling, self.name, role)]
        # Switched off by the user as a whole, or not among the active ones: both are plain
        # attributes of the layer.
        state = layer.__dict__
        active = layer.active_adapters
        if layer.disable_adapters:
            switches.append((state, "_disable_adapters", False))
            switches.append((state, "_active_adapter", [self.name]))
        elif self.name not in active:
            switches.append((state, "_active_adapter", [*active, self.name]))
        return switches


def lora_layers(module: nn.Module) -> list[Any]:
    """LoRA layers of a network, in order; none where PEFT is not in use."""
    if not getattr(module, "peft_config", None):
        return []
    from peft.tuners.lora import LoraLayer

    return [layer for layer in module.modules() if isinstance(layer, LoraLayer)]
