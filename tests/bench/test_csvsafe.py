"""No text, whatever it is, becomes a formula in somebody's spreadsheet."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2sdiff.bench.tables.csvsafe import safe_cell


@pytest.mark.parametrize("first", [*"=+-@", "\t", "\r", "\n", "＝", "＠", "  =", "\u00a0+"])
def test_what_begins_like_a_formula_gets_an_apostrophe(first):
    assert safe_cell(f"{first}cmd|' /C calc'!A0") == f"'{first}cmd|' /C calc'!A0"


@pytest.mark.parametrize("text", ["", "a red circle", "1 = 1", "'=x", "two  -  three", " a"])
def test_other_text_is_left_alone(text):
    assert safe_cell(text) == text


@given(st.text())
def test_any_text_is_read_back_whole_and_never_begins_a_formula(text):
    out = io.StringIO(newline="")
    csv.writer(out).writerow([safe_cell(text)])
    [[cell]] = csv.reader(io.StringIO(out.getvalue(), newline=""), strict=True) or [[""]]
    assert cell in (text, f"'{text}")
    assert not cell.lstrip().startswith(("=", "+", "-", "@"))
    assert not cell.startswith(("\t", "\r", "\n"))
