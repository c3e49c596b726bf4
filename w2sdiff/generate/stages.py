"""Where memory and time of a picture go: loading, reading the prompt, denoising, decoding."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from w2sdiff.generate.memory import forget_most, most_and_now_mb

__all__ = ["Stage", "Stages"]


@dataclass(frozen=True)
class Stage:
    """One part of making a picture.

    Attributes:
        name: "loading", "prompt", "denoising" or "decoding".
        seconds: how long it took.
        most_mb: most memory in use meanwhile, in MB of 10^6 bytes: the accelerator's own, or on a
            CPU that of the whole process; None where nobody counts it.
        kept_mb: in use at its end.
        tokens: image tokens of a transformer's last call; None in other stages and networks.
    """

    name: str
    seconds: float
    most_mb: float | None
    kept_mb: float | None
    tokens: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        """For people."""
        parts = [] if self.tokens is None else [f"{self.tokens:,} image tokens"]
        if self.most_mb is not None and self.kept_mb is not None:
            parts.append(f"at most {self.most_mb / 1e3:.2f} GB, {self.kept_mb / 1e3:.2f} GB after")
        return f"{self.name}: {', '.join([*parts, f'{self.seconds:.1f} s'])}"


class Stages:
    """Follows a pipeline through its stages and tells about each when it is over.

    Args:
        device: where it computes.
        tell: told.
    """

    def __init__(self, device: str, tell: Callable[[Stage], None]) -> None:
        self._device, self._tell = device, tell
        self._tokens: int | None = None
        self.begin()

    def begin(self) -> None:
        """What follows is the next stage."""
        self._tokens = None
        forget_most(self._device)
        self._began = time.monotonic()

    def end(self, name: str) -> None:
        """The stage is over; the next one begins."""
        seconds = round(time.monotonic() - self._began, 3)
        self._tell(Stage(name, seconds, *most_and_now_mb(self._device), self._tokens))
        self.begin()

    def watch(self, denoiser: Any) -> None:
        """Count the image tokens that a transformer really sees; other networks have none."""
        from w2sdiff.attention import HOSTS, grids

        if type(denoiser).__name__ not in HOSTS:
            return

        def seen(network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._tokens = sum(f * h * w for f, h, w in grids(network, args, kwargs))

        denoiser.register_forward_pre_hook(seen, with_kwargs=True)
