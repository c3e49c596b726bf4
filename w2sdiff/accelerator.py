"""accelerate's `Accelerator`, as every training here makes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from w2sdiff.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["accelerator_of", "load_scaler", "scaler_state"]


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
        accelerator = Accelerator(
            mixed_precision=precision,
            gradient_accumulation_steps=1,
            cpu=not torch.cuda.is_available(),
        )
        # accelerate 1.0 says so itself; later ones train in float32 without a word.
        if precision == "fp16" and accelerator.device.type == "cpu":
            raise ValueError("it needs CUDA, and the device is the CPU.")
    except ValueError as error:
        raise InputError(
            f"--precision {precision} cannot be had on this machine: {error} "
            "Take --precision no, or bf16."
        ) from error
    return accelerator


def scaler_state(accelerator: Accelerator) -> dict[str, Any]:
    """What of an fp16 training must be kept to go on with it: the scale of the loss."""
    scaler = accelerator.scaler
    return {} if scaler is None else {"scaler": scaler.state_dict()}


def load_scaler(accelerator: Accelerator, state: Mapping[str, Any]) -> None:
    """Take up what `scaler_state` gave; a state without one begins with a new scale."""
    if accelerator.scaler is not None and "scaler" in state:
        accelerator.scaler.load_state_dict(state["scaler"])
