"""What was computed of a prompt, kept for the steps of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

__all__ = ["LastPrompt"]

R = TypeVar("R")


class _Seen(NamedTuple, Generic[R]):
    """Tensors, how they looked, and what came of them."""

    tensors: tuple[Tensor, ...]  # held, so that their addresses stay theirs
    looks: tuple[tuple[object, ...] | None, ...]
    copies: tuple[Tensor, ...]
    result: R


class LastPrompt(Generic[R]):
    """Remembers the last prompt, for every step of a run asks for the same one.

    The same memory, not written to since, is recognised without a look at its values; other memory
    with equal values (a new slice, a copy) by comparison, which waits for the device. One prompt is
    held, no more.
    """

    def __init__(self) -> None:
        self._seen: _Seen[R] | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> LastPrompt[R]:
        """Copies of a model start without a memory."""
        return LastPrompt()

    def __reduce__(self) -> tuple[type[LastPrompt[R]], tuple[()]]:
        """And so do pickles."""
        return LastPrompt, ()

    def get(self, tensors: Sequence[Tensor], compute: Callable[[], R]) -> R:
        """Return what was computed for equal tensors the last time, or compute it."""
        looks = tuple(_look(tensor) for tensor in tensors)
        seen = self._seen
        if seen is not None:
            if None not in looks and looks == seen.looks:
                return seen.result
            if _equal(tensors, seen.copies):
                self._seen = _Seen(tuple(tensors), looks, seen.copies, seen.result)
                return seen.result
        result = compute()
        copies = tuple(tensor.detach().clone() for tensor in tensors)
        self._seen = _Seen(tuple(tensors), looks, copies, result)
        return result


def _look(tensor: Tensor) -> tuple[object, ...] | None:
    """All that can be seen of a tensor without reading it; None where writes leave no trace."""
    if tensor.is_inference():
        return None
    where = (tensor.device, tensor.dtype, tensor.shape, tensor.stride())
    return (*where, tensor.data_ptr(), tensor._version)


def _equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(
        a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(some, others, strict=True)
    )
