"""`Watch`: what a run tells whoever waits for it."""

from __future__ import annotations

from w2sdiff.jobs import Event

__all__ = ["Watch"]


class Watch:
    """Told what a run does, so that a program can show it; by itself it keeps silent.

    Every method may be overridden, none has to be.
    """

    def phase(self, name: str, total: int) -> None:
        """A phase begins: "measuring", "drawing", "choosing", "scoring", "reporting".

        `total` counts what `event` will tell of, 0 where that is not known.
        """

    def event(self, event: Event) -> None:
        """An item of the phase was found, made, or failed."""

    def step(self, done: int, total: int) -> None:
        """So many denoising steps of the batch in hand are done."""

    def note(self, text: str) -> None:
        """Something worth knowing: a rival that was left out, and why."""

    def stopping(self) -> bool:
        """Asked before each batch; once it says yes, the run ends after the one in hand."""
        return False
