"""Pages people want to open: the report, and the blind vote."""

from __future__ import annotations

from w2sdiff.bench.report.page import write_report

__all__ = ["write_report"]
