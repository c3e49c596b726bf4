"""Two branches in one call: take a batch apart and put it together again.

Most pipelines hand their network one tensor [2 B, C, ...] with both branches of guidance in it, and
everything that goes with an item has 2 B entries on its first axis. What does otherwise:

* HiDream-I1's Llama states are [layers, 2 B, ...], AnimateDiff's words [2 B F, ...]: a family says
  so in its `axes`;
* Z-Image's network takes and gives *lists* of 2 B tensors [C, F, H, W].
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

Axes = Mapping[str, int | None]


def count(sample: Any) -> int:
    """Items in what the network gets as its sample: a tensor's first axis, or a list's length."""
    return len(sample) if isinstance(sample, list | tuple) else int(sample.shape[0])


def stacked(sample: Any) -> torch.Tensor:
    """A list of items as one tensor; a tensor as it is."""
    return torch.stack(list(sample)) if isinstance(sample, list | tuple) else sample


def half(
    value: Any, index: int, batch: int, *, lists: bool = False, parts: int = 2, taken: int = 1
) -> Any:
    """One branch of each batched value in nested arguments (ControlNet residuals, masks, ...).

    Args:
        value: an argument of the network.
        index: 0 or 1, the first or the second half (or third).
        batch: 2 B. A tensor with that many entries on its first axis is batched, others are not.
        lists: the sample is a list of items, and so is every list of that length.
        parts: what the batch consists of; 3 with a perturbed branch beside the two.
        taken: how many of them, from `index` on.
    """
    if torch.is_tensor(value):
        batched = value.dim() > 0 and value.shape[0] == batch
        return _along(value, 0, index, parts, taken) if batched else value
    again = partial(half, index=index, batch=batch, lists=lists, parts=parts, taken=taken)
    if isinstance(value, dict):
        return {key: again(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        if lists and len(value) == batch:
            size = batch // parts
            return value[index * size : (index + taken) * size]
        return type(value)(again(item) for item in value)
    return value


def half_of_call(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    index: int,
    sample: Any,
    axes: Axes,
    *,
    parts: int = 2,
    taken: int = 1,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`half` of all arguments of a call; those in `axes` are split there, or not at all (None)."""
    lists = isinstance(sample, list | tuple)
    part = partial(half, index=index, batch=count(sample), lists=lists, parts=parts, taken=taken)
    named = {
        name: _along(value, axes[name], index, parts, taken) if name in axes else part(value)
        for name, value in kwargs.items()
    }
    return tuple(map(part, args)), named


def _along(value: Any, axis: int | None, index: int, parts: int, taken: int) -> Any:
    if axis is None:
        return value
    if torch.is_tensor(value):
        size = value.shape[axis] // parts
        return value.narrow(axis, index * size, taken * size)
    if isinstance(value, list | tuple):
        return type(value)(_along(item, axis, index, parts, taken) for item in value)
    return value


def tensor_of(output: Any) -> torch.Tensor:
    """The prediction [2 B, ...] in what a network returned: a tuple or a dataclass."""
    return stacked(output[0] if isinstance(output, tuple) else output.sample)


def with_tensor(output: Any, tensor: torch.Tensor) -> Any:
    """The same form as `output` with another prediction in it."""
    found = output[0] if isinstance(output, tuple) else output.sample
    value = list(tensor.unbind()) if isinstance(found, list) else tensor
    if isinstance(output, tuple):
        return (value, *output[1:])
    return type(output)(**{**output, "sample": value})
