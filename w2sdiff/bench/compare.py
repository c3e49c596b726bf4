"""Two arms from anywhere, side by side as `Results`: of one run, of two, or of scored folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from w2sdiff.bench.results import ArmFacts, PromptFacts, Results, Sample, ScorerFacts
from w2sdiff.bench.stats.family import check_scorers
from w2sdiff.errors import InputError
from w2sdiff.registry import unknown

__all__ = ["Side", "other_noise", "read_sides", "side_by_side"]

_SHOWN = 60  # characters of a prompt in a message


@dataclass(frozen=True)
class Side:
    """One of the two: an arm of some results."""

    results: Results
    arm: ArmFacts

    @property
    def index(self) -> int:
        """The place of the arm."""
        return self.results.arm(self.arm.name)


def read_sides(first: str, second: str) -> tuple[Side, Side]:
    """What stands for the two: run folders or scored folders, with `:ARM` where there are several.

    Raises:
        InputError: there is no such folder, it has no scores, or it is not clear which arm.
    """
    known: dict[Path, Results] = {}
    return _side(first, known), _side(second, known)


def side_by_side(first: Side, second: Side, scorers: Sequence[str] = ()) -> Results:
    """Both as the arms of one `Results`, paired by prompt id and replicate.

    What one side has and the other has not is missing there: it is counted, and takes no part.

    Args:
        first: the arm in question.
        second: what it is compared with.
        scorers: names; by default all that both sides have.

    Raises:
        InputError: both are the same, an id stands for two prompts, a scorer is not there, there is
            none in common, or its scores come from two recipes.
    """
    sides = (first, second)
    one_run = first.results.folder == second.results.folder
    if one_run and first.arm == second.arm:
        raise InputError(f"expected two different arms, got {first.arm.name!r} twice")
    names = _names(sides)
    own = replace(first.arm, name=names[0], rival_of=None)
    made_for_it = one_run and second.arm.rival_of == first.arm.name
    other = replace(second.arm, name=names[1], rival_of=names[0] if made_for_it else None)
    chosen = _scorers(sides, scorers)
    prompts = _prompts(sides)
    places = {prompt: place for place, prompt in enumerate(prompts)}
    folder = Path(os.path.commonpath([side.results.folder.absolute() for side in sides]))
    replicates = max(side.results.replicates for side in sides)
    found = {
        (arm, places[side.results.prompts[one.prompt].id], one.replicate): _moved(
            one, side, folder, chosen
        )
        for arm, side in enumerate(sides)
        for one in side.results.samples
        if one.arm == side.index
    }
    empty = Sample(0, 0, 0, status="missing")
    return Results(
        title=f"{names[0]} against {names[1]}",
        folder=folder,
        arms=(own, other),
        prompts=tuple(prompts.values()),
        scorers=chosen,
        samples=tuple(
            replace(found.get(place, empty), arm=arm, prompt=prompt, replicate=replicate)
            for arm in (0, 1)
            for prompt in range(len(prompts))
            for replicate in range(replicates)
            for place in [(arm, prompt, replicate)]
        ),
        replicates=replicates,
        compare=((names[0], names[1]),),
        provenance={name: side.results.provenance for name, side in zip(names, sides, strict=True)},
    )


def other_noise(results: Results) -> tuple[int, int]:
    """How many pairs of pictures began with different noise, and of how many that is known."""
    noises: dict[tuple[int, int], list[str]] = {}
    for sample in results.samples:
        if sample.noise is not None:
            noises.setdefault((sample.prompt, sample.replicate), []).append(sample.noise)
    pairs = [pair for pair in noises.values() if len(pair) == len(results.arms)]
    return sum(len(set(pair)) > 1 for pair in pairs), len(pairs)


def _side(text: str, known: dict[Path, Results]) -> Side:
    folder, name = _split(text)
    if folder not in known:
        known[folder] = _read(folder)
    results = known[folder]
    names = [arm.name for arm in results.arms]
    if not name and len(names) > 1:
        raise InputError(
            f"{text} holds {len(names)} arms: say which one as {text}:ARM "
            f"({', '.join(map(repr, names))})"
        )
    if name and name not in names:
        raise unknown("arm", name, names)
    return Side(results, results.arms[names.index(name) if name else 0])


def _split(text: str) -> tuple[Path, str]:
    """FOLDER or FOLDER:ARM; both may have colons in them, so it is the first folder that is one."""
    parts = text.split(":")
    for number in range(1, len(parts) + 1):
        folder = Path(":".join(parts[:number]))
        if parts[0] and folder.is_dir():
            return folder.resolve(), ":".join(parts[number:])
    raise InputError(f"expected a run or scored folder, or FOLDER:ARM, got {text!r}")


def _read(folder: Path) -> Results:
    from w2sdiff.bench.folders import folder_results

    if (folder / "experiment.json").is_file():
        from w2sdiff.bench.run.collect import read_results

        return read_results(folder)
    return folder_results([folder])


def _names(sides: Sequence[Side]) -> list[str]:
    """The names of the two arms; where they are the same, with the names of their folders."""
    for names in (
        [side.arm.name for side in sides],
        [f"{side.results.folder.name}: {side.arm.name}" for side in sides],
    ):
        if names[0] != names[1]:
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def _scorers(sides: Sequence[Side], wanted: Sequence[str]) -> tuple[ScorerFacts, ...]:
    first, second = ({one.name: one for one in side.results.scorers} for side in sides)
    both = [name for name in first if name in second]
    for name in wanted:
        if name not in both:
            raise unknown("scorer that both sides have", name, both)
    if not both:
        raise InputError(
            f"the two have no scorer in common ({_listed(first)}; {_listed(second)}): "
            "score both with the same"
        )
    chosen = list(dict.fromkeys(wanted)) or both
    check_scorers(by_name[name] for name in chosen for by_name in (first, second))
    return tuple(first[name] for name in chosen)


def _prompts(sides: Iterable[Side]) -> Mapping[str, PromptFacts]:
    """By id; a side that does not know the text (pictures without prompts) takes the other's."""
    found: dict[str, PromptFacts] = {}
    for side in sides:
        for prompt in side.results.prompts:
            before = found.get(prompt.id, prompt)
            if before.text and prompt.text and before.text != prompt.text:
                raise InputError(
                    f"the prompt {prompt.id!r} is {before.text[:_SHOWN]!r} on one side and "
                    f"{prompt.text[:_SHOWN]!r} on the other: pictures are paired by prompt id"
                )
            known = before if before.text else prompt
            found[prompt.id] = replace(known, category=before.category or prompt.category)
    return found


def _moved(sample: Sample, side: Side, folder: Path, scorers: Iterable[ScorerFacts]) -> Sample:
    """The same, its picture named from another folder, without what other scorers said."""
    names = {scorer.name for scorer in scorers}
    others = tuple(f"{one.name}: " for one in side.results.scorers if one.name not in names)
    image = sample.image
    if image is not None:
        place = side.results.folder.absolute() / image
        image = Path(os.path.relpath(place, folder)).as_posix()
    return replace(
        sample,
        image=image,
        scores={name: score for name, score in sample.scores.items() if name in names},
        truncated=tuple(name for name in sample.truncated if name in names),
        flags=tuple(flag for flag in sample.flags if not flag.startswith(others)),
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
