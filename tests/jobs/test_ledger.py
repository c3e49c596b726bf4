"""The ledger: what it says is there is there, whatever happened before."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2sdiff.errors import InputError
from w2sdiff.jobs import (
    Done,
    Failed,
    Item,
    Ledger,
    Record,
    Task,
    canonical,
    digest,
    file_sha256,
    run_local,
    write_whole,
)
from w2sdiff.jobs import hashing as hashing_module


def tasks(n, size=1):
    items = [Item({"n": i}) for i in range(n)]
    return [Task(tuple(items[i : i + size])) for i in range(0, n, size)]


def write_number(task):
    return [Done({f"{item.spec['n']}.txt": str(item.spec["n"]).encode()}) for item in task.items]


def everything(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(JSON)
def test_canonical_json_is_read_back_unchanged(value):
    assert json.loads(canonical(value)) == value


@given(st.dictionaries(st.text(alphabet="abc"), st.integers(), min_size=2))
def test_the_key_does_not_depend_on_the_order_of_a_dictionary(value):
    assert digest(dict(reversed(value.items()))) == digest(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"x": object()}, "\ud800"])
def test_what_has_no_json_form_has_no_key(value):
    with pytest.raises(InputError, match="JSON"):
        digest(value)


def test_a_file_is_hashed_again_only_when_it_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashing_module, "_LARGE", 0)
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    first = file_sha256(file)
    assert first == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    hashing_module._Memory._loaded.clear()  # as a new process would start
    read = []
    real = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: read.append(a) or real(*a))
    assert file_sha256(file) == first
    assert not read
    file.write_bytes(b"abcd")
    assert file_sha256(file) != first
    assert len(read) == 1


def test_a_damaged_hash_cache_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(hashing_module, "_LARGE", 0)
    (tmp_path / "w2sdiff").mkdir()
    (tmp_path / "w2sdiff" / "sha256.json").write_text('{"half')
    file = tmp_path / "file"
    file.write_bytes(b"")
    assert file_sha256(file).startswith("e3b0c442")


def test_made_once_and_found_afterwards(tmp_path):
    made = []

    def work(task):
        made.append(task.key)
        return write_number(task)

    with Ledger(tmp_path / "out") as ledger:
        first = run_local(ledger, tasks(5), work)
        second = run_local(ledger, tasks(7), work)
    assert (first.made, first.found) == (5, 0)
    assert (second.made, second.found) == (2, 5)
    assert len(made) == len(set(made)) == 7
    assert not (tmp_path / "out" / "claims").exists()
    assert {f"{n}.txt" for n in range(7)} <= everything(tmp_path / "out")


def test_the_order_and_the_batches_are_those_of_the_plan(tmp_path):
    seen = []

    def work(task):
        seen.append([item.spec["n"] for item in task.items])
        return write_number(task)

    run_local(Ledger(tmp_path), tasks(5, size=2), work)
    assert seen == [[0, 1], [2, 3], [4]]


def test_one_failure_leaves_the_others_alone_and_is_tried_again(tmp_path):
    broken = True

    def work(task):
        if broken and task.items[0].spec["n"] == 1:
            raise RuntimeError("boom\nwith details")
        return write_number(task)

    ledger = Ledger(tmp_path)
    first = run_local(ledger, tasks(3), work)
    assert (first.made, first.failed, first.complete) == (2, 1, False)
    record = ledger.get(Item({"n": 1}).key)
    assert record.reason == "RuntimeError: boom"
    assert "in work" in record.facts["traceback"]
    broken = False
    second = run_local(ledger, tasks(3), work)
    assert (second.made, second.found, second.complete) == (1, 2, True)
    assert ledger.get(Item({"n": 1}).key).attempts == 2


def test_a_failed_item_of_a_batch_has_the_whole_batch_made_again(tmp_path):
    outcomes = iter([[Done({"a": b"1"}), Failed("no")], [Done({"a": b"2"}), Done({"b": b"2"})]])
    ledger = Ledger(tmp_path)
    assert run_local(ledger, tasks(2, size=2), lambda _: next(outcomes)).failed == 1
    assert run_local(ledger, tasks(2, size=2), lambda _: next(outcomes)).made == 2
    assert (tmp_path / "a").read_bytes() == b"2"


def test_wrong_input_ends_the_run_and_leaves_nothing(tmp_path):
    def work(task):
        raise InputError("wrong for all")

    with pytest.raises(InputError, match="wrong for all"), Ledger(tmp_path / "a" / "out") as ledger:
        run_local(ledger, tasks(3), work)
    assert list(tmp_path.iterdir()) == []


def test_stopping_ends_the_run_after_the_task_in_hand(tmp_path):
    done = []

    def work(task):
        done.append(task)
        return write_number(task)

    summary = run_local(Ledger(tmp_path), tasks(5), work, stopping=lambda: len(done) == 2)
    assert (summary.made, summary.left) == (2, 3)


@pytest.mark.parametrize(
    "damage", ["cut", "gone", "half a record", "another's record", "not a record"]
)
def test_what_is_damaged_is_made_again_and_nothing_else(tmp_path, damage, caplog):
    ledger = Ledger(tmp_path)
    run_local(ledger, tasks(3), write_number)
    item = Item({"n": 1})
    record = tmp_path / "records" / f"{item.key}.json"
    match damage:
        case "cut":
            (tmp_path / "1.txt").write_bytes(b"")
        case "gone":
            (tmp_path / "1.txt").unlink()
        case "half a record":
            record.write_text(record.read_text()[:40])
        case "another's record":
            record.write_text((tmp_path / "records" / f"{Item({'n': 2}).key}.json").read_text())
        case "not a record":
            record.write_text("[1, 2]")
    with caplog.at_level(logging.WARNING):
        summary = run_local(ledger, tasks(3), write_number)
    assert (summary.made, summary.found) == (1, 2)
    assert "made again" in caplog.text
    assert ledger.get(item.key).status == "done"
    assert (tmp_path / "1.txt").read_bytes() == b"1"


def test_changed_bytes_of_the_same_length_are_found_on_request(tmp_path):
    ledger = Ledger(tmp_path)
    run_local(ledger, tasks(2), write_number)
    (tmp_path / "1.txt").write_bytes(b"X")
    damaged = {record.spec["n"]: ledger.damaged(record) for record in ledger.records()}
    assert damaged == {0: [], 1: ["1.txt"]}


def test_foreign_files_are_passed_over(tmp_path):
    ledger = Ledger(tmp_path)
    run_local(ledger, tasks(2), write_number)
    (tmp_path / "records" / "notes.json").write_bytes(b"\xff\xfe")
    (tmp_path / "records" / "list.json").write_text("[]")
    (tmp_path / "holiday.jpg").write_bytes(b"")
    assert sorted(record.spec["n"] for record in ledger.records()) == [0, 1]


SOUND = Record("k", "done", {"n": 1}, {}, {}, None, 1)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{}",
        "null",
        json.dumps(vars(SOUND) | {"attempts": "1"}),
        json.dumps(vars(SOUND) | {"facts": None}),
        json.dumps(vars(SOUND) | {"spec": []}),
        json.dumps(vars(SOUND) | {"status": "perhaps"}),
        json.dumps(vars(SOUND) | {"surprise": 1}),
        json.dumps(vars(SOUND) | {"files": {"a\0b": {"bytes": 1, "sha256": ""}}}),
    ],
)
def test_a_record_from_elsewhere_is_passed_over_whatever_it_holds(tmp_path, text):
    ledger = Ledger(tmp_path)
    run_local(ledger, tasks(1), write_number)
    [task] = tasks(1)
    (tmp_path / "records" / f"{task.key}.json").write_text(text)
    (tmp_path / "records" / "other.json").write_text(text)
    assert list(ledger.records()) == []
    assert run_local(ledger, [task], write_number).made == 1


@pytest.mark.parametrize("name", ["../x", "a/b", "", "..", ".", "a\\b", "c:d", "a\0b"])
def test_a_file_name_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(InputError, match="plain file name"):
        run_local(Ledger(tmp_path / "out"), tasks(1), lambda _: [Done({name: b""})])
    text = Record("k", "done", {}, {name: {"bytes": 0, "sha256": ""}}, {}, None, 1).to_json()
    with pytest.raises(ValueError, match="names a file"):
        Record.from_json(text)


def test_a_full_disk_is_one_clear_error_and_leaves_no_half_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="the disk is full"):
        run_local(Ledger(tmp_path), tasks(2), write_number)
    assert not any("tmp" in name or name.endswith(".txt") for name in everything(tmp_path))


def test_an_interrupted_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_whole(file, b"old")

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(file, b"new")
    assert everything(tmp_path) == {"file"}
    assert file.read_bytes() == b"old"


def test_a_claim_is_held_against_others_and_ends_with_its_holder(tmp_path):
    ours, theirs = Ledger(tmp_path), Ledger(tmp_path)
    [task] = tasks(1)
    with ours.claim(task) as claim:
        assert claim is not None
        with theirs.claim(task) as second:
            assert second is None
    with theirs.claim(task) as third:
        assert third is not None


WORKER = """
    import sys, time
    from pathlib import Path
    from w2sdiff.jobs import Done, Item, Ledger, Task, run_local

    folder, n, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])

    def work(task):
        number = task.items[0].spec["n"]
        with open(folder / "made.log", "a") as log:
            log.write(f"{number}\\n")
        time.sleep(seconds)
        return [Done({f"{number}.txt": b"x" * 4096})]

    with Ledger(folder) as ledger:
        summary = run_local(ledger, [Task((Item({"n": i}),)) for i in range(n)], work)
    sys.exit(0 if summary.complete else 1)
