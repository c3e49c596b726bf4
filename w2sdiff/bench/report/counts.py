"""What is missing from a run or odd about it, and what decides its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from w2sdiff.bench.analysis import Analysis
from w2sdiff.bench.results import Results

__all__ = ["absences", "provenance", "remarks", "uneven_noise"]

_MOST = 20  # different remarks that are listed


def absences(results: Results) -> list[dict[str, Any]]:
    """Pictures planned, there, missing, failed and flagged, and prompts cut short, by arm."""
    # Nobody is expected to vote on every picture.
    scorers = [scorer.name for scorer in results.scorers if not scorer.name.startswith("votes")]
    rows = []
    for index, arm in enumerate(results.arms):
        samples = [sample for sample in results.samples if sample.arm == index]
        status = Counter(sample.status for sample in samples)
        cut = Counter(name for sample in samples for name in sample.truncated)
        unscored = (
            sample.status == "done" and any(name not in sample.scores for name in scorers)
            for sample in samples
        )
        rows.append(
            {
                "arm": arm.name,
                "planned": len(samples),
                "there": status["done"],
                "missing": status["missing"],
                "failed": status["failed"],
                "flagged": sum(bool(sample.flags) for sample in samples),
                "unscored": sum(unscored),
                "cut": sorted(cut.items()),
            }
        )
    return rows


def remarks(results: Results) -> list[tuple[str, int]]:
    """Why pictures failed and what is odd about others, most frequent first."""
    found: Counter[str] = Counter()
    for sample in results.samples:
        if sample.status == "failed":
            found[f"failed: {sample.reason or 'no reason given'}"] += 1
        found.update(f"flagged: {flag}" for flag in sample.flags)
    return found.most_common(_MOST)


def uneven_noise(results: Results) -> int:
    """How many rows of pictures did not all start from the same noise.

    The best of several is left aside: it starts from whichever noise was chosen.
    """
    noises: dict[tuple[int, int], set[str]] = {}
    for sample in results.samples:
        if sample.noise is not None and results.arms[sample.arm].match != "best of n":
            noises.setdefault((sample.prompt, sample.replicate), set()).add(sample.noise)
    return sum(len(found) > 1 for found in noises.values())


def provenance(results: Results, analysis: Analysis) -> list[tuple[str, Mapping[str, Any]]]:
    """Everything that decides the numbers, as JSON under headings."""
    recipes = {
        scorer.name: {"recipe": scorer.recipe, **scorer.fingerprint} for scorer in results.scorers
    }
    return [
        ("Run", results.provenance),
        ("Arms", {arm.name: arm.spec for arm in results.arms if arm.spec}),
        ("Scores", recipes),
        ("Statistics", {"draws": analysis.draws, "seed": analysis.seed}),
    ]
