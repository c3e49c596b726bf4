"""Prompt files: what is well formed is read exactly, everything else is named by line."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2sdiff.errors import InputError
from w2sdiff.prompts import PromptRow, read_prompts
from w2sdiff.prompts.files import MAX_LINE

ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
PROMPT = ANY.map(str.strip).filter(bool)
# A file with a mark of its own in front is read without it, so no prompt here begins with one.
ONE_LINE = (
    ANY.map(lambda text: text.replace("\n", " ").strip("\ufeff \t\r\n")).map(str.strip).filter(bool)
)


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@given(st.lists(ONE_LINE, min_size=1), st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_text_files(tmp_path_factory, prompts, mark, end):
    text = ("\ufeff" if mark else "") + end.join(prompts)
    rows = read_prompts(write(tmp_path_factory.mktemp("x"), "p.txt", text))
    assert [row.text for row in rows] == prompts
    assert [row.id for row in rows] == [str(i + 1) for i in range(len(prompts))]


@given(st.lists(st.tuples(PROMPT, ANY), min_size=1), st.sampled_from([",", "\t"]))
def test_tables(tmp_path_factory, cells, delimiter):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(["ID", "Prompt", "refined"])
    writer.writerows([i, prompt, other] for i, (prompt, other) in enumerate(cells))
    name = "p.csv" if delimiter == "," else "p.tsv"
    path = write(tmp_path_factory.mktemp("x"), name, out.getvalue())
    expected = [
        PromptRow(str(i), prompt, {"refined": other}) for i, (prompt, other) in enumerate(cells)
    ]
    assert read_prompts(path) == expected


@given(st.lists(st.tuples(PROMPT, ANY), min_size=1), st.booleans())
def test_json_lines(tmp_path_factory, cells, ascii_only):
    text = "\n".join(
        json.dumps({"prompt": prompt, "refined": other}, ensure_ascii=ascii_only)
        for prompt, other in cells
    )
    rows = read_prompts(write(tmp_path_factory.mktemp("x"), "p.jsonl", text))
    assert [(row.text, row.columns["refined"]) for row in rows] == cells


@given(st.binary(max_size=200), st.sampled_from(["txt", "csv", "tsv", "jsonl"]))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path_factory, content, ending):
    path = write(tmp_path_factory.mktemp("x"), f"p.{ending}", content)
    try:
        rows = read_prompts(path)
    except InputError as error:
        message = str(error)
    else:
        message = path.name
        assert rows
        assert all(row.text.strip() for row in rows)
        assert len({row.id for row in rows}) == len(rows)
    assert path.name in message
    assert "\n" not in message


def test_json_lines_may_be_bare_strings_and_hold_other_values(tmp_path):
    path = write(tmp_path, "p.jsonl", '"a circle"\n\n{"caption": "two", "n": 2, "tag": null}\n')
    assert read_prompts(path) == [
        PromptRow("1", "a circle"),
        PromptRow("2", "two", {"n": "2", "tag": ""}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "", "empty"),
        ("p.txt", "\n \n", "empty"),
        ("p.txt", b"fine\nnot \xff fine", r"line 2: expected UTF-8 text, got the byte 0xff"),
        ("p.txt", "fine\n" + "x" * 1_000_000, "line 2: longer than 100000 bytes"),
        ("p.txt", "a\0b", "line 1: the text has a NUL"),
        ("p.csv", "", "empty"),
        ("p.csv", "prompt\n", "empty"),
        ("p.csv", "colour,shape\nred,circle\n", "expected a column named prompt, text, caption"),
        ("p.csv", "prompt,id\na,1\n,2\n", "line 3: the prompt is empty"),
        ("p.csv", "prompt,id\na,1\nb,1\n", "line 3: the id '1' was used in line 2"),
        ("p.csv", "prompt,id\na,1,2\n", "line 2: expected 2 columns, got 3"),
        ("p.csv", 'prompt\n"a\n', "line 2: unexpected end of data"),
        ("p.csv", "prompt,prompt\na,b\n", "two columns have one name"),
        ("p.csv", 'prompt\n"' + ("x" * 60_000 + "\n") * 3 + '"\n', "field larger than|more than"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', "line 2: not JSON"),
        ("p.jsonl", "[1, 2]\n", "line 1: expected a JSON string or object"),
        ("p.jsonl", "[" * 50_000, "line 1: not JSON"),
        ("p.jsonl", '{"prompt": "\\ud800"}', "lone surrogate"),
        ("p.xlsx", "", "expected a prompt file ending in"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message) as caught:
        read_prompts(write(tmp_path, name, content))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.txt does not exist"):
        read_prompts(tmp_path / "none.txt")


def test_a_folder_is_no_prompt_file(tmp_path):
    (tmp_path / "p.txt").mkdir()
    with pytest.raises(InputError, match="cannot read"):
        read_prompts(tmp_path / "p.txt")


def test_the_longest_line_allowed_is_read(tmp_path):
    assert len(read_prompts(write(tmp_path, "p.txt", "x" * MAX_LINE + "\r\n"))[0].text) == MAX_LINE
