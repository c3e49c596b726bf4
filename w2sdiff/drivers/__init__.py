"""Drivers answer a method's requests: `attach` in a pipeline's loop, `drive` by any callable."""

from w2sdiff.drivers.attach import attach
from w2sdiff.drivers.families import FAMILIES, Family
from w2sdiff.drivers.run import Run
from w2sdiff.drivers.stats import RunStats

__all__ = ["FAMILIES", "Family", "Run", "RunStats", "attach"]
