"""The figures of a run as files: JSON, CSV and Markdown, byte-equal for equal scores."""

from __future__ import annotations

from w2sdiff.bench.tables.csvsafe import safe_cell
from w2sdiff.bench.tables.summary import write_summary

__all__ = ["safe_cell", "write_summary"]
