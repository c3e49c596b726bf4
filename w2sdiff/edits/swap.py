"""Another `__call__` for a module while a role speaks: its class is swapped, as the taps do.

Hooks of accelerate and diffusers sit on `forward`, compiled modules behind `__call__`: neither
notices, and both are there again when the class is given back. Classes are made once per class and
function, so that `torch.compile` sees the same ones whenever a role comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from threading import get_ident
from types import MethodType
from typing import TYPE_CHECKING, Any

from w2sdiff.edits.undo import Undo, undone_by

if TYPE_CHECKING:
    from torch import nn

THREAD = "_w2sdiff_thread"

Answer = Callable[..., Any]
"""(the module's own call, the module, *args, **kwargs) -> what the caller gets."""


def swap(
    modules: Iterable[nn.Module], answer: Answer, *, in_this_thread: bool = False
) -> Callable[[], None]:
    """Let `answer` answer for the modules; the returned function undoes it.

    Args:
        modules: each is swapped once, however often it is listed.
        answer: one object per behaviour, not a new one at every call: see above.
        in_this_thread: what other threads call meanwhile answers as ever. For modules that a
            pipeline calls itself; those inside of its denoiser are not called by two threads at
            once, and may be compiled.
    """
    return undone_by(swapping(modules, answer, in_this_thread=in_this_thread))


def swapping(
    modules: Iterable[nn.Module], answer: Answer, *, in_this_thread: bool = False
) -> Callable[[Undo], None]:
    """The change that `swap` makes, for whoever makes several that are undone together."""
    found = list({id(module): module for module in modules}.values())
    called: list[type] = [type(module) for module in found]
    make = _answering_here if in_this_thread else _answering

    def change(undo: Undo) -> None:
        for module, cls in zip(found, called, strict=True):
            undo.add(partial(_set_class, module, cls))
            if in_this_thread:
                undo.add(partial(module.__dict__.pop, THREAD, None))
                module.__dict__[THREAD] = get_ident()
            _set_class(module, make(cls, answer))

    return change


def _set_class(module: nn.Module, cls: type) -> None:
    # object.__setattr__: torch.compile's wrapper forwards ordinary attributes to the module inside.
    object.__setattr__(module, "__class__", cls)


@cache
def _answering(cls: type, answer: Answer) -> Any:
    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        return answer(super(answering, self).__call__, self, *args, **kwargs)

    answering = _subclass(cls, __call__)
    return answering


@cache
def _answering_here(cls: Any, answer: Answer) -> Any:
    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        # Not by super(): the module may have its class back by now, if this is another thread.
        call = MethodType(cls.__call__, self)
        if self.__dict__.get(THREAD) != get_ident():
            return call(*args, **kwargs)
        return answer(call, self, *args, **kwargs)

    return _subclass(cls, __call__)


def _subclass(cls: type, call: Callable[..., Any]) -> Any:
    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(cls.__name__, (cls,), {**names, "__call__": call})
