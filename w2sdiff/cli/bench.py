"""`w2sdiff bench`."""

from __future__ import annotations

from w2sdiff.errors import UnsupportedError

__all__ = ["bench"]


def bench() -> None:
    """Run an experiment: draw, score, compare, report."""
    raise UnsupportedError("bench is being built")
