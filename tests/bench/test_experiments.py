"""The committed experiments: each can be read, and is what its comments say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from model_folders import model_folder

from w2sdiff import Guidance, InputError, Lora, Plain, ZigZag
from w2sdiff.bench.plan.experiment import Experiment
from w2sdiff.bench.plan.words import read_words
from w2sdiff.bench.rivals.matched import rivals_of

FOLDER = Path(__file__).parents[2] / "benchmarks" / "experiments"
FILES = sorted(FOLDER.glob("*.yaml"))
EMBEDDED = [path for path in FILES if path.stem.startswith("shapes")]
PUBLISHED = [path for path in FILES if path.stem.startswith("sdxl")]


def by_stem(path):
    return path.stem


def test_there_are_some_of_both_kinds():
    assert len(EMBEDDED) + len(PUBLISHED) == len(FILES)
    names = {"shapes_quick", "shapes_unet", "shapes_dit", "shapes_core2"}
    names |= {"shapes_pairs_unet", "shapes_pairs_dit"}
    assert names == {path.stem for path in EMBEDDED}
    assert {"sdxl_lora", "sdxl_guidance"} == {path.stem for path in PUBLISHED}


@pytest.mark.parametrize("path", EMBEDDED, ids=by_stem)
def test_one_on_an_embedded_model_is_ready_to_run(path):
    experiment = Experiment.read(path, device="cpu")
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


@pytest.mark.parametrize("path", PUBLISHED, ids=by_stem)
def test_with_its_weights_it_is_ready_to_run(path, tmp_path):
    """Tiny weights of the same kind in their place; everything else as in the file."""
    model = model_folder("sdxl", lora=True)
    data = yaml.safe_load(path.read_text())
    data["model"], data["device"] = str(model), "cpu"
    del data["variant"]
    if "loras" in data:
        file = str(model / "loras" / "style.safetensors")
        data["loras"] = dict.fromkeys(data["loras"], file)
    copy = tmp_path / path.name
    copy.write_text(yaml.safe_dump(data))
    experiment = Experiment.read(copy)
    assert [arm.settings.steps for arm in experiment.arms] == [50] * len(experiment.arms)
    arm = experiment.arms[-1]
    rivals = {rival.match: rival for rival in rivals_of(arm, strength=13.51, select="sharpness")}
    if path.stem == "sdxl_guidance":
        assert arm.evaluations == 247
        assert isinstance(arm.method, ZigZag)
        assert rivals["first order"].settings.guidance == 11
        assert rivals["strength"].settings.guidance == 13.51
    else:
        assert arm.evaluations == 198
        assert rivals["evaluations"].settings.steps == 99
        assert rivals["evaluations"].method == Plain(Lora("moreart", 0.8))
        assert rivals["first order"].method.strong.items[0] == Guidance(1.0)
        assert rivals["best of n"].candidates == 2
