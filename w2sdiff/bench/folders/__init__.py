"""Folders of pictures from anywhere: found, scored, written down, read back as results."""

from __future__ import annotations

from w2sdiff.bench.folders.read import LAYOUTS, read_folder
from w2sdiff.bench.folders.score import score_folder
from w2sdiff.bench.folders.scored import folder_results
from w2sdiff.bench.folders.scorefile import find_scored, read_scored, write_scored

__all__ = [
    "LAYOUTS",
    "find_scored",
    "folder_results",
    "read_folder",
    "read_scored",
    "score_folder",
    "write_scored",
]
