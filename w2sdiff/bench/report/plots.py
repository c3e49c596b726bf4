"""The two drawings as PNG files, for papers, slides and issues."""

from __future__ import annotations

import io
import math
import warnings
from typing import TYPE_CHECKING, Any

from w2sdiff.bench.analysis import Cell, Comparison
from w2sdiff.bench.report.figures import apart, marker
from w2sdiff.bench.report.view import View
from w2sdiff.bench.results import ScorerFacts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_quality", "draw_wins"]

# The colours of the page, by family: tellable apart with any kind of colour vision.
COLOURS = (
    *("#0072b2", "#c25200", "#007e5c", "#a8578a"),
    *("#8a6d00", "#2b83b8", "#6c4fb0", "#6b6f76"),
)
_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "up": "^", "down": "v"}
_GOOD, _BAD, _TIE, _INK = "#5b9fcb", "#dd9560", "#dedbd3", "#1d1f23"
_ACROSS = 3  # drawings side by side


def draw_quality(view: View) -> bytes | None:
    """Mean scores with their intervals over evaluations per picture; None if no arm has both."""
    drawn = {one.scorer.name for one in view.scatters}
    scorers = [scorer for scorer in view.results.scorers if scorer.name in drawn]
    if not scorers:
        return None
    columns = min(_ACROSS, len(scorers))
    rows = math.ceil(len(scorers) / columns)
    figure = _figure(4.2 * columns, 3.2 * rows + 0.4 + 0.24 * len(view.results.arms) / columns)
    for n, scorer in enumerate(scorers):
        axes = figure.add_subplot(rows, columns, n + 1)
        _quality_of(axes, view, scorer)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    names = [_plain(label) for label in labels]
    legend = figure.legend(
        handles, names, loc="outside lower left", frameon=False, ncols=columns, fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _png(figure)


def draw_wins(view: View) -> bytes | None:
    """Shares of wins, ties and losses of every comparison, with the interval of the win rate."""
    comparisons = [one for one in view.analysis.comparisons if one.wins + one.ties + one.losses]
    if not comparisons:
        return None
    figure = _figure(9.0, 1.0 + 0.3 * len(comparisons))
    axes = figure.add_subplot()
    for place, one in enumerate(comparisons):
        _wins_of(axes, place, one)
    labels = [_plain(f"{one.arm} / {one.rival}: {one.scorer}") for one in comparisons]
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.axvline(50, color=_INK, linewidth=0.8)
    axes.set_xlabel(
        "wins (blue), ties (grey), losses (orange) in percent; win rate with 95% interval"
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    return _png(figure)


def _quality_of(axes: Any, view: View, scorer: ScorerFacts) -> None:
    cells = {c.arm: c for c in view.analysis.cells if c.scorer == scorer.name and c.prompts}
    arms = [arm for arm in view.results.arms if arm.name in cells and arm.evaluations is not None]
    costs = [arm.evaluations or 0 for arm in arms]
    dearest = max(costs) or 1
    for arm, cost, shift in zip(arms, costs, apart(costs), strict=True):
        colour = COLOURS[view.families[arm.name]]
        axes.errorbar(
            [cost + 0.025 * dearest * shift],
            [cells[arm.name].mean],
            yerr=_reach(cells[arm.name]),
            fmt=_MARKERS[marker(arm)],
            color=colour,
            markerfacecolor=colour if arm.match is None else "white",
            # A label that begins with an underscore is left out of a legend; a space keeps it in.
            label=f" {arm.name}" if arm.name.startswith("_") else arm.name,
        )
    axes.set_title(_plain(scorer.name), loc="left", parse_math=False, fontsize=11)
    axes.set_xlim(0, 1.12 * dearest)
    axes.set_xlabel("evaluations per picture")
    axes.grid(axis="y", color="#e6e3dc")
    axes.spines[["top", "right"]].set_visible(False)


def _reach(cell: Cell) -> list[list[float]] | None:
    if not all(map(math.isfinite, cell.interval)):
        return None
    low, high = cell.interval
    return [[max(0.0, cell.mean - low)], [max(0.0, high - cell.mean)]]


def _wins_of(axes: Any, place: int, one: Comparison) -> None:
    n, left = one.wins + one.ties + one.losses, 0.0
    for count, colour in ((one.wins, _GOOD), (one.ties, _TIE), (one.losses, _BAD)):
        axes.barh(place, 100 * count / n, left=left, color=colour, height=0.5)
        left += 100 * count / n
    if all(map(math.isfinite, one.win_interval)):
        low, high = (100 * bound for bound in one.win_interval)
        axes.plot([low, high], [place + 0.36] * 2, color=_INK, linewidth=1.5)
        axes.plot([100 * one.win_rate], [place + 0.36], "o", color=_INK, markersize=3.5)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    # `Figure` by itself: no pyplot, so no state, no display and nothing to close.
    return Figure(figsize=(width, min(height, 60.0)), dpi=150, layout="constrained")


def _plain(text: str) -> str:
    """One line of at most 60 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:59]}…"


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # A script that the font lacks is drawn as boxes; the page shows it.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
