"""From published tensors to a model of a stock class: pick, count, fill."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from w2sdiff.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["count_layers", "filled", "part"]


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it.

    Raises:
        InputError: there is none.
    """
    found = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
    if not found:
        raise InputError(
            f"other weights than expected: no tensor is called {prefix}*; "
            f"the first of {len(state)} is {next(iter(state), 'nothing')!r}"
        )
    return found


def count_layers(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the highest number that group 1 of `pattern` finds at the start of a name.

    Raises:
        InputError: it finds none.
    """
    numbers = [int(found[1]) for key in tensors if (found := re.match(pattern, key))]
    if not numbers:
        raise InputError(f"other weights than expected: no tensor is called {pattern}")
    return 1 + max(numbers)


def filled(cls: Any, config: Any, tensors: Mapping[str, Tensor], **options: Any) -> Any:
    """The model `cls(config, **options)` with exactly these tensors in it, for inference.

    Nothing is drawn at random first, so a model of 16 GB takes 16 GB.

    Raises:
        InputError: a tensor is missing, one too many, or of another shape.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = cls(config, **options)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise InputError(f"these are not the weights of {cls.__name__}: {error}") from error
    return model.eval().requires_grad_(False)
