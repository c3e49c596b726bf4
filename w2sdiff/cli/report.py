"""`w2sdiff report`."""

from __future__ import annotations

from w2sdiff.errors import UnsupportedError

__all__ = ["report"]


def report() -> None:
    """Write the pages and tables of a run."""
    raise UnsupportedError("report is being built")
