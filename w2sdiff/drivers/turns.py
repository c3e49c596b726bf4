"""Turns: threads whose pipelines share a network, or a scheduler, use it one after the other.

`from_pipe`, and a pipeline made of another's components, share networks. A role changes its network
in place (a LoRA's weight, a processor, a class), so from the moment its edits are entered until
they are undone the network is one thread's: whoever else wants it waits, for one evaluation. That
goes for a stock pipeline too, see `taps`. A scheduler counts the steps of one call, so it is one
thread's for the whole call.

No two threads can wait for each other: the networks of a role are taken all at once, and a thread
that holds networks, or the scheduler of a call, waits for no more of the kind. Where it would have
to (a pipeline called inside of another's network), it is refused.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Condition, RLock, get_ident
from typing import Any

from torch import nn

from w2sdiff.errors import InputError

# One lock for all, held for microseconds. Not as `with _changed`: that runs Python on its way out,
# where Ctrl-C may come in before it has let go.
_lock = RLock()
_changed = Condition(_lock)
_CALL: Any = nn.Module.__call__.__code__


class Turns:
    """Who uses which things of one kind.

    Args:
        what: the kind, for messages.
        under: a thread that holds something of this kind never waits for the other one either.
    """

    def __init__(self, what: str, under: Turns | None = None) -> None:
        self._what = what
        self._under = under
        self._owners: dict[int, int] = {}  # id -> thread; whoever holds a thing keeps it alive

    def is_mine(self, thing: Any) -> bool:
        """Whether this thread holds it."""
        return self._owners.get(key_of(thing)) == get_ident()

    def take(self, things: Iterable[Any]) -> None:
        """Wait until all of the things are free or this thread's already, and hold them.

        Raises:
            InputError: another thread holds one of them, and this one holds something else.
        """
        thread, keys = get_ident(), {key_of(thing) for thing in things}
        with _lock:
            while any(self._owners.get(key, thread) != thread for key in keys):
                if self._is_held_by(thread):
                    raise InputError(
                        f"Another thread is using this {self._what}, and to wait for it here could "
                        "be for ever: this pipeline was called while another one, of the same "
                        "thread, was in the middle of its call. Call it afterwards."
                    )
                _changed.wait()
            self._owners.update(dict.fromkeys(keys, thread))

    def give_back(self, things: Iterable[Any]) -> None:
        """Let others have the things; what is not this thread's is left alone."""
        thread = get_ident()
        with _lock:
            for key in map(key_of, things):
                if self._owners.get(key) == thread:
                    del self._owners[key]
            _changed.notify_all()

    @contextmanager
    def turn(self, thing: Any) -> Iterator[None]:
        """Hold one thing meanwhile."""
        if self.is_mine(thing):
            yield
            return
        try:
            self.take([thing])
            yield
        finally:
            self.give_back([thing])

    def _is_held_by(self, thread: int) -> bool:
        below = self._under is not None and self._under._is_held_by(thread)
        return below or thread in self._owners.values()


NETWORKS = Turns("network")
SCHEDULERS = Turns("scheduler", under=NETWORKS)


def key_of(thing: Any) -> int:
    """What stands for a network or a scheduler: compiled or not, a network is the same one."""
    return id(getattr(thing, "_orig_mod", thing))


def wait_for_calls(module: nn.Module) -> None:
    """Wait until no other thread is inside of a call of the module."""
    while _is_called(module):
        time.sleep(1e-3)


def _is_called(module: nn.Module) -> bool:
    key = key_of(module)
    for thread, top in sys._current_frames().items():
        frame: Any = None if thread == get_ident() else top
        while frame is not None:
            if frame.f_code is _CALL and key_of(frame.f_locals.get("self")) == key:
                return True
            frame = frame.f_back
    return False
