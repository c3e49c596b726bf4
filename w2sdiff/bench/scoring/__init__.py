"""Scores through the ledger: each picture, prompt and recipe once."""

from __future__ import annotations

from w2sdiff.bench.scoring.score import Picture, read_scores, score_groups, score_pictures

__all__ = ["Picture", "read_scores", "score_groups", "score_pictures"]
