"""`RUN/timing.json`: what differs from machine to machine, kept apart from the summaries."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from w2sdiff.bench.results import Results
from w2sdiff.jobs import write_whole

__all__ = ["write_timing"]

FILE = "timing.json"


def write_timing(results: Results, run: Path) -> Path:
    """Seconds and peak memory per picture of each arm; see `Sample`.

    Seconds are medians over pictures, each a share of its batch, loading not counted.
    `process_peak_mb` is that of the process that wrote the file, scoring included.

    Raises:
        InputError: the folder cannot be written.
    """
    arms: dict[str, Any] = {}
    for index, arm in enumerate(results.arms):
        done = [s for s in results.samples if s.arm == index and s.status == "done"]
        seconds = [sample.seconds for sample in done if sample.seconds is not None]
        peaks = [sample.peak_mb for sample in done if sample.peak_mb is not None]
        arms[arm.name] = {
            "pictures": len(done),
            "evaluations": arm.evaluations,
            "seconds": round(statistics.median(seconds), 4) if seconds else None,
            "peak_mb": max(peaks, default=None),
        }
    data = {"arms": arms, "process_peak_mb": _process_peak_mb()}
    write_whole(run / FILE, (json.dumps(data, indent=2) + "\n").encode())
    return run / FILE


def _process_peak_mb() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)
