"""Whole runs on a tiny pipeline: what is made once, what is made again, what is only counted."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
from bench import tiny_run
from bench.tiny_run import Stop, read, records, run, summaries
from model_folders import model_folder

from w2sdiff.bench.plan.drawings import Shard
from w2sdiff.bench.run.collect import read_results
from w2sdiff.bench.run.forecast import forecast
from w2sdiff.errors import InputError
from w2sdiff.jobs import digest
from w2sdiff.prompts import load_set
from w2sdiff.scorers import parse_scorer

LEDGERS = ("images", "scores", "strength")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, its experiment and its outcome: to be looked at and copied, not changed."""
    folder = tmp_path_factory.mktemp("finished")
    experiment = read(folder)
    return folder, experiment, run(folder, experiment)


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run that a test may damage."""
    shutil.copytree(finished[0] / "run", tmp_path / "run")
    return tmp_path


def made(folder):
    return {ledger: len(records(folder, ledger)) for ledger in LEDGERS}


def test_a_run_is_whole_matched_and_paired(finished):
    folder, _, outcome = finished
    assert outcome.complete
    results = outcome.results
    [plain, w2sd, *rivals] = results.arms
    assert {rival.match for rival in rivals} >= {"evaluations", "strength", "best of n"}
    assert all(rival.evaluations <= w2sd.evaluations for rival in rivals)
    assert plain.strength == 3.0
    assert 3 < w2sd.strength < 5
    assert len(results.samples) == len(results.arms) * 3
    for sample in results.samples:
        assert (sample.status, sample.flags) == ("done", ())
        assert set(sample.scores) == {"saturation", "contrast"}
        assert (folder / "run" / sample.image).is_file()
    for prompt in range(3):
        first = next(s for s in results.samples if s.prompt == prompt and s.arm == 0)
        same = [s for s in results.samples if s.prompt == prompt and s.noise == first.noise]
        assert len(same) >= len(results.arms) - 1, "all but best-of-n start from one noise"


def test_the_counted_evaluations_are_the_planned_ones(finished):
    folder, _, outcome = finished
    planned = {arm.name: arm.evaluations for arm in outcome.results.arms if "best" not in arm.name}
    for record in records(folder).values():
        if record["facts"]["arm"] in planned:
            assert record["facts"]["evaluations"] == planned[record["facts"]["arm"]]


def test_the_best_of_n_is_the_best_by_the_scorer_that_chooses(finished):
    from PIL import Image

    folder, _, outcome = finished
    results = outcome.results
    arm = next(i for i, arm in enumerate(results.arms) if arm.match == "best of n")
    [own] = {r["facts"]["arm"] for r in records(folder).values() if "best" in r["facts"]["arm"]}
    scorer = parse_scorer("sharpness")
    for sample in (s for s in results.samples if s.arm == arm):
        prompt = results.prompts[sample.prompt].text
        files = [
            next(iter(r["files"]))
            for r in records(folder).values()
            if r["facts"]["arm"] == own and r["spec"]["prompt"] == prompt
        ]
        assert len(files) == 3
        images = [Image.open(folder / "run" / "images" / name) for name in files]
        values = scorer.score(images, [prompt] * len(images))
        assert sample.image == f"images/{files[int(values.argmax())]}"


def test_the_same_command_again_makes_nothing_and_says_the_same(copy, finished):
    _, experiment, _ = finished
    before, counts = summaries(copy), made(copy)
    outcome = run(copy, experiment)
    assert outcome.complete
    assert outcome.drawn.made == outcome.scored.made == 0
    assert (summaries(copy), made(copy)) == (before, counts)


def test_an_arm_or_a_scorer_more_repeats_nothing(copy):
    arms = {**tiny_run.ARMS, "ag": {"method": "autoguidance", "strong": "guidance=1"}}
    more = read(copy, arms=arms, scorers=["saturation", "contrast", "clipping"], rivals=False)
    before = records(copy)
    outcome = run(copy, more)
    assert (outcome.drawn.made, outcome.drawn.found) == (3, 6)
    after = records(copy)
    assert {key: after[key] for key in before} == before
    # A batch of scores that is half there is made whole, without scoring again what is there.
    assert outcome.complete


def test_stopped_and_taken_up_again_it_is_the_same_run(tmp_path, finished):
    folder, _, _ = finished
    experiment = read(tmp_path)
    for where in (("measuring", 1), ("drawing", 5), ("choosing", 3), ("scoring", 9)):
        outcome = run(tmp_path, experiment, Stop(*where))
        assert outcome.stopped
        assert not outcome.complete
    assert run(tmp_path, experiment).complete
    assert summaries(tmp_path) == summaries(folder)
    assert records(tmp_path).keys() == records(folder).keys()


def test_shards_and_limits_are_parts_of_the_whole(tmp_path):
    experiment = read(tmp_path, rivals=False)
    run(tmp_path, tiny_run.changed(experiment, limit=2), conclude=False)
    limited = records(tmp_path).keys()
    for number in (1, 2, 3):
        part = run(tmp_path, experiment, shard=Shard(number, 3))
        assert part.results is None
    outcome = run(tmp_path, experiment)
    assert outcome.complete
    assert outcome.drawn.made == 0
    assert limited < records(tmp_path).keys()
    assert outcome.drawn.found == 6
    whole = tmp_path / "whole"
    run(whole, experiment)
    assert summaries(tmp_path) == summaries(whole)


def test_replicates_have_their_own_noise_and_a_score_of_the_whole_group(tmp_path):
    experiment = read(tmp_path, arms={"plain": {"method": "plain"}}, limit=2, replicates=2)
    experiment = dataclasses.replace(experiment, scorers=(parse_scorer("diversity"),))
    outcome = run(tmp_path, experiment)
    assert outcome.complete
    samples = outcome.results.samples
    assert len({sample.noise for sample in samples}) == 4
    values = [sample.scores["diversity"] for sample in samples]
    assert values[0] == values[1]
    assert values[2] == values[3]


def test_results_are_read_where_the_model_is_not(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(model_folder("sd", weak=True), model)
    experiment = read(tmp_path, model=str(model), limit=1, rivals=False)
    outcome = run(tmp_path, experiment)
    shutil.rmtree(model)
    moved = tmp_path / "moved"
    (tmp_path / "run").rename(moved)
    assert [s.scores for s in read_results(moved).samples] == [
        s.scores for s in outcome.results.samples
    ]
    assert str(tmp_path) not in (moved / "summary.json").read_text()


def test_an_arm_that_the_pipeline_cannot_do_fails_alone(tmp_path):
    arms = {
        "plain": {"method": "plain"},
        "odd": {"method": "w2sd", "strong": "guidance=1", "weak": "guidance=0"},
    }
    arms["odd"]["scheduler"] = "heun"
    outcome = run(tmp_path, dataclasses.replace(read(tmp_path, arms=arms), rivals=False))
    status = [sample.status for sample in outcome.results.samples]
    assert not outcome.complete
    assert status == ["done"] * 3 + ["failed"] * 3
    assert all(s.reason for s in outcome.results.samples if s.status == "failed")


@pytest.mark.parametrize("damage", ["truncated picture", "half a record", "another's record"])
def test_what_is_damaged_is_made_again_and_nothing_else(copy, finished, damage, caplog):
    folder, experiment, _ = finished
    key, record = sorted(records(copy).items())[0]
    place = copy / "run" / "images"
    path = place / "records" / f"{key}.json"
    match damage:
        case "truncated picture":
            [name] = record["files"]
            (place / name).write_bytes((place / name).read_bytes()[:-40])
        case "half a record":
            path.write_bytes(path.read_bytes()[:100])
        case "another's record":
            other = sorted(records(copy))[1]
            path.write_bytes((place / "records" / f"{other}.json").read_bytes())
    with caplog.at_level(logging.WARNING, "w2sdiff"):
        outcome = run(copy, experiment)
    assert outcome.complete
    assert outcome.drawn.made == 2, "the batch it was in"
    assert outcome.scored.made == 0, "the same bytes have their scores"
    assert "made again" in caplog.text
    assert summaries(copy) == summaries(folder)


def test_foreign_files_are_left_alone(copy, finished):
    _, experiment, _ = finished
    for name in (
        "images/holiday.jpg",
        "images/records/notes.json",
        "scores/records/x.json",
        "a.txt",
    ):
        (copy / "run" / name).write_bytes(b"\xff\xfe{")
    before = summaries(copy)
    assert run(copy, experiment).drawn.made == 0
    assert summaries(copy) == before
    assert (copy / "run" / "images" / "holiday.jpg").read_bytes() == b"\xff\xfe{"


def edit(folder, where, change):
    """Rewrite the facts of the records of some pictures, as an older or odd run may have them."""
    for path in (folder / "run" / "images" / "records").glob("*.json"):
        record = json.loads(path.read_text("utf-8"))
        if where(record):
            record["facts"] |= change
            path.write_text(json.dumps(record), "utf-8")


def test_equal_pictures_of_two_prompts_are_flagged(copy):
    edit(copy, lambda record: record["facts"]["arm"] == "plain", {"pixels": "0" * 64})
    samples = read_results(copy / "run").samples[:3]
    assert [len(sample.flags) for sample in samples] == [0, 1, 1]
    assert "same picture as plain, prompt" in samples[1].flags[0]


def test_other_noise_and_other_cost_are_flagged(copy):
    edit(copy, lambda record: record["facts"]["arm"] == "w2sd", {"noise": "0" * 64})
    edit(copy, lambda record: record["facts"]["arm"] == "plain", {"evaluations": 1})
    results = read_results(copy / "run")
    flags = {results.arms[sample.arm].name: sample.flags for sample in results.samples}
    assert flags["w2sd"] == ("other start noise than plain",)
    assert flags["plain"] == ("1 evaluations, not the 4 that were planned",)


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path, finished):
    _, experiment, _ = finished
    (tmp_path / "run").write_text("a file")
    with pytest.raises(InputError, match="not a folder"):
        run(tmp_path, experiment)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_clear_error(tmp_path, finished):
    _, experiment, _ = finished
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(InputError, match="permission denied"):
        run(tmp_path, experiment)


def test_a_full_disk_ends_the_run_and_the_rest_follows_later(tmp_path, finished, monkeypatch):
    folder, experiment, _ = finished
    sync, left = os.fsync, [9]

    def full(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="the disk is full"):
            run(tmp_path, experiment)
    assert run(tmp_path, experiment).complete
    assert summaries(tmp_path) == summaries(folder)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"schema": 2}', '{"schema": 1, "title": 3}'])
def test_a_damaged_manifest_says_what_to_do(tmp_path, content):
    (tmp_path / "experiment.json").write_text(content)
    with pytest.raises(InputError, match=r"bench again|another version"):
        read_results(tmp_path)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        read_results(tmp_path)


def test_a_forecast_counts_exactly_and_writes_nothing(tmp_path, finished):
    folder, experiment, outcome = finished
    prompts = load_set(experiment.prompts, limit=experiment.limit)
    before = forecast(experiment, prompts, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert before.unmeasured == ("w2sd",)
    assert before.there == 0
    assert before.seconds > 0
    after = forecast(experiment, prompts, folder / "run")
    assert (after.left, after.seconds, after.unmeasured) == (0, None, ())
    assert after.pictures == after.there == outcome.drawn.made
    spent = sum(record["facts"]["evaluations"] for record in records(folder).values())
    assert after.evaluations == spent


def test_no_path_of_this_machine_decides_a_key(finished):
    folder, _, _ = finished
    for record in records(folder).values():
        assert digest(record["spec"]) == record["key"]
        assert str(Path(model_folder("sd", weak=True, lora=True)).parent) not in json.dumps(
            record["spec"]
        )


def test_arms_of_other_latents_have_other_noise_and_no_flag(tmp_path):
    arms = {"plain": {"method": "plain"}, "large": {"method": "plain", "size": 24}}
    results = run(tmp_path, read(tmp_path, arms=arms, limit=1, rivals=False)).results
    assert len({sample.noise for sample in results.samples}) == 2
    assert [sample.flags for sample in results.samples] == [(), ()]
