"""Ctrl-C: once to finish what is in hand, twice to stop at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["Interrupt"]


class Interrupt:
    """While entered, the first SIGINT or SIGTERM only sets it; the second stops the program.

    Example:
        >>> with Interrupt(lambda: None) as interrupt:
        ...     interrupt()
        False
    """

    def __init__(self, on_first: Callable[[], None]) -> None:
        self._on_first = on_first
        self._set = False
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether someone wants to stop."""
        return self._set

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # elsewhere signals never arrive
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, _number: int, _frame: FrameType | None) -> None:
        if self._set:
            raise KeyboardInterrupt
        self._set = True
        self._on_first()
