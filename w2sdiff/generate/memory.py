"""Memory of the device: when there was too little, how to get it back, and how much was used."""

from __future__ import annotations

import gc
import re
from contextlib import suppress
from pathlib import Path

__all__ = [
    "forget_most",
    "forget_peak",
    "free_memory",
    "is_out_of_memory",
    "most_and_now_mb",
    "peak_mb",
]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


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


def forget_most(device: str) -> None:
    """Count `most_and_now_mb` from now on; on a CPU, where the system can (Linux)."""
    forget_peak(device)
    if device.startswith("cpu"):
        with suppress(OSError):
            _CLEAR.write_text("5")  # of man 5 proc: the peak of the resident size becomes its value


def most_and_now_mb(device: str) -> tuple[float | None, float | None]:
    """Most memory in use since `forget_most`, and now, in MB of 10^6 bytes.

    The accelerator's own; on a CPU, the resident size of the process. None where nobody counts it.
    """
    import torch

    if device.startswith("cuda"):
        return peak_mb(device), round(torch.cuda.memory_allocated(device) / 1e6, 1)
    try:
        found = dict(re.findall(r"^(Vm\w+):\s+(\d+) kB", _STATUS.read_text("ascii"), re.MULTILINE))
        most, now = (round(int(found[name]) * 1.024e-3, 1) for name in ("VmHWM", "VmRSS"))
    except (OSError, KeyError):
        return None, None
    return most, now
