"""From a run folder to `Results`: what is there, what failed, what is missing, what is odd.

    experiment.json -> keys of the pictures -> their records -> which ones count -> their scores

Nothing is drawn, loaded or computed anew here, and no model or weights need to be at hand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from w2sdiff.bench.results import PromptFacts, Results, Sample
from w2sdiff.bench.run.manifest import ArmEntry, Manifest, ScorerEntry
from w2sdiff.bench.scoring.batches import item_of as score_item
from w2sdiff.bench.scoring.pictures import Picture
from w2sdiff.errors import InputError
from w2sdiff.generate import item_of
from w2sdiff.jobs import Ledger, Record

__all__ = ["Counted", "candidates_of", "counted", "groups_of", "picture_of", "read_results"]

IMAGES, SCORES = "images", "scores"
_SAID = 60  # characters of a prompt id in a flag


@dataclass(frozen=True)
class Counted:
    """The picture of an arm, prompt and replicate, or why there is none.

    Attributes:
        arm: index of the arm.
        row: number of the prompt.
        replicate: from 0.
        records: of its candidates, in order; None for one that was not tried.
        chosen: which candidate counts; None where none does.
    """

    arm: int
    row: int
    replicate: int
    records: tuple[Record | None, ...]
    chosen: int | None

    @property
    def record(self) -> Record | None:
        """The record of the candidate that counts."""
        return None if self.chosen is None else self.records[self.chosen]


def read_results(run: Path) -> Results:
    """Everything a run folder holds, finished or not.

    Args:
        run: a folder of `w2sdiff bench`.

    Raises:
        InputError: it is no run folder, or its experiment.json is damaged.
    """
    manifest = Manifest.read(run)
    images, scores = Ledger(run / IMAGES), Ledger(run / SCORES)
    found = list(counted(manifest, images, scores))
    samples = [_sample(manifest, one) for one in found]
    samples = [*_with_scores(manifest, images, scores, found, samples)]
    rows = manifest.design.rows
    return Results(
        title=manifest.title,
        folder=run,
        arms=tuple(arm.facts for arm in manifest.arms),
        prompts=tuple(PromptFacts(r.id, r.text, r.columns.get("category", "")) for r in rows),
        scorers=tuple(scorer.facts for scorer in manifest.scorers),
        samples=tuple(_flagged(manifest, found, samples)),
        replicates=manifest.design.replicates,
        compare=manifest.compare,
        provenance={
            "prompts": dict(manifest.prompts),
            "seeds": manifest.design.seeds,
            "batch": manifest.design.batch,
            "select": manifest.select.facts.name if manifest.select else None,
            "versions": manifest.arms[0].decides["versions"],
        },
    )


def counted(manifest: Manifest, images: Ledger, scores: Ledger) -> Iterator[Counted]:
    """The pictures that count, by arm, prompt and replicate; missing ones too."""
    for index, arm in enumerate(manifest.arms):
        keys = _keys(manifest, arm)
        for row, replicate in manifest.design.cells:
            records = tuple(images.get(key) for key in keys[row, replicate])
            chosen = _chosen(manifest, images, scores, row, records)
            yield Counted(index, row, replicate, records, chosen)


def candidates_of(manifest: Manifest, images: Ledger) -> list[Picture]:
    """Every picture that a best-of-n arm has to choose from."""
    arms = [arm for arm in manifest.arms if arm.candidates > 1]
    return [
        picture_of(images, record, manifest.design.rows[row].text)
        for arm in arms
        for (row, _), keys in _keys(manifest, arm).items()
        for record in map(images.get, keys)
        if record is not None and record.files
    ]


def groups_of(
    manifest: Manifest, images: Ledger, found: Sequence[Counted]
) -> dict[tuple[int, int], tuple[Picture, ...]]:
    """(arm, prompt) -> its pictures, where every replicate is there and there are two or more.

    A score of all pictures of a prompt depends on how many they are, so that a group with one
    missing has none.
    """
    groups: dict[tuple[int, int], list[Picture]] = defaultdict(list)
    for one in found:
        if one.record is not None and one.record.files:
            text = manifest.design.rows[one.row].text
            groups[one.arm, one.row].append(picture_of(images, one.record, text))
    whole = manifest.design.replicates
    return {place: tuple(group) for place, group in groups.items() if len(group) == whole > 1}


def picture_of(images: Ledger, record: Record, prompt: str) -> Picture:
    """The picture of a finished record, for a scorer."""
    [(name, file)] = record.files.items()
    return Picture(images.folder / name, file["sha256"], prompt)


def _keys(manifest: Manifest, arm: ArmEntry) -> dict[tuple[int, int], list[str]]:
    """(prompt, replicate) -> the key of each candidate."""
    design = manifest.design
    found: dict[tuple[int, int], list[str]] = {cell: [] for cell in design.cells}
    for candidate in range(arm.candidates):
        for number in range(design.groups):
            shots = design.shots(number, arm.columns, candidate)
            for place, cell in enumerate(design.group(number)):
                found[cell].append(item_of(arm.decides, shots, place).key)
    return found


def _chosen(
    manifest: Manifest, images: Ledger, scores: Ledger, row: int, records: Sequence[Record | None]
) -> int | None:
    """The best candidate that is there, the first of equal ones; None while one is not tried."""
    if len(records) == 1:
        return 0 if records[0] is not None else None
    if any(record is None for record in records):
        return None
    assert manifest.select is not None
    best: tuple[float, int] | None = None
    sign = -1 if manifest.select.facts.higher_is_better is False else 1
    for place, record in enumerate(records):
        assert record is not None
        if not record.files:
            continue
        picture = picture_of(images, record, manifest.design.rows[row].text)
        score = _record(scores, manifest.select, (picture,))
        if score is None:
            return None
        if score.status == "done":
            value = sign * float(score.facts["score"])
            best = max(best or (value, -place), (value, -place))
    return 0 if best is None else -best[1]


def _sample(manifest: Manifest, one: Counted) -> Sample:
    base = Sample(one.arm, one.row, one.replicate, status="missing")
    base = replace(base, seed=manifest.design.seed(one.row, one.replicate))
    record = one.record
    if record is None:
        return base
    there = [record for record in one.records if record is not None]
    known = [record.facts.get("seconds") for record in there]
    failed = sum(not record.files for record in there)
    facts = record.facts
    base = replace(
        base,
        seed=record.spec["seed"],
        noise=facts.get("noise"),
        seconds=None if None in known else round(sum(filter(None, known)), 4),
        peak_mb=max((r.facts.get("peak_mb") or 0 for r in there), default=0) or None,
    )
    if not record.files:
        return replace(base, status="failed", reason=record.reason)
    [(name, file)] = record.files.items()
    flags = [f"{failed} of {len(there)} candidates failed"] if failed else []
    planned = manifest.arms[one.arm].facts.evaluations
    spent = sum(record.facts.get("evaluations") or 0 for record in there)
    if not failed and planned != spent:
        flags.append(f"{spent} evaluations, not the {planned} that were planned")
    return replace(
        base,
        status="done",
        image=f"{IMAGES}/{name}",
        sha256=file["sha256"],
        flags=tuple(flags),
    )


def _with_scores(
    manifest: Manifest,
    images: Ledger,
    scores: Ledger,
    found: Sequence[Counted],
    samples: Sequence[Sample],
) -> Iterator[Sample]:
    groups = groups_of(manifest, images, found)
    for one, sample in zip(found, samples, strict=True):
        if sample.status != "done" or one.record is None:
            yield sample
            continue
        own = picture_of(images, one.record, manifest.design.rows[one.row].text)
        values, truncated, flags = {}, [], list(sample.flags)
        for entry in manifest.scorers:
            together = entry.scorer.per_prompt
            unit = groups.get((one.arm, one.row)) if together else (own,)
            record = _record(scores, entry, unit) if unit else None
            if record is None:
                continue
            if record.status == "done":
                values[entry.facts.name] = float(record.facts["score"])
            else:
                flags.append(f"{entry.facts.name}: {record.reason}")
            if record.facts.get("truncated"):
                truncated.append(entry.facts.name)
        yield replace(sample, scores=values, truncated=tuple(truncated), flags=tuple(flags))


def _record(scores: Ledger, entry: ScorerEntry, unit: tuple[Picture, ...]) -> Record | None:
    try:
        return scores.get(score_item(unit, entry.scorer, entry.facts.recipe).key)
    except InputError:
        return None


def _flagged(
    manifest: Manifest, found: Sequence[Counted], samples: Sequence[Sample]
) -> Iterator[Sample]:
    """With flags for what only shows beside other samples: equal pictures, other start noise."""
    rows = manifest.design.rows
    first: dict[Any, Sample] = {}
    noises: dict[tuple[int, int, str], tuple[str, str]] = {}
    for one, sample in zip(found, samples, strict=True):
        flags = list(sample.flags)
        pixels = one.record.facts.get("pixels") if one.record else None
        if pixels is not None:
            before = first.setdefault(pixels, sample)
            if (before.prompt, before.replicate) != (sample.prompt, sample.replicate):
                other = manifest.arms[before.arm].facts.name
                flags.append(f"same picture as {other}, prompt {rows[before.prompt].id[:_SAID]}")
        arm = manifest.arms[sample.arm]
        if sample.noise is not None and arm.noise is not None and arm.candidates == 1:
            cell = sample.prompt, sample.replicate, arm.noise
            noise, name = noises.setdefault(cell, (sample.noise, arm.facts.name))
            if noise != sample.noise:
                flags.append(f"other start noise than {name}")
        yield replace(sample, flags=tuple(flags))
