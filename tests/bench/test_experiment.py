"""Experiment files: what is read, what is refused, and by which words."""

from __future__ import annotations

import json
import pickle
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_folders import model_folder

from w2sdiff import AutoGuidance, Checkpoint, Plain
from w2sdiff.bench.plan.experiment import Arm, Experiment
from w2sdiff.bench.plan.textfile import read_mapping
from w2sdiff.bench.plan.words import read_words
from w2sdiff.errors import InputError
from w2sdiff.generate import Settings, find_model

ARMS = "{plain: {method: plain}}"
LEAST = {"prompts": "shapes", "scorers": ["saturation"], "arms": {"plain": {"method": "plain"}}}


def written(folder, text, name="some.yaml"):
    path = folder / name
    path.write_text(text if isinstance(text, str) else json.dumps(text), "utf-8")
    return path


def read(folder, **changes):
    data = {**LEAST, "model": str(model_folder("sd", weak=True, lora=True)), **changes}
    data = {name: value for name, value in data.items() if value is not None}
    return Experiment.read(written(folder, data, "some.json"), device="cpu")


def test_the_example_of_the_documentation_is_read(tmp_path):
    path = written(
        tmp_path,
        """
        title: W2SD on the embedded world
        model: shapes-unet
        steps: 20
        guidance: 3.0
        prompts: shapes
        limit: 64
        batch: 16
        scorers: [shapes, saturation]
        select: sharpness
        arms:
          plain: {method: plain}
          w2sd:
            {method: w2sd, strong: guidance=1, weak: "guidance=1,checkpoint={model}/unet_weak"}
          ag: {method: autoguidance, scale: 2.0, steps: 30}
          lora: {method: w2sd, strong: lora:balance-strong=1, weak: lora:balance-weak=1}
          best: {method: plain, candidates: 3}
        compare: [[w2sd, ag]]
        """,
    )
    found = Experiment.read(path)
    plain, w2sd, ag, lora, best = found.arms
    assert (found.title, found.limit, found.batch) == ("W2SD on the embedded world", 64, 16)
    assert [arm.settings.steps for arm in found.arms] == [20, 20, 30, 20, 20]
    assert plain.evaluations == 40
    [weak] = [edit for edit in w2sd.method.weak if isinstance(edit, Checkpoint)]
    assert str(weak.source).endswith("shapes-unet/unet_weak")
    assert ag.method.scale == 2.0
    assert any("ag: no pair given" in note for note in found.notes)
    assert {file.name for file in lora.settings.loras} == {"balance-strong", "balance-weak"}
    assert (best.candidates, best.evaluations, best.select) == (3, 120, "sharpness")
    assert found.compare == (("w2sd", "ag"),)


