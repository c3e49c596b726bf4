"""accelerate's `Accelerator`, as every training here makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from w2sdiff.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["accelerator_of"]


def accelerator_of(precision: str) -> Accelerator:
    """An accelerator for this process; trainings add up the parts of a batch themselves.

    Args:
        precision: "no", "bf16" or "fp16".

    Raises:
        InputError: this machine does not have the precision.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # accelerate (1.x) keeps one state per process, which refuses another precision than an
    # earlier training's. A state of this precision, the caller's own perhaps, stays as it is.
    known = AcceleratorState._shared_state.get("_mixed_precision", precision)
    if known != precision:
        AcceleratorState._reset_state()
    try:
        return Accelerator(
            mixed_precision=precision,
            gradient_accumulation_steps=1,
            cpu=not torch.cuda.is_available(),
        )
    except ValueError as error:
        raise InputError(f"--precision {precision}: {error}") from error
