"""`w2sdiff score` and `w2sdiff prompts` as people type them."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from w2sdiff.cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["a", "b", "c"]):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), (80 * number, 20, 20)).save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "prompts.csv").write_text(
        "id,prompt,category\na,a red circle,single\nb,=2+2,odd\nc,two red squares,counting\n"
    )
    return tmp_path / "in"


def events(capsys, *arguments):
    code = main([*arguments, "--json"])
    lines = capsys.readouterr().out.splitlines()
    return code, [json.loads(line) for line in lines]


def everything(place):
    return {path.relative_to(place).as_posix() for path in place.rglob("*")}


def test_scored_once_then_found_and_written_where_it_was_said(folder, capsys):
    command = ["score", "in", "--scorer", "saturation", "--scorer", "sharpness"]
    code, first = events(capsys, *command, "-o", "out", "--csv", "table.csv")
    assert code == 0
    assert first[0] == {**first[0], "event": "plan", "layout": "bare", "pictures": 3}
    means = {e["scorer"]: e["mean"] for e in first if e["event"] == "mean"}
    assert set(means) == {"saturation", "sharpness"}
    assert means["sharpness"] == 0  # of one colour
    assert everything(folder) == {"a.png", "b.png", "c.png"}
    written = Path("table.csv").read_bytes()
    code, again = events(capsys, *command, "-o", "out", "--csv", "table.csv")
    assert (code, again[-1]["made"], again[-1]["found"]) == (0, 0, 6)
    assert Path("table.csv").read_bytes() == written == Path("out/scores.csv").read_bytes()


def test_scorers_are_added_one_by_one(folder, capsys):
    assert main(["score", "in", "--scorer", "saturation", "-q"]) == 0
    assert main(["score", "in", "--scorer", "contrast", "-q"]) == 0
    rows = list(csv.DictReader((folder / "scores" / "scores.csv").open(newline="")))
    assert {"saturation", "contrast"} <= rows[0].keys()
    assert all(row["saturation"] and row["contrast"] for row in rows)
    capsys.readouterr()


def test_prompts_come_with_a_set_and_no_cell_is_a_formula(folder, capsys):
    code, said = events(capsys, "score", "in", "--scorer", "saturation", "--prompts", "prompts.csv")
    assert (code, said[0]["layout"]) == (0, "name")
    rows = list(csv.DictReader((folder / "scores" / "scores.csv").open(newline="")))
    assert [(row["id"], row["prompt"]) for row in rows] == [
        ("a", "a red circle"),
        ("b", "'=2+2"),
        ("c", "two red squares"),
    ]


def test_a_bad_picture_is_named_costs_only_itself_and_is_an_exit_code_of_1(folder, capsys):
    (folder / "b.png").write_bytes(b"not a picture")
    assert main(["score", "in", "--scorer", "saturation"]) == 1
    out, err = capsys.readouterr()
    assert "b.png is not an image" in err
    assert "over 2 pictures, 1 without a score" in out
    rows = list(csv.DictReader((folder / "scores" / "scores.csv").open(newline="")))
    assert [bool(row["saturation"]) for row in rows] == [True, False, True]
    assert "b.png" in rows[1]["problems"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in"], "--scorer"),
        (["nowhere", "--scorer", "saturation"], "there is no nowhere"),
        (["in", "--scorer", "saturatoin"], "Did you mean 'saturation'"),
        (["in", "--scorer", "saturation:x=1"], "no option 'x'"),
        (["in", "--scorer", "saturation", "--scorer", "saturation"], "asked for twice"),
        (["in", "--scorer", "shapes"], "needs to know what the pictures are of"),
        (["in", "--scorer", "saturation", "--layout", "geneva"], "Did you mean 'geneval'"),
        (["in", "--scorer", "saturation", "--layout", "order"], "--prompts"),
        (["in", "--scorer", "saturation", "--prompts", "drawbnch"], "Did you mean 'drawbench'"),
        (["in", "--scorer", "saturation", "--prompts", "drawbench"], "prompts fetch drawbench"),
        (["in", "--scorer", "saturation", "--prompts", "shapes"], "3 pictures for the 1000"),
        (["in", "--scorer", "saturation", "--batch", "0"], "batch of at least 1"),
        (["in", "--scorer", "saturation", "--device", "cuda:99"], "cuda:99"),
        (["in", "--scorer", "saturation", "-o", "prompts.csv/x"], "not a folder"),
        (["in", "--scorer", "pickscore"], "pickscore|PickScore|weights|not here"),
    ],
)
def test_wrong_input_is_one_line_an_exit_code_of_2_and_writes_nothing(
    folder, capsys, arguments, message
):
    before = everything(folder.parent)
    assert main(["score", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out
    [line] = [line for line in err.splitlines() if line.startswith("w2sdiff: error: ")]

    assert re.search(message, line)
    assert {name for name in everything(folder.parent) if "cache" not in name} == before


def test_a_read_only_place_is_said_before_anything_is_scored(folder, capsys):
    Path("file").write_text("")
    assert main(["score", "in", "--scorer", "saturation", "-o", "file"]) == 2
    assert "not a folder" in capsys.readouterr().err


def test_names_that_would_steer_a_terminal_are_escaped(folder, capsys):
    (folder / "x\x1b[2Jy.png").write_bytes(b"nothing")
    assert main(["score", "in", "--scorer", "saturation"]) == 1
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "x\\x1b[2Jy.png" in err


def test_the_known_sets_are_listed_and_shown(folder, capsys):
    code, sets = events(capsys, "prompts", "list")
    places = {entry["name"]: entry["place"] for entry in sets}
    assert code == 0
    assert places["shapes"] == "built in"
    assert places["drawbench"] == "to fetch"
    assert places["coco-val2017"] == "by hand"
    code, shown = events(capsys, "prompts", "show", "shapes", "--limit", "2")
    assert (code, [entry["id"] for entry in shown]) == (0, ["1", "2"])
    code, shown = events(capsys, "prompts", "show", "prompts.csv", "--category", "odd")
    assert [entry["prompt"] for entry in shown] == ["=2+2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "geneval"], "prompts fetch geneval"),
        (["show", "shapes", "--category", "cats"], "no category 'cats'"),
        (["show", "shapes", "--limit", "0"], "at least 1"),
        (["show", "none.csv"], "does not exist"),
        (["fetch", "shaeps"], "Unknown prompt set"),
        (["fetch", "coco-val2017"], "yourself"),
    ],
)
def test_a_set_that_is_not_there_is_an_exit_code_of_2(folder, capsys, arguments, message):
    assert main(["prompts", *arguments]) == 2
    assert message in capsys.readouterr().err
