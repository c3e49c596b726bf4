"""What the custom pipelines in `pipelines/` share: the stock signature and docstring with `method`.

A function and no base class: diffusers finds a custom pipeline by scanning its module for the one
pipeline class that is not diffusers' own, so a second one must not be in sight.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Call = TypeVar("Call", bound=Callable[..., Any])

METHOD = inspect.Parameter("method", inspect.Parameter.KEYWORD_ONLY, default=None)
METHOD_DOC = """\
            method (`w2sdiff.methods.Method`, *optional*):
                How to sample, for example `W2SD(weak=Guidance(1.0))`. `None` is the stock pipeline.
                What the call has cost stands in `pipe.run_stats` afterwards.
"""


def takes_method(stock: type) -> Callable[[Call], Call]:
    """Give a `__call__` the signature and docstring of `stock.__call__`, with `method` added.

    Args:
        stock: the diffusers pipeline class that is extended.

    Example:
        >>> class Stock:
        ...     def __call__(self, prompt, steps=50, **kwargs): "Draw."
        >>> class Mine(Stock):
        ...     @takes_method(Stock)
        ...     def __call__(self, *args, method=None, **kwargs): ...
        >>> inspect.signature(Mine.__call__)
        <Signature (self, prompt, steps=50, *, method=None, **kwargs)>
    """
    call: Callable[..., Any] = stock.__call__
    signature = inspect.signature(call)
    parameters = list(signature.parameters.values())
    end = len(parameters)
    if parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        end -= 1
    parameters.insert(end, METHOD)

    def decorate(own: Call) -> Call:
        own.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        own.__doc__ = (call.__doc__ or "").replace("Args:\n", "Args:\n" + METHOD_DOC, 1)
        return own

    return decorate
