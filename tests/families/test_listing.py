"""`w2sdiff list families` says what the code and the installed diffusers say."""

from __future__ import annotations

import json

import diffusers
import pytest
from typer.testing import CliRunner

from w2sdiff.cli.app import app
from w2sdiff.drivers.families import FAMILIES
from w2sdiff.drivers.refused import REFUSED
from w2sdiff.drivers.weave import woven_call
from w2sdiff.errors import UnsupportedError
from w2sdiff.testing import variants


@pytest.fixture(scope="module")
def listed():
    result = CliRunner().invoke(app, ["list", "families", "--json"])
    assert result.exit_code == 0
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_every_known_pipeline_is_listed_once_with_its_family(listed):
    known = [row for row in listed if not row.get("refused")]
    found = {name: row["name"] for row in known for name in row["pipelines"]}
    assert found == {name: family.name for name, family in FAMILIES.items()}
    assert sum(len(row["pipelines"]) for row in known) == len(FAMILIES)
    assert {row["name"] for row in known} == {variant.family for variant in variants()}


@pytest.mark.parametrize("name", FAMILIES)
def test_whether_diffusers_loads_loras_is_what_it_says(name):
    cls = getattr(diffusers, name)
    assert hasattr(cls, "load_lora_weights") == FAMILIES[name].lora


def test_refused_kinds_are_listed_with_their_reason(listed):
    rows = {row["name"]: row for row in listed if row.get("refused")}
    for refused in REFUSED:
        assert rows[f"refused: {refused.kind}"]["summary"] == refused.why


EXAMPLES = [(refused, name) for refused in REFUSED for name in refused.examples]


@pytest.mark.parametrize(("refused", "name"), EXAMPLES, ids=[name for _, name in EXAMPLES])
def test_refused_kinds_are_refused(refused, name):
    cls = getattr(diffusers, name, None)
    if cls is None:
        pytest.skip("the installed diffusers does not have it")
    with pytest.raises(UnsupportedError, match=refused.says):
        woven_call(cls)


def test_people_see_a_line_per_family():
    result = CliRunner().invoke(app, ["list", "families"])
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("FLUX.1")]
    assert "embedded guidance" in line
    assert "LoRA" in line
    assert "FluxKontextPipeline" in line
