"""`read_votes` and `fold_votes`: what people said, as one more score."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2sdiff.bench.report.poll import Poll, read_key
from w2sdiff.bench.results import Results, ScorerFacts
from w2sdiff.errors import InputError
from w2sdiff.jobs import digest

__all__ = ["Vote", "Votes", "fold_votes", "read_votes"]

FORMAT = "w2sdiff votes"
_VALUES = {"arm": 1.0, "tie": 0.5, "rival": 0.0}
_MAX_BYTES = 1_000_000
_VOTER = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True)
class Vote:
    """What one voter said of one pair: 1 for the arm, 0 for the rival, 0.5 for neither."""

    arm: str
    rival: str
    prompt: str
    replicate: int
    voter: str
    value: float


@dataclass(frozen=True)
class Votes:
    """All votes of a folder, and the files that were refused, with the reason."""

    votes: tuple[Vote, ...]
    refused: tuple[tuple[Path, str], ...] = ()

    @property
    def voters(self) -> int:
        """How many people voted."""
        return len({vote.voter for vote in self.votes})


@dataclass(frozen=True)
class _Ballot:
    poll: Poll
    voter: str
    choices: Mapping[int, str]


def read_votes(folder: Path, files: Iterable[Path] = ()) -> Votes:
    """Read `votes/*.json` of a folder, and further files, with the key that lies in the folder.

    A file counts whole or not at all: one that is not of this folder's polls, or was changed into
    something the page does not write, is refused with a reason. Of several files of one voter on
    one poll, saves at different times, the one with the most votes counts.

    Raises:
        InputError: the key is damaged.

    Example:
        >>> read_votes(Path("a folder without votes"))
        Votes(votes=(), refused=())
    """
    polls = read_key(folder)
    ballots: dict[tuple[str, str], _Ballot] = {}
    refused = []
    paths = [*sorted((folder / "votes").glob("*.json")), *files]
    for path in dict.fromkeys(path.resolve() for path in paths):
        try:
            ballot = _ballot(path, polls)
        except InputError as error:
            refused.append((path, str(error)))
            continue
        known = ballots.get((ballot.poll.id, ballot.voter))
        if known is None or len(ballot.choices) > len(known.choices):
            ballots[ballot.poll.id, ballot.voter] = ballot
    votes = (vote for _, ballot in sorted(ballots.items()) for vote in _votes(ballot))
    return Votes(tuple(votes), tuple(refused))


def fold_votes(results: Results, votes: Votes) -> Results:
    """The same results with the votes as one more score, from 0 (lost) to 1 (won).

    The picture of the arm gets the mean over voters, that of the rival the rest to 1, so that the
    statistics of every score serve: the unit stays the prompt, however many people looked. Pairs
    of arms never share a score: what was voted between two says nothing about a third. The score
    is called `votes` if one pair was voted on, `votes: ARM / RIVAL` if several were.

    Votes on arms or prompts that these results do not have (the run was cut or changed since) take
    no part; provenance counts them.
    """
    arms = {arm.name: n for n, arm in enumerate(results.arms)}
    prompts = {prompt.id: n for n, prompt in enumerate(results.prompts)}
    cast = [
        vote
        for vote in votes.votes
        if vote.arm in arms and vote.rival in arms and vote.prompt in prompts
    ]
    if not cast:
        return results
    pairs = list(dict.fromkeys((vote.arm, vote.rival) for vote in cast))
    names = {pair: "votes" if len(pairs) == 1 else f"votes: {' / '.join(pair)}" for pair in pairs}
    said: dict[tuple[int, int, int], dict[str, list[float]]] = {}
    for vote in cast:
        name = names[vote.arm, vote.rival]
        for arm, value in ((vote.arm, vote.value), (vote.rival, 1 - vote.value)):
            place = (arms[arm], prompts[vote.prompt], vote.replicate)
            said.setdefault(place, {}).setdefault(name, []).append(value)
    samples = []
    for one in results.samples:
        own = said.get((one.arm, one.prompt, one.replicate), {})
        means = {name: sum(values) / len(values) for name, values in own.items()}
        samples.append(dataclasses.replace(one, scores={**one.scores, **means}) if own else one)
    scorers = tuple(_facts(names[pair], pair, cast) for pair in pairs)
    left_out = len(votes.votes) - len(cast)
    counts = {"voters": votes.voters, "counted": len(cast), "left_out": left_out}
    return dataclasses.replace(
        results,
        samples=tuple(samples),
        scorers=(*results.scorers, *scorers),
        provenance={**results.provenance, "votes": counts},
    )


def _facts(name: str, pair: tuple[str, str], cast: Iterable[Vote]) -> ScorerFacts:
    own = [dataclasses.asdict(vote) for vote in cast if (vote.arm, vote.rival) == pair]
    fingerprint = {"scorer": "votes", "formula": "mean over voters", "votes": digest(own)}
    return ScorerFacts(
        name=name,
        group="exact",
        higher_is_better=True,
        expected=(0.0, 1.0),
        recipe=digest(fingerprint),
        fingerprint=fingerprint,
    )


def _votes(ballot: _Ballot) -> Iterable[Vote]:
    for number, choice in sorted(ballot.choices.items()):
        pair = ballot.poll.pairs[number]
        won = (
            choice if choice == "tie" else "arm" if (choice == "left") == pair.arm_left else "rival"
        )
        yield Vote(
            ballot.poll.arm,
            ballot.poll.rival,
            pair.prompt,
            pair.replicate,
            ballot.voter,
            _VALUES[won],
        )


def _ballot(path: Path, polls: Mapping[str, Poll]) -> _Ballot:
    """A file of votes, every word checked: it may come from anywhere."""
    data = _json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError("it is no file of votes")
    poll = polls.get(data["poll"]) if isinstance(data.get("poll"), str) else None
    if poll is None:
        raise InputError("it belongs to another poll: the key of this folder does not know it")
    voter = data.get("voter")
    if not isinstance(voter, str) or not _VOTER.fullmatch(voter):
        raise InputError("it does not say who voted, as a number in hexadecimal digits")
    if not isinstance(data.get("votes"), list):
        raise InputError("it has no list of votes")
    choices: dict[int, str] = {}
    for vote in data["votes"]:
        number, choice = (
            (vote.get("pair"), vote.get("choice")) if isinstance(vote, dict) else (0, 0)
        )
        if type(number) is not int or not 0 <= number < len(poll.pairs):
            raise InputError(f"it votes on a pair that the poll does not have: {number!r:.40}")
        if choice not in ("left", "right", "tie"):
            raise InputError(f"expected a vote for left, right or tie, got {choice!r:.40}")
        if number in choices:
            raise InputError(f"it votes twice on pair {number}")
        choices[number] = str(choice)
    return _Ballot(poll, voter, choices)


def _json(path: Path) -> Any:
    try:
        if not path.is_file():
            raise InputError("it is no file")
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"it is larger than {_MAX_BYTES:,} bytes")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"it cannot be read: {error.strerror or error}") from error
    except InputError:
        raise
    except (ValueError, RecursionError):
        raise InputError("it is no JSON") from None
