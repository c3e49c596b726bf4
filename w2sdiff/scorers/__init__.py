"""Scorers: pictures and prompts in, one number per picture out, with everything that decides it."""

from __future__ import annotations

from w2sdiff.scorers.base import SCORERS, Group, Scorer, parse_scorer, scorer_from_json

__all__ = ["SCORERS", "Group", "Scorer", "parse_scorer", "scorer_from_json"]
