"""Undoing what was changed for a while: all of it, the last change first, whatever happens.

An exception, or Ctrl-C, may come between any two changes and while they are undone. So what undoes
a change is noted *before* the change is made, and undoing goes on when a part of it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

Value = tuple[dict[Any, Any], Any, Any]
"""(a dictionary, such as an object's `__dict__`; a key that it has; the value it shall have)."""


class Undo:
    """What undoes the changes made so far; calling it undoes them, and calling it again nothing.

    What is noted is called once, or once more if an interrupt came in the middle of it; it must
    allow that, as giving back a value does.

    Example:
        >>> settings = {"scale": 1.0}
        >>> undo = Undo()
        >>> undo.assign([(settings, "scale", -1.5)])
        >>> undo()
        >>> settings
        {'scale': 1.0}
    """

    add: Callable[[Callable[[], None] | None], None]
    """Note what undoes the change that is about to be made, or was made by the call that returned
    it; None: nothing has to."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], None] | None] = []
        # The list's own method: between a call that returns what undoes it and the note of that,
        # a function of ours would be one more place for an interrupt.
        self.add = self._steps.append

    def assign(self, values: Iterable[Value]) -> None:
        """Put values into dictionaries; undone, they hold what they held."""
        values = list(values)
        self.add(partial(_assign, [(owner, key, owner[key]) for owner, key, _ in values]))
        _assign(values)

    def __call__(self, error: BaseException | None = None) -> None:
        """Undo everything.

        Args:
            error: what went wrong already and is going to be raised by the caller; None if nothing.

        Raises:
            BaseException: the first of what failed while undoing, if nothing had gone wrong before,
                or an interrupt that came meanwhile. All other failures are notes on what is raised.
        """
        failures: list[BaseException] = []
        interrupted = None  # the step that an interrupt came into
        while self._steps:
            step = self._steps[-1]
            try:
                if step is not None:
                    step()
                self._steps.pop()
            except BaseException as failure:
                failures.append(failure)
                once_more = not isinstance(failure, Exception) and interrupted is not step
                interrupted = step
                if not once_more and self._steps and self._steps[-1] is step:
                    self._steps.pop()
        everything = [*([] if error is None else [error]), *failures]
        if not everything:
            return
        # A Ctrl-C is what has to arrive, whatever else went wrong.
        first = min(everything, key=lambda one: isinstance(one, Exception))
        for other in failures:
            if other is not first:
                first.add_note(f"Undoing what a role had changed also failed: {other!r}")
                for note in getattr(other, "__notes__", ()):
                    first.add_note(note)
        if first is not error:
            raise first


def undone_by(change: Callable[[Undo], None]) -> Undo:
    """Make changes, all or none: where one fails, those before it are undone.

    Args:
        change: makes them, and notes in its argument what undoes each.

    Returns:
        What undoes them.
    """
    undo = Undo()
    try:
        change(undo)
        return undo
    except BaseException as error:
        undo(error)
        raise


def assigned(values: Iterable[Value]) -> Undo:
    """Put values into dictionaries, all or none; what is returned gives back what was there."""
    values = list(values)
    return undone_by(lambda undo: undo.assign(values))


def _assign(values: Iterable[Value]) -> None:
    for owner, key, value in values:
        owner[key] = value
