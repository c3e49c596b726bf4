"""`w2sdiff report` as people type it: on a run, on scored folders, with votes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from bench import tiny_run
from PIL import Image

from w2sdiff.cli import main

TABLES = {"summary.json", "summary.csv", "cells.csv", "summary.md"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        experiment = tiny_run.read(folder, rivals=False, select=None)
        tiny_run.run(folder, experiment)
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(finished, tmp_path / "run"))


def report(capsys, *words):
    """Exit code, events on stdout and words on stderr."""
    code = main(["report", *map(str, words), "--json"])
    said = capsys.readouterr()
    return code, [json.loads(line) for line in said.out.splitlines()], said.err


def vote(run, poll, count, voter="0123456789abcdef"):
    votes = [{"pair": n, "choice": "left"} for n in range(count)]
    data = {"format": "w2sdiff votes", "poll": poll, "voter": voter, "votes": votes}
    (run / "votes").mkdir(exist_ok=True)
    path = run / "votes" / f"votes-{voter}.json"
    path.write_text(json.dumps(data))
    return path


def test_run_becomes_pages_and_tables(run, capsys):
    code, events, _ = report(capsys, run)
    assert code == 0
    files = {Path(event["file"]) for event in events if event["event"] == "file"}
    pages = {"index.html", "plots/quality.png", "plots/wins.png"}
    assert files == {run / name for name in pages | TABLES}
    assert all(path.stat().st_size for path in files)
    verdicts = {event["arm"]: event for event in events if event["event"] == "verdict"}
    assert set(verdicts) == {"plain", "w2sd"}
    page = (run / "index.html").read_text("utf-8")
    assert page.count("data:image/webp") == 6
    assert '"href":"images/' in page


def test_only_tables_and_elsewhere(run, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    code, _, _ = report(capsys, run, "--out", tmp_path / "there", "--no-html")
    assert code == 0
    assert {path.name for path in (tmp_path / "there").iterdir()} == TABLES
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_votes_come_back_as_a_score(run, capsys):
    code, _, _ = report(capsys, run, "--vote-page", "w2sd", "plain", "--pairs", "2", "--no-html")
    assert code == 0
    [(poll, key)] = json.loads((run / "vote-key.json").read_text())["polls"].items()
    assert (key["arm"], key["rival"], len(key["pairs"])) == ("w2sd", "plain", 2)
    vote(run, poll, 2)
    code, _, said = report(capsys, run, "--no-html")
    assert code == 0
    assert "votes: 2 of 2 count" in said
    assert '"votes"' in (run / "summary.json").read_text()
    stranger = vote(run, "another", 1, voter="fedcba9876543210")
    code, _, said = report(capsys, run, "--no-html")
    assert code == 1
    assert f"votes left out: {stranger}: it belongs to another poll" in said


def test_what_is_missing_is_said_and_is_the_exit_code(run, capsys):
    for path in list((run / "images" / "records").glob("*.json"))[:1]:
        path.unlink()
    code, _, said = report(capsys, run, "--no-html")
    assert code == 1
    assert "1 of 6 pictures are missing or failed" in said


def test_scored_folders_side_by_side(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for place, shift in (("one", 0), ("two", 60)):
        (tmp_path / place).mkdir()
        for n in range(3):
            picture = Image.new("RGB", (32, 32), (60 * n + shift, 20, 20))
            picture.save(tmp_path / place / f"{n}.png")
        assert main(["score", str(tmp_path / place), "--scorer", "saturation", "-q"]) == 0
    capsys.readouterr()
    both = [tmp_path / "one", tmp_path / "two"]
    code, _, said = report(capsys, *both)
    assert code == 2
    assert "--out" in said
    code, events, _ = report(capsys, *both, "--out", tmp_path / "out")
    assert code == 0
    page = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert page.count("data:image/webp") == 6
    assert "file" in {event["event"] for event in events}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "--vote-page", "w2sd", "nobody"], "no arm 'nobody'"),
        (["{run}", "--pictures", "-1"], "number of prompts to show"),
        (["{run}/nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_two(run, capsys, words, message):
    code, _, said = report(capsys, *(word.format(run=run) for word in words))
    assert code == 2
    assert message in said
    assert len(said.strip().splitlines()) == 1