def test_yaml_and_json_say_the_same(tmp_path):
    import yaml

    data = {**LEAST, "steps": 3, "arms": {"a": {"method": "w2sd", "window": "0:0.5"}}}
    one = read_words(written(tmp_path, data, "x.json"))
    other = read_words(written(tmp_path, yaml.safe_dump(data), "x.yaml"))
    assert (one.arms, one.run) == (other.arms, other.run)
    unquoted = "{prompts: shapes, scorers: [saturation], arms: {a: {method: w2sd, window: 0:0.5}}}"
    assert read_words(written(tmp_path, unquoted)).arms[0].options["window"] == "0:0.5"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stpes": 3}, r"Unknown key 'stpes'. Did you mean 'steps'\?"),
        ({"arms": {"a": {"method": "w2ds"}}}, r"arms.a.method: .*Did you mean 'w2sd'"),
        ({"arms": {"a": {"method": "plain", "scale": 2}}}, "arms.a: Unknown key 'scale'"),
        ({"arms": {"a": {"method": "w2sd", "weka": "x"}}}, "Did you mean 'weak'"),
        ({"arms": {"a": 3}}, "arms.a: expected options"),
        ({"arms": {}}, "at least one arm"),
        ({"arms": {"a\nb": {"method": "plain"}}}, "a name of 1 to 100 characters"),
        ({"arms": {"x" * 101: {"method": "plain"}}}, "a name of 1 to 100 characters"),
        ({"arms": {"a": {"method": "plain", "candidates": 2}}}, "a scorer to choose by"),
        ({"steps": "many"}, "steps: expected a whole number"),
        ({"steps": True}, "steps: expected a whole number"),
        ({"steps": 0}, "steps: expected a whole number"),
        ({"guidance": "3"}, "guidance: expected a number"),
        ({"size": "wide"}, "size: expected a size"),
        ({"size": "64x"}, "size: expected a size such as 512 or 768x512, got '64x'"),
        ({"size": 12}, "arms.plain: expected a size in multiples of 8"),
        ({"scheduler": "eular"}, "scheduler: .*Did you mean 'euler'"),
        ({"scorers": []}, "scorers: expected at least one"),
        ({"scorers": "shapes"}, "scorers: expected a list"),
        ({"scorers": ["saturatoin"]}, "scorers: .*Did you mean 'saturation'"),
        ({"scorers": ["saturation", "saturation"]}, "twice"),
        ({"select": "saturation"}, "flattered"),
        ({"prompts": None}, "prompts: expected the name"),
        ({"seeds": "random"}, "seeds: "),
        ({"rivals": "no"}, "rivals: expected true or false"),
        ({"limit": 0}, "limit: expected a whole number from 1"),
        ({"compare": [["plain", "w2sd"]]}, "compare: Unknown arm 'w2sd'"),
        ({"compare": [["plain", "plain"]]}, "two different names"),
        ({"compare": ["plain"]}, r"compare\[0\]"),
        ({"model": "nowhere/at/all"}, "arms.plain: no model folder"),
        ({"loras": {"style": "absent.safetensors"}}, "arms.plain: the LoRA file"),
        ({"loras": ["a"]}, "loras: expected NAME: FILE"),
        ({"dtype": "float8"}, "dtype: "),
        ({"arms": {"a": {"method": "w2sd", "weak": "checkpoint=some/where"}}}, "--download"),
    ],
)
def test_what_is_refused_names_the_file_and_the_key(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as refused:
        read(tmp_path, **changes)
    assert "some.json" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: !!python/object/apply:os.system ['true']", "no YAML"),
        ("{a: 1, a: 2}", "'a' is there twice"),
        ("- a\n- b", "expected names and values"),
        ("", "expected names and values"),
        ("a: 'x", "no YAML"),
        ("? [1]\n: 2", "no YAML|expected a name"),
        ("[" * 5000, "nested too deeply"),
        ("a: " + "9" * 5000, "no YAML"),
        ("x" * 1_000_001, "more than 1000000 bytes"),
        ("a: \x00", "no YAML"),
    ],
)
def test_hostile_yaml_is_one_clear_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as refused:
        read_mapping(written(tmp_path, text))
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"a": 1, "a": 2}', "twice"), ('{"a": NaN}', "NaN"), ("[" * 100_000, "deep"), ("{", "JSON")],
)
def test_hostile_json_is_one_clear_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_mapping(written(tmp_path, text, "x.json"))


def test_other_files_are_refused_by_their_ending(tmp_path):
    with pytest.raises(InputError, match=r"ending in \.yaml"):
        read_mapping(tmp_path / "x.py")
    with pytest.raises(InputError, match="does not exist"):
        read_mapping(tmp_path / "x.yaml")
    (tmp_path / "y.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        read_mapping(tmp_path / "y.yaml")


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_file_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    with suppress(InputError):
        read_words(path)


def test_arms_travel_to_other_processes(tmp_path):
    found = read(tmp_path, arms={"ag": {"method": "autoguidance"}})
    found.arms[0].recipe.evaluations  # noqa: B018 - reads the model, whose findings do not pickle
    again = pickle.loads(pickle.dumps(found))
    assert again == found
    assert again.arms[0].recipe.decides == found.arms[0].recipe.decides


def test_best_of_n_costs_all_its_pictures():
    model = find_model(str(model_folder("sd")))
    settings = Settings(steps=4, guidance=3.0, device="cpu", dtype="float32")
    assert Arm("a", Plain(), model, settings, candidates=3, select="sharpness").evaluations == 24
    assert Arm("a", AutoGuidance(), model, settings).evaluations == 16
    for wrong in ({"candidates": 0}, {"candidates": 2}):
        with pytest.raises(InputError, match=r"candidate|choose by"):
            Arm("a", Plain(), model, settings, **wrong)