"""


def start(folder, n, seconds):
    arguments = [sys.executable, "-c", textwrap.dedent(WORKER), str(folder), str(n), str(seconds)]
    return subprocess.Popen(arguments)


def test_two_processes_share_the_work_and_make_nothing_twice(tmp_path):
    workers = [start(tmp_path, 40, 0.02) for _ in range(2)]
    assert [worker.wait(30) for worker in workers] == [0, 0]
    made = sorted(map(int, (tmp_path / "made.log").read_text().split()))
    assert made == list(range(40))
    assert sum(name.startswith("records/") for name in everything(tmp_path)) == 40
    assert not (tmp_path / "claims").exists()


def test_the_survivor_takes_over_what_a_killed_process_held(tmp_path):
    n = 12
    victim, survivor = start(tmp_path, n, 0.1), start(tmp_path, n, 0.1)
    log = tmp_path / "made.log"
    deadline = time.monotonic() + 20
    while (not log.exists() or len(log.read_text().split()) < 4) and time.monotonic() < deadline:
        time.sleep(0.01)
    victim.kill()
    victim.wait()
    assert survivor.wait(30) == 0
    assert {f"{i}.txt" for i in range(n)} <= everything(tmp_path)
    assert len(log.read_text().split()) <= n + 1  # only what the victim had in hand is made again


def test_killed_again_and_again_nothing_is_lost_and_nothing_made_twice(tmp_path):
    n, kills = 30, 0
    for pause in (0.05, 0.15, 0.1, 0.2, 0.12, 0.25):
        worker = start(tmp_path, n, 0.01)
        before = len(list(tmp_path.glob("*.txt")))
        deadline = time.monotonic() + 10
        while worker.poll() is None and len(list(tmp_path.glob("*.txt"))) <= before:
            if time.monotonic() > deadline:
                break
            time.sleep(0.005)
        time.sleep(pause / 10)
        if worker.poll() is None:
            worker.send_signal(signal.SIGKILL)
            kills += 1
        worker.wait()
    assert kills >= 3
    assert start(tmp_path, n, 0).wait(30) == 0
    assert {f"{i}.txt" for i in range(n)} <= everything(tmp_path)
    assert all((tmp_path / f"{i}.txt").stat().st_size == 4096 for i in range(n))
    assert not any(name.endswith(".tmp") for name in everything(tmp_path))
    made = list(map(int, (tmp_path / "made.log").read_text().split()))
    assert len(made) - n <= kills  # each kill costs at most the item in hand
