"""From scores to verdicts: paired intervals, corrected p, the same words for wins and losses."""

from __future__ import annotations

from w2sdiff.bench.stats.analyse import analyse

__all__ = ["analyse"]
