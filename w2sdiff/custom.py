"""What the custom pipelines in `pipelines/` share.

The stock signature and docstring with `method`, and weights that `from_pipe` leaves as they are. No
base class that is a pipeline: diffusers finds a custom pipeline by scanning its module for the one
pipeline class that is not diffusers' own, so a second one must not be in sight.
"""

from __future__ import annotations

import inspect
import sys
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


class KeepsDtype:
    """A pipeline whose weights `from_pipe` shares without converting them.

    `from_pipe` ends with `.to(dtype=...)`, which is float32 where its caller named none (diffusers
    0.38 to 0.42): a pipeline in bfloat16 whose weights are shared would be converted in place, and
    take twice the memory. That one call is passed over. Another dtype that is named is obeyed;
    for float32 call `.to(torch.float32)` afterwards.
    """

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move or convert, as the stock pipeline does."""
        import torch
        from diffusers import DiffusionPipeline

        shared = DiffusionPipeline.from_pipe.__func__
        by_default = kwargs.get("dtype") is torch.float32
        if by_default and sys._getframe(1).f_code is shared.__code__:
            return self
        return super().to(*args, **kwargs)  # type: ignore[misc]
