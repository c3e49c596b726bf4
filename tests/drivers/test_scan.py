"""Every installed diffusers pipeline is woven or refused with a reason; a list pins which.

`python tests/drivers/test_scan.py` writes the list of the installed diffusers. A pipeline that
appears in the list or leaves it after an upgrade deserves a look at its loop.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import diffusers
import pytest

from w2sdiff.drivers.families import FAMILIES
from w2sdiff.drivers.weave import woven_call
from w2sdiff.errors import UnsupportedError

MINOR = ".".join(diffusers.__version__.split(".")[:2])
PINNED = Path(__file__).with_name(f"weaves-{MINOR}.txt")


def scan():
    """(names of the pipelines that weave, name -> reason for the others)."""
    woven, refused = [], {}
    for name in sorted(name for name in dir(diffusers) if name.endswith("Pipeline")):
        try:
            cls = getattr(diffusers, name)
        except (ImportError, RuntimeError):
            continue  # needs a library that is not installed
        if not (inspect.isclass(cls) and issubclass(cls, diffusers.DiffusionPipeline)):
            continue
        try:
            woven_call(cls)
        except UnsupportedError as reason:
            refused[name] = str(reason)
        else:
            woven.append(name)
    return woven, refused


@pytest.fixture(scope="module")
def scanned():
    return scan()


@pytest.mark.slow
def test_accepted_pipelines_are_the_pinned_ones(scanned):
    if not PINNED.is_file():
        pytest.skip(f"no list for diffusers {MINOR}")
    assert scanned[0] == PINNED.read_text(encoding="utf-8").split()


@pytest.mark.slow
def test_refusals_say_which_pipeline_and_why_in_one_line(scanned):
    _, refused = scanned
    assert refused
    for name, reason in refused.items():
        assert "\n" not in reason, name
        assert "__call__" in reason or "loop" in reason, name
        assert len(reason) > len(name) + 30, name


def test_every_family_of_the_table_weaves():
    for name in FAMILIES:
        woven_call(getattr(diffusers, name))


if __name__ == "__main__":
    PINNED.write_text("\n".join(scan()[0]) + "\n", encoding="utf-8")
