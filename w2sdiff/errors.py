"""The exceptions of w2sdiff.

    W2SDiffError
    +-- InputError (also a ValueError)  what the user asked for is wrong; says what was expected
    +-- UnsupportedError                this pipeline, scheduler or adapter cannot do what was asked

The command line prints either as one line and leaves with exit code 2.
"""

from __future__ import annotations


class W2SDiffError(Exception):
    """Base of every exception that w2sdiff raises on purpose."""


class InputError(W2SDiffError, ValueError):
    """The user's value is wrong: the message says what was expected, what came, what to do."""


class UnsupportedError(W2SDiffError):
    """The request is sound but this pipeline, scheduler or adapter cannot carry it out."""
