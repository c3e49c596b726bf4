"""What is asked: experiment files, arms, prompts and seeds, and the drawings they come to."""

from __future__ import annotations

from w2sdiff.bench.plan.experiment import Arm, Experiment

__all__ = ["Arm", "Experiment"]
