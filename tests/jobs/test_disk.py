"""A disk that is full or may not be written: one clear line, and what was finished stays whole.

Real file systems, not pretended errors: a process may mount a small one in a namespace of its own.
"""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from w2sdiff.errors import InputError
from w2sdiff.jobs import Done, Item, Ledger, Task, run_local

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def tasks(n):
    return [Task((Item({"n": i}),)) for i in range(n)]


def big(task):
    return [Done({f"{task.items[0].spec['n']}.bin": bytes(40_000)})]


def in_namespace(folder: Path, mount: str, code: str) -> str:
    """What a program prints that runs where `mount` has been done; it finds the folder in argv."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, of util-linux, to mount a file system")
    if subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets no process have a namespace of its own")
    program = f'{mount} && exec "$0" -c "$1" "$2"'
    words = [*NAMESPACE, "sh", "-c", program, sys.executable, textwrap.dedent(code), str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


COMMON = """
    import sys
    from pathlib import Path
    from w2sdiff.errors import InputError
    from w2sdiff.jobs import Done, Item, Ledger, Task, check_writable, run_local

    folder = Path(sys.argv[1])
    tasks = [Task((Item({"n": i}),)) for i in range(8)]
    big = lambda task: [Done({f"{task.items[0].spec['n']}.bin": bytes(40_000)})]
    small = lambda task: [Done({}, {"text": "x" * 3000}) for _ in task.items]

    def attempt(tasks, work):
        try:
            with Ledger(folder) as ledger:
                print(run_local(ledger, tasks, work))
        except InputError as error:
            print(error)
"""


@pytest.mark.parametrize("work", ["big", "small"])
def test_a_full_disk(tmp_path, work):
    told = in_namespace(
        tmp_path,
        f"mount -t tmpfs -o size=160k none '{tmp_path}'",
        COMMON
        + f"""
    tasks = [Task((Item({{"n": i}}),)) for i in range(60)]
    attempt(tasks, {work})
    whole = list(Ledger(folder).records())
    print(len(whole), any(Ledger(folder).damaged(record) for record in whole))
    print([path.name for path in folder.rglob("*.tmp")])
    print(sum(Ledger(folder).state(task).attempts for task in tasks) == len(whole))
    """,
    )
    error, whole, left, found = told.splitlines()
    assert error.startswith("cannot write")
    assert error.endswith("the disk is full")
    count, damaged = whole.split()
    assert int(count) > 0
    assert (damaged, left, found) == ("False", "[]", "True")


def test_a_read_only_folder_is_read_but_not_written(tmp_path):
    assert run_local(Ledger(tmp_path), tasks(2), big).made == 2
    told = in_namespace(
        tmp_path,
        f"mount --bind '{tmp_path}' '{tmp_path}' && mount -o remount,bind,ro '{tmp_path}'",
        COMMON
        + """
    attempt(tasks[:2], big)
    attempt(tasks, big)
    try:
        check_writable(folder)
    except InputError as error:
        print(error)
    """,
    )
    everything_there, missing, asked = told.splitlines()
    assert "found=2" in everything_there  # nothing to write, nothing to complain of
    assert missing == asked == f"cannot write to {tmp_path}: the file system is read-only"


def test_a_file_larger_than_allowed(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write .*0\.bin"):
            run_local(Ledger(tmp_path), tasks(1), big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert run_local(Ledger(tmp_path), tasks(1), big).made == 1


def test_the_last_record_cut_off_by_a_power_cut_costs_one_item(tmp_path):
    """As ext4 leaves a file that was renamed but not yet written: its name, and no bytes."""

    def score(task):
        return [Done({}, {"score": float(item.spec["n"])}) for item in task.items]

    ledger = Ledger(tmp_path)
    run_local(ledger, tasks(3), score)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "records").iterdir()}
    (tmp_path / "records" / f"{tasks(3)[-1].key}.json").write_bytes(b"")
    assert len(list(ledger.records())) == 2
    again = run_local(ledger, tasks(3), score)
    assert (again.found, again.made) == (2, 1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "records").iterdir()} == whole
