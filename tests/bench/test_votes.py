"""The blind vote without a browser: nothing is given away, nothing false gets in."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re

import numpy as np
import pytest
from bench.made import ARMS, SCORERS, made_prompts, made_results
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from w2sdiff.bench.report import fold_votes, read_votes, write_vote_page
from w2sdiff.bench.stats.analyse import analyse
from w2sdiff.errors import InputError
from w2sdiff.imaging import png_bytes

VOTERS = ("aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb")


@pytest.fixture
def run(tmp_path):
    return made_results(tmp_path, prompts=8, scorers=SCORERS[:1])


def poll_of(folder):
    [(name, poll)] = json.loads((folder / "vote-key.json").read_text())["polls"].items()
    return name, poll["pairs"]


def ballot(folder, choices, *, voter=VOTERS[0], name=None, **changes):
    """A file as the page saves it; `changes` spoil it."""
    poll, _ = poll_of(folder)
    votes = [{"pair": n, "choice": choice} for n, choice in enumerate(choices)]
    data = {"format": "w2sdiff votes", "poll": poll, "voter": voter, "votes": votes} | changes
    (folder / "votes").mkdir(exist_ok=True)
    path = folder / "votes" / (name or f"votes-{voter}.json")
    path.write_text(json.dumps(data))
    return path


def for_arm(pair):
    return "left" if pair["arm_left"] else "right"


def test_page_does_not_say_whose_pictures_it_shows(tmp_path):
    run = made_results(tmp_path, prompts=8, scorers=SCORERS[:1], title="w2sd, at last")
    for sample in run.samples:  # as `generate` writes them, with the method inside
        path = tmp_path / sample.image
        method = {"method": run.arms[sample.arm].name}
        path.write_bytes(png_bytes(Image.open(path), method))
    page = write_vote_page(run, "w2sd", "w2sd = steps", tmp_path)[0].read_text("utf-8")
    blocks = re.findall(r"data:image/webp;base64,([^\"]+)", page)
    assert len(blocks) == 16
    words = re.sub(r"base64,[^\"]+", "", page)
    pictures = b"".join(map(base64.b64decode, blocks))
    for secret in ("w2sd =", "w2sd,", "images/", "arm_left", run.samples[0].sha256):
        assert secret not in words
    assert words.count("w2sd") == words.count("w2sdiff")  # the tool's own name
    assert b"method" not in pictures


def test_left_and_right_by_chance_each_prompt_once_same_seed_same_page(tmp_path):
    prompts = made_prompts(120)
    run = made_results(
        tmp_path, arms=ARMS[:2], prompts=prompts, scorers=SCORERS[:1], replicates=2, size=8
    )
    first = [path.read_bytes() for path in write_vote_page(run, "w2sd", "plain", tmp_path)]
    _, pairs = poll_of(tmp_path)
    assert len({pair["prompt"] for pair in pairs}) == 100
    assert 30 < sum(pair["arm_left"] for pair in pairs) < 70
    assert {pair["replicate"] for pair in pairs} == {0, 1}
    assert [pair["prompt"] for pair in pairs] != sorted(pair["prompt"] for pair in pairs)
    again = [path.read_bytes() for path in write_vote_page(run, "w2sd", "plain", tmp_path)]
    assert first == again
    write_vote_page(run, "w2sd", "plain", tmp_path, seed=1, count=5)
    polls = json.loads((tmp_path / "vote-key.json").read_text())["polls"]
    assert [len(poll["pairs"]) for poll in polls.values()] == [100, 5]  # the earlier key is kept


def test_two_voters_are_averaged_and_the_prompt_stays_the_unit(run):
    folder = run.folder
    write_vote_page(run, "w2sd", "plain", folder)
    _, pairs = poll_of(folder)
    ballot(folder, [for_arm(pair) for pair in pairs])
    ballot(folder, ["tie"] * 6, voter=VOTERS[1])  # stopped after six
    votes = read_votes(folder)
    assert (votes.voters, len(votes.votes), votes.refused) == (2, 14, ())
    folded = fold_votes(run, votes)
    ours = folded.values["votes"][run.arm("w2sd"), :, 0]
    theirs = folded.values["votes"][run.arm("plain"), :, 0]
    expected = {int(pair["prompt"]): 0.75 if n < 6 else 1.0 for n, pair in enumerate(pairs)}
    assert list(ours) == [expected[n] for n in range(8)]
    assert np.allclose(ours + theirs, 1)
    assert np.isnan(folded.values["votes"][run.arm("w2sd = steps")]).all()
    [found] = [
        one
        for one in analyse(folded, draws=200, all_pairs=True).comparisons
        if one.scorer == "votes" and one.difference.n
    ]
    assert {found.arm, found.rival} == {"w2sd", "plain"}
    assert found.difference.n == 8
    assert (found.wins, found.ties, found.losses) in ((8, 0, 0), (0, 0, 8))


def test_votes_on_two_pairs_are_two_scores(run):
    for rival in ("plain", "w2sd = steps"):
        write_vote_page(run, "w2sd", rival, run.folder)
    polls = json.loads((run.folder / "vote-key.json").read_text())["polls"]
    (run.folder / "votes").mkdir()
    for poll in polls:
        data = {"format": "w2sdiff votes", "poll": poll, "voter": VOTERS[0]}
        data["votes"] = [{"pair": 0, "choice": "left"}]
        (run.folder / "votes" / f"{poll}.json").write_text(json.dumps(data))
    folded = fold_votes(run, read_votes(run.folder))
    names = [scorer.name for scorer in folded.scorers[1:]]
    assert sorted(names) == ["votes: w2sd / plain", "votes: w2sd / w2sd = steps"]
    assert len({scorer.recipe for scorer in folded.scorers}) == 3


def test_an_earlier_save_of_the_same_voter_counts_once(run):
    write_vote_page(run, "w2sd", "plain", run.folder)
    _, pairs = poll_of(run.folder)
    ballot(run.folder, ["left"] * 3, name="a.json")
    late = ballot(run.folder, [for_arm(pair) for pair in pairs], name="b.json")
    ballot(run.folder, ["right"] * 2, name="c.json")
    votes = read_votes(run.folder, [late])  # and a file named twice is read once
    assert [vote.value for vote in votes.votes] == [1.0] * 8


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "something else"}, "no file of votes"),
        ({"poll": "0123456789abcdef"}, "another poll"),
        ({"poll": ["list"]}, "another poll"),
        ({"voter": "../../etc/passwd"}, "who voted"),
        ({"voter": None}, "who voted"),
        ({"votes": "many"}, "no list"),
        ({"votes": [{"pair": 8, "choice": "left"}]}, "does not have: 8"),
        ({"votes": [{"pair": -1, "choice": "left"}]}, "does not have: -1"),
        ({"votes": [{"pair": True, "choice": "left"}]}, "does not have: True"),
        ({"votes": [{"pair": 0, "choice": "w2sd"}]}, "expected a vote for left"),
        ({"votes": [{"pair": 0, "choice": ["left"]}]}, "expected a vote for left"),
        ({"votes": [{"pair": 1, "choice": "left"}] * 2}, "twice on pair 1"),
        ({"votes": ["left"]}, "expected a vote"),
    ],
)
def test_a_spoilt_file_is_refused_by_name_and_the_others_count(run, changes, reason):
    write_vote_page(run, "w2sd", "plain", run.folder)
    ballot(run.folder, ["left"] * 8)
    spoilt = ballot(run.folder, [], name="spoilt.json", **{"voter": VOTERS[1], **changes})
    votes = read_votes(run.folder)
    assert len(votes.votes) == 8
    [(path, said)] = votes.refused
    assert path == spoilt.resolve()
    assert reason in said


def test_what_is_no_json_too_large_or_not_there_is_refused(run):
    write_vote_page(run, "w2sd", "plain", run.folder)
    folder = run.folder / "votes"
    folder.mkdir()
    (folder / "a.json").write_bytes(b"\xff\xfe not json")
    (folder / "b.json").write_text("[" * 100_000)
    (folder / "c.json").write_text(" " * 1_000_001)
    (folder / "d.json").mkdir()
    votes = read_votes(run.folder, [run.folder / "nowhere.json"])
    assert [path.name for path, _ in votes.refused] == [
        "a.json", "b.json", "c.json", "d.json", "nowhere.json",
    ]  # fmt: skip
    assert votes.votes == ()
    assert fold_votes(run, votes) is run


@given(
    data=st.recursive(
        st.none() | st.booleans() | st.integers(-2, 9) | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["votes", "poll", "pair", "choice"]), inner)
        ),
        max_leaves=12,
    )
)
def test_any_json_is_votes_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "votes").mkdir()
    pairs = [{"prompt": "0", "replicate": 0, "arm_left": True}]
    key = {"polls": {"p": {"arm": "a", "rival": "b", "pairs": pairs}}}
    (folder / "vote-key.json").write_text(json.dumps(key))
    file = {"format": "w2sdiff votes", "poll": "p", "voter": VOTERS[0], "votes": data}
    (folder / "votes" / "x.json").write_text(json.dumps(file))
    votes = read_votes(folder)
    assert len(votes.refused) == 1 or all(vote.value in (0, 0.5, 1) for vote in votes.votes)


def test_votes_on_what_the_run_no_longer_has_take_no_part(run):
    write_vote_page(run, "w2sd", "plain", run.folder)
    ballot(run.folder, ["tie"] * 8)
    votes = read_votes(run.folder)
    samples = tuple(one for one in run.samples if one.prompt < 3)
    shorter = fold_votes(dataclasses.replace(run, prompts=run.prompts[:3], samples=samples), votes)
    assert shorter.provenance["votes"] == {"voters": 1, "counted": 3, "left_out": 5}
    assert (shorter.values["votes"][: run.arm("w2sd = steps")] == 0.5).all()
    other = dataclasses.replace(run, arms=run.arms[:1], samples=run.samples[:8])
    assert fold_votes(other, votes) is other


def test_a_damaged_key_is_refused_and_not_overwritten(run):
    write_vote_page(run, "w2sd", "plain", run.folder)
    (run.folder / "vote-key.json").write_text('{"polls": {"x": {"arm": 1}}}')
    with pytest.raises(InputError, match="no key to a vote"):
        read_votes(run.folder)
    with pytest.raises(InputError, match="no key to a vote"):
        write_vote_page(run, "w2sd", "plain", run.folder)


@pytest.mark.parametrize(
    ("arm", "rival", "count", "message"),
    [
        ("w2sd", "nobody", 5, "no arm 'nobody'; it has: plain, w2sd"),
        ("w2sd", "w2sd", 5, "two different arms"),
        ("w2sd", "plain", 0, "at least one pair"),
    ],
)
def test_a_vote_that_cannot_be_held_is_said_in_one_line(run, arm, rival, count, message):
    with pytest.raises(InputError, match=message):
        write_vote_page(run, arm, rival, run.folder, count=count)


def test_pictures_that_do_not_count_are_not_voted_on(tmp_path):
    run = made_results(tmp_path, prompts=4, missing=[(0, 0, 0)], failed=[(1, 1, 0)])
    flagged = [
        dataclasses.replace(
            one, flags=("of one colour",) if (one.arm, one.prompt) == (0, 2) else ()
        )
        for one in run.samples
    ]
    run = dataclasses.replace(run, samples=tuple(flagged))
    write_vote_page(run, "w2sd", "plain", tmp_path)
    _, pairs = poll_of(tmp_path)
    assert [pair["prompt"] for pair in pairs] == ["0003"]
    nothing = dataclasses.replace(run, samples=run.samples[:4])
    with pytest.raises(InputError, match="no prompt of which both"):
        write_vote_page(nothing, "w2sd", "plain", tmp_path)


def test_vote_pictures_are_large_enough_to_judge(tmp_path):
    run = made_results(tmp_path, prompts=1, size=900, scorers=SCORERS[:1])
    page = write_vote_page(run, "w2sd", "plain", tmp_path)[0].read_text("utf-8")
    data = re.search(r"data:image/webp;base64,([^\"]+)", page)[1]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (768, 768)
