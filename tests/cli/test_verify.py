"""`w2sdiff verify` as a program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from w2sdiff.cli import main
from w2sdiff.scorers import verify
from w2sdiff.scorers.verify import Check

LINES = [Check("one", "ok", "fine"), Check("two", "not installed", "absent")]


@pytest.fixture
def two_checks(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """The first and the last check, and whatever a test adds: all of them take seconds."""
    found = list(LINES)
    monkeypatch.setattr(verify, "verify", lambda data: iter(found))  # noqa: ARG005
    return found


def test_nothing_failed(two_checks: list[Check], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 0
    out = capsys.readouterr()
    assert "ok             one: fine" in out.out
    assert "not installed  two: absent" in out.out
    assert "1 ok, 0 failed, 1 not installed" in out.err


def test_one_failed(two_checks: list[Check], capsys: pytest.CaptureFixture[str]) -> None:
    two_checks.append(Check("three", "failed", "off by 2"))
    assert main(["verify", "--quiet"]) == 1
    out = capsys.readouterr()
    assert out.out == ""
    assert "three: off by 2" in out.err


def test_json(two_checks: list[Check], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["name"], line["status"]) for line in lines] == [
        ("one", "ok"),
        ("two", "not installed"),
    ]
    assert {line["event"] for line in lines} == {"check"}


def test_no_such_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--data", str(tmp_path / "none")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
