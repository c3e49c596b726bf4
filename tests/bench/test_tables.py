"""Summaries: the same bytes for the same scores, and other people's text stays text."""

from __future__ import annotations

import csv
import dataclasses
import html
import json
import math
import multiprocessing
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from bench.made import ARMS, SCORERS, made_results
from hypothesis import given
from hypothesis import strategies as st

from w2sdiff.bench.results import PromptFacts
from w2sdiff.bench.stats.analyse import analyse
from w2sdiff.bench.tables.markdown import safe_markdown
from w2sdiff.bench.tables.summary import write_summary
from w2sdiff.errors import InputError

FILES = ["summary.json", "summary.csv", "cells.csv", "summary.md"]
MADE = {"prompts": 30, "replicates": 2, "failed": [(1, 3, 0)], "gains": {("w2sd", "hpsv2.1"): 1.0}}


def written(results, folder) -> dict[str, bytes]:
    paths = write_summary(results, analyse(results, draws=500), folder)
    assert [path.name for path in paths] == FILES
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    return {path.name: path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def made():
    return made_results(**MADE)


def test_the_order_of_samples_and_of_scores_does_not_matter(made, tmp_path):
    samples = list(made.samples)
    random.Random(0).shuffle(samples)
    samples = [
        dataclasses.replace(one, scores=dict(reversed(one.scores.items())), seconds=9.0, peak_mb=1)
        for one in samples
    ]
    shuffled = dataclasses.replace(
        made, samples=tuple(samples), folder=tmp_path / "elsewhere", provenance={"machine": "other"}
    )
    assert written(shuffled, tmp_path / "b") == written(made, tmp_path / "a")


def test_another_process_writes_the_same_bytes(made, tmp_path):
    """Also with other hashes of strings and another number of threads."""
    there, here = tmp_path / "there", tmp_path / "here"
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"
        "from bench.test_tables import MADE, Path, made_results, written\n"
        f"written(made_results(**MADE), Path({str(there)!r}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert {path.name: path.read_bytes() for path in there.iterdir()} == written(made, here)


def write_often(folder):
    results = made_results(prompts=4)
    analysis = analyse(results, draws=50)
    for _ in range(40):
        write_summary(results, analysis, folder)


def test_several_processes_write_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(tmp_path,)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_a_folder_that_cannot_be_written_is_said(made, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not a folder"):
        write_summary(made, analyse(made, draws=50), tmp_path / "file")


def test_json_holds_the_analysis_to_six_digits(made, tmp_path):
    analysis = analyse(made, draws=500)
    path, *_ = write_summary(made, analysis, tmp_path)
    data = json.loads(path.read_text("utf-8"))
    assert len(data["comparisons"]) == len(analysis.comparisons) == 12
    for found, one in zip(data["comparisons"], analysis.comparisons, strict=True):
        assert found["difference"]["mean"] == pytest.approx(one.difference.mean, rel=1e-5)
        assert found["outcome"] == one.outcome
    assert data["arms"][1]["pictures"] == {"done": 59, "failed": 1, "missing": 0, "flagged": 0}
    assert {one["recipe"] for one in data["scorers"]} == {one.recipe for one in SCORERS}
    assert data["prompts"]["categories"] == {"colours": 10, "counting": 10, "positions": 10}
    assert max(len(str(one["p"])) for one in data["comparisons"]) <= len("9.99999e-05")


def test_numbers_that_do_not_exist_are_null_and_empty(tmp_path):
    results = made_results(prompts=1)
    found = written(results, tmp_path)
    data = json.loads(found["summary.json"], parse_constant=pytest.fail)
    first = data["comparisons"][0]
    assert first["difference"]["interval"] == [None, None]
    assert first["detectable"] is None
    row = next(csv.DictReader(found["summary.csv"].decode().splitlines()))
    assert (row["difference_low"], row["p"]) == ("", "1.0")


def test_csv_has_a_row_per_comparison_and_category(made, tmp_path):
    rows = list(csv.DictReader(written(made, tmp_path)["summary.csv"].decode().splitlines()))
    assert len(rows) == 12 * (1 + 3)
    assert [row["category"] for row in rows[:4]] == ["", "colours", "counting", "positions"]
    assert sum(int(row["prompts"]) for row in rows[1:4]) == int(rows[0]["prompts"])
    cells = list(csv.DictReader((tmp_path / "cells.csv").read_text("utf-8").splitlines()))
    assert len(cells) == 4 * 4
    assert cells[4]["failed"] == "1"


HOSTILE = "=1+1|`x`\n<img src=x onerror=alert(1)> [a](javascript:b) \x00\u202e"


def test_hostile_names_stay_text(tmp_path):
    arms = (dataclasses.replace(ARMS[0], name=HOSTILE, text=HOSTILE), *ARMS[1:])
    prompts = [PromptFacts(str(n), HOSTILE, HOSTILE) for n in range(20)]
    found = written(made_results(arms=arms, prompts=prompts, title=HOSTILE), tmp_path)
    text = found["summary.md"].decode()
    assert "<img" not in text
    assert not {"\x00", "\u202e"} & set(text)
    header = next(line for line in text.splitlines() if line.startswith("| arm"))
    for line in text.splitlines():
        if line.startswith("| ") and "sd |" in line:
            assert line.replace("\\|", "").count("|") in (header.count("|"), 12)
    rows = list(csv.reader(found["summary.csv"].decode().splitlines(keepends=True)))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert not [cell for row in rows for cell in row if cell.startswith("=")]
    assert json.loads(found["summary.json"])["title"] == HOSTILE


def test_a_name_that_is_no_text_is_shown_as_its_bytes(tmp_path):
    arms = (dataclasses.replace(ARMS[0], name="caf\udce9"), *ARMS[1:])
    found = written(made_results(arms=arms), tmp_path)
    assert b"caf\\udce9" in found["summary.csv"]
    assert json.loads(found["summary.json"])["arms"][0]["name"] == "caf\udce9"


@pytest.mark.parametrize("mark", ["`", "*", "_", "[", "]", "|", "~", "#", "\\", "!"])
def test_marks_of_markdown_are_escaped(mark):
    assert safe_markdown(f"a{mark}b") == f"a\\{mark}b"


@given(st.text(max_size=60))
def test_any_text_is_one_cell_of_one_line(text):
    safe = safe_markdown(text)
    assert not set("<>\n\r\x0b\x0c\x1c\x85\u2028\u2029") & set(safe)
    bare = re.sub(r"\\[\\`*_\[\]|~#!]", "", safe)  # without what is escaped
    assert not set("\\`*_[]|~#!") & set(bare)
    shown = re.sub(r"\\(.)", r"\1", safe)
    words = "".join(c if c.isprintable() else " " for c in text).split()
    assert html.unescape(shown).split() == " ".join(words).split()


def test_long_text_is_cut():
    assert safe_markdown("x" * 10_000, 10) == "xxxxxxxxx…"


def test_two_recipes_are_not_joined(made, tmp_path):
    other = dataclasses.replace(SCORERS[0], recipe="0" * 64)
    joined = dataclasses.replace(made, scorers=(*made.scorers, other))
    with pytest.raises(InputError, match=f"{SCORERS[0].recipe[:12]} and 000000000000"):
        write_summary(joined, analyse(made, draws=500), tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_minus_zero(tmp_path):
    results = made_results(noise=0.0)
    for name, data in written(results, tmp_path).items():
        assert b"-0.0," not in data, name
        assert b"-0.0\n" not in data, name
    assert math.isfinite(analyse(results, draws=500).comparisons[0].difference.mean)
