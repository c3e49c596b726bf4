"""The figures of a run as a page of Markdown, in which the text of others stays text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from w2sdiff.bench.stats.means import picture_counts

if TYPE_CHECKING:
    from w2sdiff.bench.analysis import Analysis, Comparison
    from w2sdiff.bench.results import Results

__all__ = ["safe_markdown", "summary_page"]

_ESCAPES = str.maketrans(
    {mark: f"\\{mark}" for mark in "\\`*_[]|~#!"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
)


def summary_page(results: Results, analysis: Analysis) -> str:
    """Verdicts and tables, to paste where people talk: `summary.md`."""
    parts = [f"# {safe_markdown(results.title)}", _opening(results), _verdicts(analysis)]
    parts += ["## Scores", _score_table(results, analysis)]
    if analysis.comparisons:
        parts += ["## Comparisons", _comparison_table(analysis.comparisons), _method(analysis)]
    return "\n\n".join(parts) + "\n"


def safe_markdown(text: str, limit: int = 400) -> str:
    r"""Text that others wrote, on one line: nothing in it is a tag, an image or a cell.

    Characters that do not show (controls, marks that turn the direction of writing) become spaces.

    Args:
        text: any.
        limit: characters; of more, the rest is cut off and … says so.

    Example:
        >>> print(safe_markdown("a|b <script>"))
        a\|b &lt;script&gt;
    """
    shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return (shown if len(shown) <= limit else f"{shown[: limit - 1]}…").translate(_ESCAPES)


def _opening(results: Results) -> str:
    scorers = (
        f"{safe_markdown(one.name)} ({one.group}; recipe {safe_markdown(one.recipe[:12])})"
        for one in results.scorers
    )
    per_prompt = "" if results.replicates == 1 else f", {results.replicates} pictures each"
    return f"{len(results.prompts)} prompts{per_prompt}. Scores: {'; '.join(scorers)}."


def _verdicts(analysis: Analysis) -> str:
    lines = []
    for one in analysis.judgements:
        lines.append(f"- {safe_markdown(one.sentence, 2000)}")
        lines += [f"  - *{safe_markdown(mark, 1000)}*" for mark in one.marks]
    return "\n".join(lines)


def _score_table(results: Results, analysis: Analysis) -> str:
    names = [scorer.name for scorer in results.scorers]
    header = ["arm", "what it is", "evaluations", "not counted", *map(safe_markdown, names)]
    rows = []
    for index, arm in enumerate(results.arms):
        counts = picture_counts(results, index)
        left_out = [f"{counts[word]} {word}" for word in ("missing", "failed", "flagged")]
        cells = [analysis.cell(arm.name, name) for name in names]
        rows.append(
            [
                safe_markdown(arm.name),
                safe_markdown(arm.text),
                "?" if arm.evaluations is None else str(arm.evaluations),
                ", ".join(text for text in left_out if not text.startswith("0 ")) or "0",
                *(f"{_short(cell.mean)}{_between(cell.interval)}" for cell in cells),
            ]
        )
    return _table(header, rows)


def _comparison_table(comparisons: Iterable[Comparison]) -> str:
    header = ["arm", "rival", "score", "prompts", "difference", "p", "p (Holm)", "win – tie – loss"]
    header += ["win rate", "would be seen", "outcome"]
    return _table(
        header,
        [
            [
                *map(safe_markdown, (one.arm, one.rival, one.scorer)),
                str(one.difference.n),
                f"{_short(one.difference.mean, '+')}{_between(one.difference.interval)}",
                *map(_short, (one.p, one.p_holm)),
                f"{one.wins} – {one.ties} – {one.losses}",
                f"{_short(one.win_rate)}{_between(one.win_interval)}",
                _short(one.detectable),
                one.outcome,
            ]
            for one in comparisons
        ],
    )


def _method(analysis: Analysis) -> str:
    return (
        f"Intervals: 95%, bootstrap over prompts, {analysis.draws:,} draws, seed {analysis.seed}. "
        f"p: two-sided sign-flip test, Holm's correction over all {len(analysis.comparisons)} "
        "comparisons. Better or worse: the interval excludes 0 and p (Holm) is below 0.05. "
        "Would be seen: the true difference that comes out so four times out of five."
    )


def _short(value: float, sign: str = "") -> str:
    if math.isnan(value):
        return "–"
    return "none" if math.isinf(value) else f"{value:{sign}.3g}"


def _between(interval: tuple[float, float]) -> str:
    return "" if math.isnan(interval[0]) else f" ({_short(interval[0])} to {_short(interval[1])})"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are safe already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
