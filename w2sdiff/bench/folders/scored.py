"""`Results` out of scored folders: what `compare` and `report` say of pictures from anywhere."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from w2sdiff.bench.folders.listing import Entry
from w2sdiff.bench.folders.scorefile import Scored, read_scored
from w2sdiff.bench.results import ArmFacts, PromptFacts, Results, Sample, ScorerFacts
from w2sdiff.bench.scoring.pictures import shown
from w2sdiff.bench.scoring.score import ScoreFacts
from w2sdiff.errors import InputError

__all__ = ["folder_results"]

_Scores = dict[tuple[int, str, int], tuple[Entry, dict[str, ScoreFacts]]]


def folder_results(
    folders: Sequence[Path], *, names: Sequence[str] | None = None, title: str = ""
) -> Results:
    """Everything that is known of one scored folder or several, as one value.

    Each folder is an arm, or as many as its pictures name. Prompts are told apart by id; what one
    folder has and another has not is missing there.

    Args:
        folders: each scored by `w2sdiff score`.
        names: of the arms, one per folder; by default the names of the folders.
        title: of the whole; by default the names joined.

    Raises:
        InputError: a folder without scores, one scorer with two recipes, or one id with two
            prompts.
    """
    if not folders:
        raise InputError("expected at least one scored folder")
    if names is not None and len(names) != len(folders):
        raise InputError(f"expected {len(folders)} names, one per folder, got {len(names)}")
    many = [read_scored(folder) for folder in folders]
    labels = _labels(folders) if names is None else list(names)
    arms: list[str] = []
    prompts: dict[str, PromptFacts] = {}
    found: _Scores = {}
    for scored, label in zip(many, labels, strict=True):
        own = list(dict.fromkeys(entry.arm for entry in scored.listing.entries))
        called = {arm: _arm_name(label, arm, len(own), len(many)) for arm in own}
        arms += called.values()
        for entry, scores in zip(scored.listing.entries, scored.scores, strict=True):
            _add_prompt(prompts, entry)
            place = (arms.index(called[entry.arm]), entry.id, entry.replicate)
            found[place] = (entry, dict(scores))
    if len(set(arms)) < len(arms):
        raise InputError(f"two arms have one name: {', '.join(map(shown, arms))}; give them --name")
    root = _root(folders, found)
    replicates = 1 + max(replicate for _, _, replicate in found)
    return Results(
        title=title or ", ".join(labels),
        folder=root,
        arms=tuple(ArmFacts(arm, arm) for arm in arms),
        prompts=tuple(prompts.values()),
        scorers=tuple(_scorers(many, labels).values()),
        samples=tuple(_samples(len(arms), list(prompts), replicates, found, root, arms)),
        replicates=replicates,
        provenance={
            "folders": [
                {
                    "name": label,
                    "layout": scored.listing.layout,
                    "left out": list(scored.listing.problems),
                }
                for label, scored in zip(labels, many, strict=True)
            ]
        },
    )


def _labels(folders: Sequence[Path]) -> list[str]:
    names = []
    for folder in folders:
        place = folder.resolve()
        names.append(shown(place.parent.name if place.name == "scores" else place.name))
    return [
        f"{name} ({number})" if names.count(name) > 1 else name
        for number, name in enumerate(names, 1)
    ]


def _arm_name(label: str, arm: str, own: int, folders: int) -> str:
    if not arm or (own == 1 and folders > 1):
        return label
    return arm if folders == 1 else f"{label}: {arm}"


def _add_prompt(prompts: dict[str, PromptFacts], entry: Entry) -> None:
    before = prompts.setdefault(entry.id, PromptFacts(entry.id, entry.prompt, entry.category))
    if before.text != entry.prompt:
        raise InputError(
            f"the prompt {entry.id!r} is {before.text[:80]!r} in one folder and "
            f"{entry.prompt[:80]!r} in another: pictures are paired by prompt id"
        )


def _scorers(many: Sequence[Scored], labels: Sequence[str]) -> dict[str, ScorerFacts]:
    """Every scorer once; one name with two recipes is never joined."""
    found: dict[str, tuple[ScorerFacts, str]] = {}
    for scored, label in zip(many, labels, strict=True):
        for scorer in scored.scorers:
            before, where = found.setdefault(scorer.name, (scorer, label))
            if before.recipe != scorer.recipe:
                raise InputError(
                    f"{where} and {label} were scored by two recipes of {scorer.name} "
                    f"({before.recipe[:12]} and {scorer.recipe[:12]}), which cannot be compared: "
                    "score one of them again"
                )
    return {name: scorer for name, (scorer, _) in found.items()}


def _samples(
    arms: int,
    prompts: Sequence[str],
    replicates: int,
    found: _Scores,
    root: Path,
    names: Sequence[str],
) -> Iterator[Sample]:
    first: dict[str, Sample] = {}
    for arm in range(arms):
        for number, prompt in enumerate(prompts):
            for replicate in range(replicates):
                empty = Sample(arm, number, replicate, status="missing")
                if (arm, prompt, replicate) not in found:
                    yield empty
                    continue
                sample = _sample(empty, *found[arm, prompt, replicate], root)
                if sample.sha256:
                    before = first.setdefault(sample.sha256, sample)
                    if (before.prompt, before.replicate) != (number, replicate):
                        flag = f"same picture as {names[before.arm]}, prompt "
                        flag += prompts[before.prompt][:60]
                        sample = replace(sample, flags=(*sample.flags, flag))
                yield sample


def _sample(empty: Sample, entry: Entry, scores: dict[str, ScoreFacts], root: Path) -> Sample:
    if not entry.sha256:
        reasons = [facts.reason for facts in scores.values() if facts.reason]
        return replace(empty, status="failed", reason=(reasons or ["it cannot be read"])[0])
    return replace(
        empty,
        status="done",
        image=Path(os.path.relpath(entry.path.absolute(), root)).as_posix(),
        sha256=entry.sha256,
        flags=tuple(f"{name}: {facts.reason}" for name, facts in scores.items() if facts.reason),
        scores={
            name: float(facts.score) for name, facts in scores.items() if facts.score is not None
        },
        truncated=tuple(name for name, facts in scores.items() if facts.truncated),
    )


def _root(folders: Sequence[Path], found: _Scores) -> Path:
    """The folder against which pictures are named: the one folder, or what all of them share."""
    if len(folders) == 1:
        return folders[0].absolute()
    places = {str(entry.path.absolute().parent) for entry, _ in found.values()}
    return Path(os.path.commonpath([*places, *(str(folder.absolute()) for folder in folders)]))
