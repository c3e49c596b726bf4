"""A whole run through its ledgers, and reading one back."""

from __future__ import annotations

from w2sdiff.bench.run.collect import read_results
from w2sdiff.bench.run.whole import Engine, Outcome, run_experiment

__all__ = ["Engine", "Outcome", "read_results", "run_experiment"]
