"""Fair rivals: how strongly a method guides, and what its evaluations and strength buy."""

from __future__ import annotations

from w2sdiff.bench.rivals.matched import rivals_of
from w2sdiff.bench.rivals.strength import Strength, effective_scale

__all__ = ["Strength", "effective_scale", "rivals_of"]
