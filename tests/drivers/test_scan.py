"""Every installed diffusers pipeline is woven or refused with a reason; a list pins which.

`python tests/drivers/test_scan.py` writes the list of the installed diffusers. A pipeline that
appears in the list or leaves it after an upgrade deserves a look at its loop.
"""

from __future__ import annotations

import inspect
import re
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


# What the table of refused kinds (`w2sdiff.drivers.refused`) leaves out because it needs no name.
REASONS = {
    "Kandinsky6TI2VAPipeline": "several schedulers in one loop (audio_scheduler, self.scheduler)",
    "JoyImageEditPipeline": "it writes into 'latents'",
    "I2VGenXLPipeline": "it rebinds 'latents'",
    "Flux2KleinKVPipeline": "it carries ['kv_cache']",
    "UnCLIPPipeline": "has several denoising loops",
}


@pytest.mark.parametrize("name", REASONS)
def test_other_refusals_have_the_right_reason(name):
    cls = getattr(diffusers, name, None)
    if cls is None:
        pytest.skip(f"diffusers {MINOR} does not have it")
    with pytest.raises(UnsupportedError, match=re.escape(REASONS[name])) as refused:
        woven_call(cls)
    assert str(refused.value).startswith(name)


def test_every_family_of_the_table_weaves():
    for name in FAMILIES:
        woven_call(getattr(diffusers, name))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_facts_of_a_family_are_read_from_variables_that_the_loop_has(name):
    """So that a renamed variable shows here, and not in a user's run."""
    family, cls = FAMILIES[name], getattr(diffusers, name)
    woven = woven_call(cls)[1]
    variables = set(inspect.unwrap(woven.function).__code__.co_varnames)
    for fact in (family.scale, family.rescale):
        source = inspect.getsource(fact)
        switches = set(re.findall(r'frame\.get\("(\w+)"', source))
        if switches <= variables:  # else guidance is never on (FLUX Fill)
            assert set(re.findall(r'frame\["(\w+)"', source)) <= variables


if __name__ == "__main__":
    PINNED.write_text("\n".join(scan()[0]) + "\n", encoding="utf-8")
