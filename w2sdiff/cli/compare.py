"""`w2sdiff compare`."""

from __future__ import annotations

from w2sdiff.errors import UnsupportedError

__all__ = ["compare"]


def compare() -> None:
    """Compare two scored folders or two arms of a run."""
    raise UnsupportedError("compare is being built")
