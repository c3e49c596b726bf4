"""Another `__call__` for a module while a role speaks: its class is swapped, as the taps do.

Hooks of accelerate and diffusers sit on `forward`, compiled modules behind `__call__`: neither
notices, and both are there again when the class is given back. Classes are made once per class and
function, so that `torch.compile` sees the same ones whenever a role comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

Answer = Callable[..., Any]
"""(the module's own call, the module, *args, **kwargs) -> what the caller gets."""


def swap(modules: Iterable[nn.Module], answer: Answer) -> Callable[[], None]:
    """Let `answer` answer for the modules; the returned function undoes it.

    Args:
        modules: each is swapped once, however often it is listed.
        answer: one object per behaviour, not a new one at every call: see above.
    """
    found = list({id(module): module for module in modules}.values())
    called: list[type] = [type(module) for module in found]
    for module, cls in zip(found, called, strict=True):
        _set_class(module, _answering(cls, answer))

    def leave() -> None:
        for module, cls in zip(found, called, strict=True):
            _set_class(module, cls)

    return leave


def _set_class(module: nn.Module, cls: type) -> None:
    # object.__setattr__: torch.compile's wrapper forwards ordinary attributes to the module inside.
    object.__setattr__(module, "__class__", cls)


@cache
def _answering(cls: type, answer: Answer) -> Any:
    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        return answer(super(answering, self).__call__, self, *args, **kwargs)

    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    answering: Any = type(cls.__name__, (cls,), {**names, "__call__": __call__})
    return answering
