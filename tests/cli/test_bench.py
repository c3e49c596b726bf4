"""`w2sdiff bench`: what it says, what it writes, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from bench.tiny_run import ARMS, file_of

from w2sdiff.cli import main


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def events(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_from_a_file_to_the_verdict_and_the_page(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = file_of(tmp_path, rivals=False, compare=[["w2sd", "plain"]])
    assert main(["bench", str(path)]) == 0
    said = capsys.readouterr()
    assert "w2sd: " in said.out
    assert "6 made" in said.err
    run = tmp_path / "runs" / "tiny"
    for name in ("index.html", "summary.md", "summary.csv", "summary.json", "timing.json"):
        assert (run / name).is_file()
    assert not list(run.rglob("claims"))
    assert main(["bench", str(path), "--json", "--no-report"]) == 0
    told = events(capsys)
    assert {event["event"] for event in told} == {"picture", "judgement", "file", "summary"}
    assert told[-1]["pictures"]["found"] == 6
    assert told[-1]["scores"]["made"] == 0


def test_a_dry_run_says_the_cost_and_writes_nothing(tmp_path, capsys):
    path = file_of(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["bench", str(path), "--dry-run", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert sorted(tmp_path.rglob("*")) == before
    assert "evaluations in all" in said.out
    assert "an estimate" in said.out
    assert "strength is measured first" in said.err
    assert main(["bench", str(path), "--dry-run", "--json", "--out", str(tmp_path / "run")]) == 0
    *arms, forecast = events(capsys)
    assert [arm["evaluations"] for arm in arms][:2] == [4, 6]
    assert forecast["left"] == forecast["evaluations"] > 0
    assert forecast["seconds"] > 0


def test_a_dry_run_names_all_that_is_missing_once(tmp_path, capsys):
    """And what the arms cost all the same, where the file says enough for that."""
    path = file_of(
        tmp_path,
        model="nobody/nowhere",
        loras={"style": "absent.safetensors"},
        prompts="drawbench",
        scorers=["pickscore", "saturation"],
        steps=4,
        guidance=3.0,
        arms={
            "plain": {"method": "plain", "base": "lora:style=0.5"},
            "weak": {"method": "plain", "base": "checkpoint=nobody/elsewhere"},
            "pair": {"method": "w2sd", "weak": "checkpoint=nobody/elsewhere,guidance=0"},
            "by the model": {"method": "w2sd"},
            "of a file": {"method": "core2", "noise_model": "absent.noise"},
        },
    )
    before = sorted(tmp_path.rglob("*"))
    assert main(["bench", str(path), "--dry-run", "--json"]) == 2
    said = capsys.readouterr()
    told = [json.loads(line) for line in said.out.splitlines()]
    costs = {event["name"]: event["evaluations"] for event in told if event["event"] == "arm"}
    assert costs == {"plain": 8, "weak": 8, "pair": 17, "by the model": None, "of a file": None}
    missing = [event for event in told if event["event"] == "missing"]
    assert [(event["kind"], event["name"]) for event in missing] == [
        ("model", "nobody/nowhere"),
        ("file", "absent.safetensors"),
        ("checkpoint", "nobody/elsewhere"),
        ("file", "absent.noise"),
        ("prompts", "drawbench"),
        ("scorer", "pickscore"),
    ]
    assert [event["arms"] for event in missing[2:4]] == [["weak", "pair"], ["of a file"]]
    assert all("--download" in event["reason"] for event in (*missing[0:3:2], missing[-1]))
    assert "prompts fetch drawbench" in missing[4]["reason"]
    last = said.err.splitlines()[-1]
    assert last.startswith("w2sdiff: error: ")
    assert "checkpoint nobody/elsewhere, file absent.noise" in last
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["bench", str(path), "--dry-run"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert "    17 evaluations a picture  pair" in lines
    assert "     ? evaluations a picture  by the model" in lines
    wanted = "missing: checkpoint nobody/elsewhere (for weak, pair): "
    assert len([line for line in lines if line.startswith(wanted)]) == 1


def test_a_dry_run_without_the_weights_of_a_scorer_forecasts_all_else(tmp_path, capsys):
    path = file_of(tmp_path, scorers=["pickscore", "saturation"])
    assert main(["bench", str(path), "--dry-run", "--json", "--out", str(tmp_path / "run")]) == 2
    told = events(capsys)
    assert [event["event"] for event in told[-2:]] == ["forecast", "missing"]
    assert told[-1]["name"] == "pickscore"


def test_options_replace_what_the_file_says(tmp_path, capsys):
    path, out = file_of(tmp_path), str(tmp_path / "run")
    words = ["bench", str(path), "--out", out, "--no-report", "--json"]
    assert main([*words, "--no-rivals", "--limit", "1", "--batch", "1"]) == 0
    assert events(capsys)[-1]["pictures"] == {
        **{"made": 2, "found": 0, "elsewhere": 0},
        **{"failed": 0, "left": 0},
    }
    assert main([*words, "--no-rivals", "--shard", "1/2"]) == 0
    assert "judgement" not in {event["event"] for event in events(capsys)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.yaml"], "absent.yaml does not exist"),
        (["FILE", "--shard", "3/2"], "shard"),
        (["FILE", "--engine", "dask"], "local or ray"),
        (["FILE", "--workers", "2"], "accelerate launch"),
        (["FILE", "--limit", "0"], "limit"),
        (["FILE", "--batch", "0"], "batch"),
        (["FILE", "--device", "tpu"], "expected a device"),
        (["FILE", "--out", "FILE"], "not a folder"),
    ],
)
def test_wrong_words_are_one_line_and_exit_code_2(tmp_path, capsys, words, message):
    path = str(file_of(tmp_path, rivals=False))
    assert main(["bench", *[path if word == "FILE" else word for word in words]]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


def test_a_wrong_key_names_file_and_key(tmp_path, capsys):
    path = file_of(tmp_path, arms={**ARMS, "odd": {"method": "plain", "stpes": 3}})
    assert main(["bench", str(path)]) == 2
    said = capsys.readouterr().err
    assert str(path) in said
    assert "arms.odd: Unknown key 'stpes'. Did you mean 'steps'?" in said


def test_something_failed_is_exit_code_1(tmp_path, capsys):
    arms = {**ARMS, "odd": {"method": "zigzag", "scheduler": "heun"}}
    path = file_of(tmp_path, arms=arms, rivals=False)
    assert main(["bench", str(path), "--out", str(tmp_path / "run"), "--no-report"]) == 1
    said = capsys.readouterr()
    assert "drawing failed" in said.err
    assert "3 failed" in said.err


@pytest.mark.slow
def test_ctrl_c_finishes_the_batch_in_hand(tmp_path):
    path, run = file_of(tmp_path, limit=60, rivals=False), tmp_path / "run"
    words = [sys.executable, "-m", "w2sdiff", "bench", str(path), "--out", str(run)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(run.glob("images/*.png")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "stopping after the batch in hand" in said
    assert "not reached" in said
    records = len(list(run.glob("images/records/*.json")))
    assert records == len(list(run.glob("images/*.png")))
    assert records % 2 == 0, "batches are whole"
    assert not (run / "images" / "claims").exists()


@pytest.mark.slow
def test_processes_of_a_launcher_share_the_work_and_one_reports(tmp_path):
    path, run = file_of(tmp_path, limit=8), tmp_path / "run"
    words = [sys.executable, "-m", "w2sdiff", "bench", str(path), "--out", str(run), "--json"]
    ranks = [
        subprocess.Popen(
            words,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    first, second = (process.communicate(timeout=300) for process in ranks)
    assert [process.returncode for process in ranks] == [0, 0]
    assert second == ("", "")
    counts = json.loads(first[0].splitlines()[-1])["pictures"]
    assert counts["failed"] == counts["left"] == 0
    assert (run / "index.html").is_file()
    attempts = {
        json.loads(record.read_text())["attempts"] for record in run.glob("images/records/*.json")
    }
    assert attempts == {1}
