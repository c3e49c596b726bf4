"""`w2sdiff verify`."""

from __future__ import annotations

from w2sdiff.errors import UnsupportedError

__all__ = ["verify"]


def verify() -> None:
    """Check the installed scorers against golden values."""
    raise UnsupportedError("verify is being built")
