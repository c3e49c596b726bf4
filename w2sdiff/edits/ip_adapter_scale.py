"""`IPAdapterScale(scale)`: another strength of the image prompt for one role."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from w2sdiff.edits.base import EDITS, Context, Edit
from w2sdiff.edits.scales import Scales, one_each, scales, scales_of_text
from w2sdiff.edits.undo import Value, assigned
from w2sdiff.errors import InputError, UnsupportedError


@EDITS.register
@dataclass(frozen=True)
class IPAdapterScale(Edit):
    """ip-adapter-scale=X     IP-Adapter at this scale; X+Y: one for each of several.

    The pipeline pair of W2SD (Bai et al. 2025, arXiv 2502.00473, figure 17), for image prompts.
    In the role it is as after `pipe.set_ip_adapter_scale(X)`, the same in all layers; scales per
    layer that the user has set are there again when another role speaks.

    Args:
        scale: any finite number, or one for each IP-Adapter. At 0 the image prompt is not attended
            to at all.

    Cost: no evaluation.

    Raises:
        InputError: a scale is not a finite number.
        UnsupportedError: while running, if no IP-Adapter is loaded, or another number of them than
            scales.

    Example:
        >>> from w2sdiff import W2SD
        >>> W2SD(weak=IPAdapterScale(0.3)).weak
        IPAdapterScale(scale=0.3)
    """

    kind = "ip-adapter-scale"
    scale: Scales

    def __post_init__(self) -> None:
        """Check the scale."""
        object.__setattr__(self, "scale", scales(self.scale, "IP-Adapter scale"))

    @classmethod
    def from_text(cls, argument: str | None, value: str) -> IPAdapterScale:
        """`ip-adapter-scale=0.3`, `ip-adapter-scale=0.3+0`."""
        if argument is not None:
            raise InputError(
                f"Write ip-adapter-scale=X; 'ip-adapter-scale:{argument}' means nothing."
            )
        return cls(scales_of_text(value, "IP-Adapter scale"))

    def enter(self, context: Context) -> Callable[[], None]:
        """Give the attention processors this scale; the returned function gives theirs back."""
        denoisers = [context.pipe.__dict__[name] for name in context.denoisers]
        key = ("ip-adapter-scale", self, *map(id, denoisers))
        # A callback may change scales between steps, so only where they sit is remembered.
        owners = context.remember_in_call(key, lambda: ip_adapters(denoisers))
        if not owners:
            raise UnsupportedError(
                "No IP-Adapter is loaded in the denoiser. Load it first: "
                "pipe.load_ip_adapter(...), and call the pipeline with ip_adapter_image=..."
            )
        return assigned(self._of(processor.__dict__) for processor in owners)

    def _of(self, state: dict[str, Any]) -> Value:
        called = state["scale"]
        if isinstance(called, list):
            return state, "scale", one_each(self.scale, len(called), "IP-Adapters")
        return state, "scale", one_each(self.scale, 1, "IP-Adapter")[0]  # SD3 has room for one


def ip_adapters(denoisers: list[Any]) -> list[Any]:
    """Attention processors of IP-Adapters, told by the keys they make of the image."""
    return [
        processor
        for denoiser in denoisers
        for processor in getattr(denoiser, "attn_processors", {}).values()
        if hasattr(processor, "to_k_ip") and "scale" in processor.__dict__
    ]
