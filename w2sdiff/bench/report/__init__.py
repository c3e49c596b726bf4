"""Pages people want to open: the report, and the blind vote."""

from __future__ import annotations

from w2sdiff.bench.report.ballots import Vote, Votes, fold_votes, read_votes
from w2sdiff.bench.report.page import write_report
from w2sdiff.bench.report.vote import write_vote_page

__all__ = ["Vote", "Votes", "fold_votes", "read_votes", "write_report", "write_vote_page"]
