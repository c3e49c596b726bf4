"""The work queue: what is done (`Ledger`), and who does the rest (`run_local`, `run_ray`).

`w2sdiff generate` runs on it, and so does everything else that makes many expensive things one by
one. It knows nothing of images or models: an `Item` is a JSON value that decides a result, a `Task`
is one or more items that are made together, and the function that does the work turns a task into
one `Done` or `Failed` per item.
"""

from __future__ import annotations

from w2sdiff.jobs.files import check_writable, write_whole
from w2sdiff.jobs.hashing import canonical, digest, file_sha256, weights_sha256
from w2sdiff.jobs.ledger import Claim, Ledger, State
from w2sdiff.jobs.local import Event, Job, Summary, run_local
from w2sdiff.jobs.ray import run_ray
from w2sdiff.jobs.values import Done, Failed, Item, Record, Task

__all__ = [
    "Claim",
    "Done",
    "Event",
    "Failed",
    "Item",
    "Job",
    "Ledger",
    "Record",
    "State",
    "Summary",
    "Task",
    "canonical",
    "check_writable",
    "digest",
    "file_sha256",
    "run_local",
    "run_ray",
    "weights_sha256",
    "write_whole",
]
