"""The committed experiments: each can be read, and is what its comments say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from model_folders import model_folder

from w2sdiff import AutoGuidance, Guidance, InputError, Lora, Plain, ZigZag
from w2sdiff.bench.plan.experiment import Experiment
from w2sdiff.bench.plan.missing import evaluations_of, missing_of
from w2sdiff.bench.plan.words import read_words
from w2sdiff.bench.rivals.matched import rivals_of
from w2sdiff.generate import PRESETS
from w2sdiff.methods import ROLES

FOLDER = Path(__file__).parents[2] / "benchmarks" / "experiments"
FILES = sorted(FOLDER.glob("*.yaml"))
EMBEDDED = [path for path in FILES if path.stem.startswith("shapes")]
PUBLISHED = [path for path in FILES if path.stem.startswith(("sdxl", "sd15"))]
# Evaluations of what is published, counted by hand: 49 steps that reflect, and 50 of two each.
COSTS = {
    "sdxl_guidance": 49 * 3 + 100,
    "sd15_guidance": 49 * 3 + 100,
    "sdxl_lora": 49 * 2 + 100,
    "sd15_lora": 49 * 2 + 100,
    "sdxl_checkpoint": 49 * 2 + 100,
    "sd15_checkpoint": 49 * 2 + 100,
    "sdxl_prompt": 49 * 2 + 100,
    "sdxl_stacked": 49 * 3 + 100,
    "sdxl_ga_eval": 49 * 3 + 100,
}


def by_stem(path):
    return path.stem


def test_there_are_some_of_both_kinds():
    assert len(EMBEDDED) + len(PUBLISHED) == len(FILES)
    names = {"shapes_quick", "shapes_unet", "shapes_dit", "shapes_core2"}
    names |= {"shapes_pairs_unet", "shapes_pairs_dit"}
    assert names == {path.stem for path in EMBEDDED}
    assert set(COSTS) == {path.stem for path in PUBLISHED}


@pytest.mark.parametrize("path", EMBEDDED, ids=by_stem)
def test_one_on_an_embedded_model_is_ready_to_run(path):
    experiment = Experiment.read(path, device="cpu")
    words = read_words(path)
    assert missing_of(words) == ()
    for arm, said in zip(experiment.arms, words.arms, strict=True):
        assert evaluations_of(said) in (arm.evaluations, None)
    # A pair is measured by the oracle alone, so that nothing is left to choose the best of n by.
    assert (experiment.select is None) == path.stem.startswith("shapes_pairs")
    assert experiment.notes == ()  # nothing is left to be filled in
    for arm in experiment.arms:
        rivals = rivals_of(arm, strength=5.0, select=experiment.select)
        matches = {rival.match for rival in rivals}
        if isinstance(arm.method, Plain):
            assert not rivals
        else:
            assert {"evaluations", "strength"} <= matches
        assert all(rival.evaluations <= arm.evaluations for rival in rivals)


@pytest.mark.parametrize("path", PUBLISHED, ids=by_stem)
def test_one_that_needs_weights_says_which_are_missing(path):
    words = read_words(path)
    with pytest.raises(InputError, match=words.arms[0].model["name"]) as error:
        Experiment.read(path, device="cpu")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert words.run["seeds"] == "index"
    missing = missing_of(words)
    assert len({(one.kind, one.name) for one in missing}) == len(missing)
    [model] = [one for one in missing if one.kind == "model"]
    assert model.name == words.arms[0].model["name"]
    assert model.arms == tuple(arm.name for arm in words.arms)
    named = {file for arm in words.arms for file in arm.loras.values()}
    assert {one.name for one in missing if one.kind == "file"} == named
    edits = ",".join(str(arm.options.get(role)) for arm in words.arms for role in ROLES)
    checkpoints = set(re.findall("checkpoint=([^,]+)", edits))
    assert {one.name for one in missing if one.kind == "checkpoint"} == checkpoints
    assert not [one for one in missing if one.kind == "edit"]


@pytest.mark.parametrize("path", PUBLISHED, ids=by_stem)
def test_one_that_needs_weights_names_its_source_and_what_the_paper_reports(path):
    comment = " ".join(
        line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")
    )
    assert "arXiv 2" in comment
    assert "eports" in comment
    assert re.search(r"measured by us", comment)
    assert f"w2sdiff bench benchmarks/experiments/{path.name}" in comment


@pytest.mark.parametrize("path", PUBLISHED, ids=by_stem)
def test_with_its_weights_it_is_ready_to_run(path, tmp_path):
    """Tiny weights of the same kind in their place; everything else as in the file."""
    experiment = Experiment.read(with_tiny_weights(path, tmp_path), device="cpu")
    said = {arm.name: evaluations_of(arm) for arm in read_words(path).arms}
    assert said == {arm.name: arm.evaluations for arm in experiment.arms}
    fewer = {"z-sampling, equal time": 25}
    for arm in experiment.arms:
        assert arm.settings.steps == fewer.get(arm.name, 50)
        assert arm.settings.scheduler == "ddim"
    arm = experiment.arms[-1]
    rivals = {rival.match: rival for rival in rivals_of(arm, strength=13.51, select="sharpness")}
    assert arm.evaluations == COSTS[path.stem]
    assert arm.method.inversion == "reference"
    if isinstance(arm.method, ZigZag) or path.stem.endswith("_guidance"):
        assert rivals["first order"].settings.guidance == 11
        assert rivals["strength"].settings.guidance == 13.51
    elif path.stem == "sdxl_lora":
        assert rivals["evaluations"].settings.steps == 99
        assert rivals["evaluations"].method == Plain(Lora("moreart", 0.8))
        assert rivals["first order"].method.strong.items[0] == Guidance(1.0)
        assert rivals["best of n"].candidates == 2
    else:
        assert isinstance(rivals["first order"].method, AutoGuidance)


def with_tiny_weights(path: Path, folder: Path) -> Path:
    model = model_folder("sdxl" if path.stem.startswith("sdxl") else "sd", weak=True, lora=True)
    data = yaml.safe_load(path.read_text())
    data |= {"model": str(model), "variant": None}
    if "loras" in data:
        file = str(model / "loras" / "style.safetensors")
        data["loras"] = dict.fromkeys(data["loras"], file)
    for arm in data["arms"].values():
        published = PRESETS[arm["preset"]].options if "preset" in arm else {}
        roles = {role: arm.get(role, published.get(role)) for role in ROLES}
        arm |= {
            role: re.sub("checkpoint=[^,]+", f"checkpoint={model}/unet_weak", edits)
            for role, edits in roles.items()
            if edits is not None
        }
    copy = folder / path.name
    copy.write_text(yaml.safe_dump(data, sort_keys=False))
    return copy
