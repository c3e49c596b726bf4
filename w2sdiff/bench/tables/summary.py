"""`write_summary`: the figures of a run as files, byte-equal wherever the scores are equal.

    summary.json   everything, for programs
    summary.csv    one row per comparison, and below it one per category
    cells.csv      one row per arm and scorer
    summary.md     verdicts and both tables, for people

No clock, no machine and no path is in them. Numbers have six significant digits; one that does not
exist (the interval of a single prompt) is null, or an empty cell. `detectable` is null as well
where the prompts are too few to see any difference.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2sdiff.bench.stats.family import check_scorers
from w2sdiff.bench.stats.means import picture_counts
from w2sdiff.bench.tables.csvsafe import safe_cell
from w2sdiff.bench.tables.markdown import summary_page
from w2sdiff.bench.tables.turns import turn
from w2sdiff.jobs import check_writable, write_whole

if TYPE_CHECKING:
    from w2sdiff.bench.analysis import Analysis, Cell, Difference
    from w2sdiff.bench.results import ArmFacts, Results

__all__ = ["plain_json", "write_summary"]

_Row = Mapping[str, Any]


def write_summary(results: Results, analysis: Analysis, folder: Path) -> list[Path]:
    """Write the four files; returns their paths. Several processes may do so at once.

    Args:
        results: of a run.
        analysis: of these results.
        folder: made if it is not there.

    Raises:
        InputError: two scorers of one name have different recipes, or the folder cannot be written.
    """
    check_scorers(results.scorers)
    texts = {
        "summary.json": _json(results, analysis),
        "summary.csv": _csv(_comparison_rows(analysis)),
        "cells.csv": _csv(map(_cell_row, analysis.cells)),
        "summary.md": summary_page(results, analysis),
    }
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with turn(folder / ".summary.lock"):
        for name, text in texts.items():
            # A file name that is no text (bytes in disguise) shows as its escape.
            write_whole(folder / name, text.encode("utf-8", "backslashreplace"))
    return [folder / name for name in texts]


def _json(results: Results, analysis: Analysis) -> str:
    value = {
        "title": results.title,
        "prompts": _prompts(results),
        "replicates": results.replicates,
        "arms": [_arm(index, arm, results) for index, arm in enumerate(results.arms)],
        "scorers": [_without(scorer, "fingerprint") for scorer in results.scorers],
        **dataclasses.asdict(analysis),
    }
    return json.dumps(plain_json(value), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _prompts(results: Results) -> dict[str, Any]:
    rows = [[prompt.id, prompt.text, prompt.category] for prompt in results.prompts]
    return {
        "count": len(rows),
        "sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        "categories": Counter(prompt.category for prompt in results.prompts if prompt.category),
    }


def _arm(index: int, arm: ArmFacts, results: Results) -> dict[str, Any]:
    return _without(arm, "spec") | {"pictures": picture_counts(results, index)}


def _without(value: Any, name: str) -> dict[str, Any]:
    return {
        field.name: getattr(value, field.name)
        for field in dataclasses.fields(value)
        if field.name != name
    }


def plain_json(value: Any) -> Any:
    """A value as JSON, every float rounded to six digits, null for what is no number.

    Example:
        >>> plain_json({"p": 0.123456789, "interval": (float("nan"), 1)})
        {'p': 0.123457, 'interval': [None, 1]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, float):
        return _round(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(part) for part in value]
    return value


def _round(value: float) -> float:
    return float(f"{value:.6g}") + 0.0  # no -0.0


def _comparison_rows(analysis: Analysis) -> Iterator[_Row]:
    for one in analysis.comparisons:
        names = {"arm": one.arm, "rival": one.rival, "scorer": one.scorer}
        yield (
            {**names, "category": "", **_difference(one.difference)}
            | {"p": one.p, "p_holm": one.p_holm, "outcome": one.outcome}
            | {"wins": one.wins, "ties": one.ties, "losses": one.losses}
            | {"win_rate": one.win_rate, **_ends("win_rate", one.win_interval)}
            | {"detectable": one.detectable, "excluded": one.excluded}
        )
        for category, difference in one.categories.items():
            yield {**names, "category": category, **_difference(difference)}


def _difference(difference: Difference) -> _Row:
    ends = _ends("difference", difference.interval)
    return {"prompts": difference.n, "difference": difference.mean, **ends}


def _ends(name: str, interval: tuple[float, float]) -> _Row:
    return {f"{name}_low": interval[0], f"{name}_high": interval[1]}


def _cell_row(cell: Cell) -> _Row:
    return {
        "arm": cell.arm,
        "scorer": cell.scorer,
        "mean": cell.mean,
        **_ends("mean", cell.interval),
        "prompts": cell.prompts,
        "missing": cell.missing,
        "failed": cell.failed,
        "flagged": cell.flagged,
        "truncated": cell.truncated,
    }


def _csv(rows: Iterable[_Row]) -> str:
    listed = list(rows)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(listed[0]) if listed else [], lineterminator="\n")
    writer.writeheader()
    for row in listed:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return file.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return safe_cell(value)
    return plain_json(value)
