"""Memory of the device: when there was too little, how to get it back, and how much was used."""

from __future__ import annotations

import gc

__all__ = ["forget_peak", "free_memory", "is_out_of_memory", "peak_mb"]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch or Python says that the memory did not suffice."""
    import torch

    words = str(error).lower()
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "out of memory" in words
        or "can't allocate memory" in words
    )


def free_memory() -> None:
    """Give back what nobody refers to any more, to Python and to the accelerator."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def forget_peak(device: str) -> None:
    """Count `peak_mb` from now on."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def peak_mb(device: str) -> float | None:
    """Most memory in use since `forget_peak`, in MB of 10^6 bytes; None where nobody counts it."""
    import torch

    if not device.startswith("cuda"):
        return None
    return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
