"""`w2sdiff score`."""

from __future__ import annotations

from w2sdiff.errors import UnsupportedError

__all__ = ["score"]


def score() -> None:
    """Score a folder of pictures."""
    raise UnsupportedError("score is being built")
