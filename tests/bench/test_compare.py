"""Two arms from anywhere: pairing by prompt, and everything that must not be compared."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from bench import tiny_run
from bench.made import ARMS, SCORERS, made_prompts, made_results

from w2sdiff.bench.compare import Side, other_noise, read_sides, side_by_side
from w2sdiff.bench.folders.listing import Entry, Listing
from w2sdiff.bench.folders.scorefile import Scored, write_scored
from w2sdiff.bench.results import PromptFacts
from w2sdiff.bench.scoring.score import ScoreFacts
from w2sdiff.bench.stats.analyse import analyse
from w2sdiff.cli import main
from w2sdiff.errors import InputError


def side(arm: str, **options) -> Side:
    results = made_results(options.pop("folder", None), **options)
    return Side(results, results.arms[results.arm(arm)])


def test_two_arms_of_one_run_are_compared_as_in_the_run():
    run = made_results(prompts=30, replicates=2, failed=[(0, 3, 1)], gains={("w2sd", "shapes"): 1})
    joined = side_by_side(Side(run, run.arms[1]), Side(run, run.arms[0]))
    whole = [one for one in analyse(run, draws=500).comparisons if one.rival == "plain"]
    for one, other in zip(analyse(joined, draws=500).comparisons, whole, strict=True):
        assert dataclasses.replace(one, p_holm=0, detectable=0, outcome="better") == (
            dataclasses.replace(other, p_holm=0, detectable=0, outcome="better")
        )
    assert other_noise(joined) == (0, 59)


def test_a_rival_stays_one():
    run = made_results(prompts=30)
    joined = side_by_side(Side(run, run.arms[1]), Side(run, run.arms[3]))
    assert (
        analyse(joined)
        .judgements[0]
        .sentence.startswith("w2sd: no difference seen from w2sd = strength, of equal evaluations,")
    )
    turned = side_by_side(Side(run, run.arms[3]), Side(run, run.arms[1]))
    assert [arm.name for arm in turned.arms] == ["w2sd = strength", "w2sd"]
    assert {one.arm for one in analyse(turned).comparisons} == {"w2sd = strength"}


def test_prompts_are_paired_by_id_in_any_order(tmp_path):
    prompts = made_prompts(12)
    first = side("plain", folder=tmp_path / "a", prompts=prompts)
    second = side("plain", folder=tmp_path / "b", prompts=prompts[:1:-1], seed=1)
    joined = side_by_side(first, second)
    assert [arm.name for arm in joined.arms] == ["a: plain", "b: plain"]
    values = joined.values["shapes"]
    np.testing.assert_array_equal(values[0], first.results.values["shapes"][0])
    np.testing.assert_array_equal(values[1, 2:], second.results.values["shapes"][0, ::-1])
    assert np.isnan(values[1, :2]).all()
    one = analyse(joined).comparisons[0]
    assert (one.difference.n, one.excluded) == (10, 2)
    for sample in joined.samples:
        assert (sample.image is None) or (joined.folder / sample.image).is_file()


def test_one_id_with_two_prompts_is_refused_by_name():
    other = [PromptFacts("0000", "something else"), *made_prompts(5)[1:]]
    with pytest.raises(
        InputError, match="'0000' is 'made-up prompt number 0' on one side and 'som"
    ):
        side_by_side(side("plain", prompts=5), side("w2sd", prompts=other))


def test_pictures_without_prompts_take_them_from_the_other_side():
    bare = [dataclasses.replace(prompt, text="", category="") for prompt in made_prompts(5)]
    joined = side_by_side(side("plain", prompts=bare), side("w2sd", prompts=5))
    assert joined.prompts == made_prompts(5)


def test_other_recipes_are_refused_and_both_named():
    other = dataclasses.replace(SCORERS[2], recipe="f" * 64, fingerprint={"formula": "other"})
    second = side("w2sd", scorers=(*SCORERS[:2], other))
    with pytest.raises(InputError, match=f"'shapes'.*{SCORERS[2].recipe[:12]} and ffffffffffff"):
        side_by_side(side("plain"), second)
    joined = side_by_side(side("plain"), second, ["aesthetic"])  # a score with one recipe is fine
    assert [scorer.name for scorer in joined.scorers] == ["aesthetic"]


def test_scorers():
    first, second = side("plain", scorers=SCORERS[:3]), side("w2sd", scorers=SCORERS[:0:-1])
    joined = side_by_side(first, second)
    assert [scorer.name for scorer in joined.scorers] == ["aesthetic", "shapes"]
    with pytest.raises(InputError, match="Did you mean 'aesthetic'"):
        side_by_side(first, second, ["aestetic"])
    with pytest.raises(InputError, match="no scorer in common"):
        side_by_side(side("plain", scorers=SCORERS[:1]), second)


def test_a_scorer_that_is_not_asked_for_takes_nothing_out():
    second = side("w2sd", prompts=4)
    flagged = [
        dataclasses.replace(one, flags=("hpsv2.1: not a number",)) for one in second.results.samples
    ]
    second = Side(dataclasses.replace(second.results, samples=tuple(flagged)), second.arm)
    joined = side_by_side(side("plain", prompts=4), second, ["shapes"])
    assert analyse(joined).comparisons[0].difference.n == 4


def test_different_noise_is_seen():
    second = side("w2sd", prompts=4)
    samples = [dataclasses.replace(one, noise="0" * 64) for one in second.results.samples]
    second = Side(dataclasses.replace(second.results, samples=tuple(samples)), second.arm)
    assert other_noise(side_by_side(side("plain", prompts=4), second)) == (4, 4)


def scored_folder(folder, arm: int, *, prompts=30, gains=None):
    """What `w2sdiff score` leaves behind."""
    results = made_results(folder, prompts=prompts, arms=ARMS[:2], gains=gains)
    own = [sample for sample in results.samples if sample.arm == arm]
    entries = [
        Entry(results.prompts[one.prompt].id, folder / one.image, results.prompts[one.prompt].text)
        for one in own
    ]
    entries = [dataclasses.replace(e, sha256=s.sha256) for e, s in zip(entries, own, strict=True)]
    scores = [{name: ScoreFacts(score) for name, score in one.scores.items()} for one in own]
    write_scored(Scored(Listing("order", tuple(entries)), SCORERS, tuple(scores)), folder)
    return folder


def test_scored_folders_on_the_command_line(tmp_path, capsys):
    gains = {("w2sd", "aesthetic"): 2.0}
    a = scored_folder(tmp_path / "a", 1, gains=gains)
    b = scored_folder(tmp_path / "b", 0, gains=gains)
    assert main(["compare", str(a), str(b)]) == 0
    said = capsys.readouterr().out
    assert "a: better than b by aesthetic (+" in said
    assert "evaluations are not known" in said
    assert main(["compare", str(a), str(b), "--json", "--scorer", "aesthetic"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["comparisons", "judgement"]
    [one] = events[0]["comparisons"]
    assert (one["outcome"], one["difference"]["n"]) == ("better", 30)


@pytest.mark.slow
def test_arms_of_a_run_on_the_command_line(tmp_path, capsys):
    tiny_run.run(tmp_path, tiny_run.read(tmp_path, limit=2, rivals=False))
    place = tmp_path / "run"
    capsys.readouterr()
    assert main(["compare", f"{place}:w2sd", f"{place}:plain", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {one["scorer"]: one for one in events[0]["comparisons"]}
    assert {one["difference"]["n"] for one in found.values()} == {2}
    summary = json.loads((place / "summary.json").read_text("utf-8"))
    for one in summary["comparisons"]:
        assert found[one["scorer"]]["difference"] == one["difference"]


def test_a_report_is_written_where_it_is_asked_for(tmp_path, capsys):
    a, b = scored_folder(tmp_path / "a", 1), scored_folder(tmp_path / "b", 0)
    assert main(["compare", str(a), str(b), "--out", str(tmp_path / "out")]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"index.html", "summary.json", "summary.csv", "cells.csv", "summary.md"}
    assert str(tmp_path / "out" / "index.html") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "none"], "expected a run or scored folder, or FOLDER:ARM, got 'none'"),
        (["a", "none:w2sd"], "got 'none:w2sd'"),
        (["a", "a"], "expected two different arms, got 'a' twice"),
        (["a", "a:b"], "Unknown arm 'b'"),
        (["a", "empty"], "has no scores"),
        (["a", "other"], "no prompt has a score on both sides"),
        (["a", "b", "--scorer", "shape"], "Did you mean 'shapes'"),
    ],
)
def test_what_cannot_be_compared(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    scored_folder(tmp_path / "a", 1, prompts=3)
    scored_folder(tmp_path / "b", 0, prompts=3)
    scored_folder(tmp_path / "other", 0, prompts=[PromptFacts("x", "another prompt")])
    (tmp_path / "empty").mkdir()
    assert main(["compare", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_a_folder_of_several_arms_asks_which(tmp_path):
    results = made_results(tmp_path, prompts=2, arms=ARMS[:2])
    names = ["plain", "w2sd: more: steps"]  # rivals are called so
    entries = tuple(
        Entry(str(one.prompt), tmp_path / one.image, "p", arm=names[one.arm], sha256=one.sha256)
        for one in results.samples
    )
    scores = tuple({"shapes": ScoreFacts(one.scores["shapes"])} for one in results.samples)
    write_scored(Scored(Listing("run", entries), SCORERS[2:3], scores), tmp_path)
    with pytest.raises(InputError, match=r"holds 2 arms: say which one .*:ARM \('plain', 'w2sd: "):
        read_sides(str(tmp_path), str(tmp_path))
    first, second = read_sides(f"{tmp_path}:{names[1]}", f"{tmp_path}:plain")
    assert (first.arm.name, second.arm.name) == (names[1], "plain")
    assert first.results is second.results  # read once
