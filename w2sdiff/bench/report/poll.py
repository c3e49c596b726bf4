"""A poll: which pictures are shown against each other, and what only its maker knows."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2sdiff.bench.results import Results, Sample
from w2sdiff.errors import InputError
from w2sdiff.jobs import digest

__all__ = ["KEY_FILE", "Pair", "Poll", "make_poll", "read_key"]

KEY_FILE = "vote-key.json"


@dataclass(frozen=True)
class Pair:
    """Two pictures of one prompt and start noise.

    Attributes:
        prompt: id of the prompt.
        replicate: which picture of the prompt.
        arm_left: whether the arm's picture stands on the left, the rival's on the right.
    """

    prompt: str
    replicate: int
    arm_left: bool


@dataclass(frozen=True)
class Poll:
    """An arm against a rival; `id` tells nothing about them, and is the same for the same poll."""

    id: str
    arm: str
    rival: str
    pairs: tuple[Pair, ...]


def make_poll(
    results: Results, arm: str, rival: str, count: int, seed: int
) -> tuple[Poll, list[tuple[Sample, Sample]]]:
    """Draw the pairs of a poll, one per prompt, and their samples as (arm's, rival's).

    Raises:
        InputError: an unknown arm, the same one twice, a count below 1, or no prompt of which both
            have a picture.
    """
    names = [one.name for one in results.arms]
    for name in (arm, rival):
        if name not in names:
            raise InputError(f"this run has no arm {name!r}; it has: {', '.join(names)}")
    if arm == rival:
        raise InputError(f"expected two different arms to vote on, got {arm!r} twice")
    if count < 1:
        raise InputError(f"expected at least one pair to vote on, got {count}")
    both = _both(results, results.arm(arm), results.arm(rival))
    if not both:
        raise InputError(f"there is no prompt of which both {arm!r} and {rival!r} have a picture")
    chance = random.Random(seed)
    prompts = chance.sample(sorted(both), min(count, len(both)))
    chosen = [chance.choice(both[prompt]) for prompt in prompts]
    pairs = tuple(
        Pair(results.prompts[ours.prompt].id, ours.replicate, chance.random() < 0.5)
        for ours, _ in chosen
    )
    shown = [[ours.sha256 or ours.image, theirs.sha256 or theirs.image] for ours, theirs in chosen]
    spec = [arm, rival, [dataclasses.asdict(pair) for pair in pairs], shown]
    return Poll(digest(spec)[:16], arm, rival, pairs), chosen


def read_key(folder: Path) -> dict[str, Poll]:
    """All polls ever made in a folder, by id; none where there is no key yet.

    Raises:
        InputError: the key is not one, or was changed.
    """
    path = folder / KEY_FILE
    try:
        polls = json.loads(path.read_bytes())["polls"]
        return {str(name): _poll(str(name), poll) for name, poll in polls.items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is no key to a vote; put it back as it was, or move it and its votes away"
        ) from error


def _both(results: Results, arm: int, rival: int) -> dict[int, list[tuple[Sample, Sample]]]:
    """By prompt, the samples of both arms that start from the same noise and are there."""
    found: dict[tuple[int, int, int], Sample] = {
        (one.arm, one.prompt, one.replicate): one
        for one in results.samples
        if one.status == "done" and one.image and not one.flags  # as in the statistics
    }
    both: dict[int, list[tuple[Sample, Sample]]] = {}
    for (owner, prompt, replicate), ours in sorted(found.items(), key=lambda item: item[0]):
        if owner == arm and (theirs := found.get((rival, prompt, replicate))):
            both.setdefault(prompt, []).append((ours, theirs))
    return both


def _poll(name: str, data: Mapping[str, Any]) -> Poll:
    pairs = tuple(
        Pair(str(pair["prompt"]), int(pair["replicate"]), bool(pair["arm_left"]))
        for pair in data["pairs"]
    )
    return Poll(name, str(data["arm"]), str(data["rival"]), pairs)
