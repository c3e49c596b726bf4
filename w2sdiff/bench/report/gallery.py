"""The pictures of the page: rows of one prompt and one start noise, a picture per arm."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from w2sdiff.bench.report.thumbnails import edge_for, thumbnails
from w2sdiff.bench.report.view import View
from w2sdiff.bench.results import Results, Sample

__all__ = ["grid_data", "picture_blocks", "shown"]

_MOST = 6000  # pictures inside a page, unless asked for more: some 30 MB
_TEXT = 2000  # characters of a prompt that are shown


def shown(results: Results, pictures: int | None) -> int:
    """How many prompts have their pictures inside the page: those asked for, or what fits."""
    per_prompt = len(results.arms) * results.replicates
    most = max(1, _MOST // max(1, per_prompt)) if pictures is None else pictures
    return min(most, len(results.prompts))


def grid_data(view: View, folder: Path) -> dict[str, Any]:
    """Everything about the rows but the pictures themselves, as JSON for the script.

    A row's `cells` and each list of its `scores` are in the order of the arms; a score that is
    not there is null.
    """
    results = view.results
    return {
        "arms": [
            {
                "name": arm.name,
                "family": view.families[arm.name],
                "evaluations": arm.evaluations,
                "owner": arm.rival_of or arm.name,
            }
            for arm in results.arms
        ],
        "scorers": [
            {
                "name": scorer.name,
                "places": view.places[scorer.name],
                "sign": {True: 1, False: -1, None: 0}[scorer.higher_is_better],
            }
            for scorer in results.scorers
        ],
        "pairs": [[results.arm(arm), results.arm(rival)] for arm, rival in view.pairs],
        "rows": [_row(results, row, folder) for row in _rows(results)],
    }


def picture_blocks(
    results: Results, pictures: int | None, on_done: Callable[[], object]
) -> Iterator[list[tuple[str, bool] | None]]:
    """By row, of the first prompts only: pictures as (data URL, whether it was made smaller)."""
    rows = _rows(results)[: shown(results, pictures) * results.replicates]
    paths = [
        results.folder / sample.image if sample is not None and sample.image else None
        for row in rows
        for sample in row
    ]
    made = thumbnails(paths, edge_for(sum(path is not None for path in paths)), on_done)
    for row in rows:
        found = [next(made) for _ in row]
        yield [None if one is None else (one.url, one.shrunk) for one in found]


def _rows(results: Results) -> list[list[Sample | None]]:
    """The samples by prompt and replicate, each a list over the arms."""
    rows: list[list[Sample | None]] = [
        [None] * len(results.arms) for _ in range(len(results.prompts) * results.replicates)
    ]
    for sample in results.samples:
        rows[sample.prompt * results.replicates + sample.replicate][sample.arm] = sample
    return rows


def _row(results: Results, row: list[Sample | None], folder: Path) -> dict[str, Any]:
    there = next(sample for sample in row if sample is not None)
    prompt = results.prompts[there.prompt]
    text = prompt.text
    if len(text) > _TEXT:
        text = f"{text[:_TEXT]} … ({len(text):,} characters)"
    return {
        "id": prompt.id[:200],
        "text": text,
        "category": prompt.category,
        "replicate": there.replicate,
        "seed": next((str(one.seed) for one in row if one and one.seed is not None), None),
        "cells": [_cell(results, sample, folder) for sample in row],
        "scores": {
            scorer.name: [
                None if sample is None else _rounded(sample.scores.get(scorer.name))
                for sample in row
            ]
            for scorer in results.scorers
        },
    }


def _cell(results: Results, sample: Sample | None, folder: Path) -> dict[str, Any]:
    if sample is None:
        return {"status": "missing"}
    cell: dict[str, Any] = {"status": sample.status}
    if sample.flags:
        cell["flags"] = list(sample.flags)
    if sample.reason:
        cell["reason"] = sample.reason[:300]
    if sample.image and (href := _href(results.folder / sample.image, folder)):
        cell["href"] = href
    return cell


def _href(path: Path, folder: Path) -> str | None:
    """A link relative to the page, if the picture lies beside or below it."""
    relative = Path(os.path.relpath(path, folder))
    return None if ".." in relative.parts else quote(relative.as_posix())


def _rounded(value: float | None) -> float | None:
    return None if value is None or value != value else float(f"{value:.6g}")
