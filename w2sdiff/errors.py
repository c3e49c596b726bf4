"""The errors that w2sdiff raises on purpose."""

from __future__ import annotations

__all__ = ["InputError", "UnsupportedError", "W2SDiffError"]


class W2SDiffError(Exception):
    """Base class of every error that w2sdiff raises on purpose."""


class InputError(W2SDiffError, ValueError):
    """The user's input is wrong; the message says what was expected and what came."""


class UnsupportedError(W2SDiffError):
    """The pipeline, scheduler or adapter at hand cannot do what was asked."""
