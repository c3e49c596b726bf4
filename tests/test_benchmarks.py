"""Each benchmark runs from the command line and says what it found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from w2sdiff import shapes

REPO = Path(__file__).parent.parent
SMALLEST = {
    "shapes_balance": "--n 8 --steps 2",
    "shapes_methods": "--models shapes-dit --limit 8 --choose-on 4 --steps 2",
    "core2": "--models shapes-unet --limit 8 --choose-on 8 --steps 4 --repeats 1",
    "attention": "--tokens 64 --width 72 --repeats 1 --depth 1 --threads 1 --no-cuda",
    "highres": "--size 256 --depth 1 --width 72 --vae-width 8 --kv-compress 2",
    "shapes_highres": "--folder {tmp} --limit 4 --limit-small 4 --pictures 4 --steps 2 --repeats 1",
    "compressed_weak": "--folder {tmp} --sizes 64 --limit 4 --pictures 4 --steps 3",
    "families": "--variants sd flux sdxl-pag --repeats 1 --call-ms 1",
    "harness": "--parts ledger report --items 200 --prompts 8",
}
MODELS = {"shapes_balance": "shapes-unet", "core2": "shapes-unet", "shapes_methods": "shapes-dit"}


def test_first_images_puts_the_sheets_one_under_the_other(tmp_path):
    from PIL import Image

    script = REPO / "benchmarks" / "first_images.py"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    helped = run("--help")
    assert helped.returncode == 0, helped.stderr
    assert "usage: first_images.py" in helped.stdout
    for place, size in enumerate([(6, 4), (3, 5)]):
        Image.new("RGB", size, (200, 0, 0)).save(tmp_path / f"{place}-compare-x.png")
    out = tmp_path / "page.png"
    assert run(str(tmp_path), "--out", str(out)).returncode == 0
    with Image.open(out) as page:
        assert page.size == (6, 9)
    missing = run(str(tmp_path / "none"), "--out", str(out))
    assert missing.returncode == 1
    assert "make demo" in missing.stderr


@pytest.fixture(scope="module")
def result(request, tmp_path_factory) -> dict:
    """The last line of a script's output, which is also its file."""
    name = request.param
    if name in MODELS and MODELS[name] not in shapes.checkpoint_names():
        pytest.skip(f"the embedded checkpoint {MODELS[name]} is not there")
    out = tmp_path_factory.mktemp("results") / f"{name}.json"
    script = REPO / "benchmarks" / f"{name}.py"
    command = [
        sys.executable,
        str(script),
        *SMALLEST[name].format(tmp=out.parent).split(),
        "--out",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
    assert done.returncode == 0, done.stderr[-2000:]
    last = json.loads(done.stdout.splitlines()[-1])
    assert last == json.loads(out.read_text(encoding="utf-8"))
    assert last["benchmark"] == name
    return last


@pytest.mark.slow
@pytest.mark.parametrize("result", ["shapes_balance"], indirect=True)
def test_balance_spends_no_more_than_w2sd(result):
    arms = result["arms"]
    spent = {name: arm["equal_evaluations"]["evaluations"] for name, arm in arms.items()}
    assert max(spent.values()) == spent["W2SD"] == result["budget"]
    assert arms["W2SD"]["equal_steps"] == arms["W2SD"]["equal_evaluations"]
    # 1/2 squared over 1/10: the rare colours would be 2.5 times as frequent as the others.
    shares = sorted(arms["W2SD"]["expected"]["from_training"]["colours"].values())
    assert shares[-1] / shares[0] == pytest.approx(2.5, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("result", ["shapes_methods"], indirect=True)
def test_methods_spend_no_more_than_w2sd(result):
    found = result["models"]["shapes-dit"]
    arms = found["arms"]
    assert max(arm["evaluations"] for arm in arms.values()) == found["budget"]
    reference = arms["plain, equal evaluations"]["score"]["share"]
    for name, arm in arms.items():
        assert arm["score"]["n"] == 8
        if name != "plain, equal evaluations":
            d = arm["minus_reference"]
            assert d["wins"] - d["losses"] == round(8 * d["difference"])
            assert d["difference"] == pytest.approx(arm["score"]["share"] - reference, abs=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("result", ["core2"], indirect=True)
def test_core2_says_what_each_arm_costs_and_closes(result):
    found = result["models"]["shapes-unet"]
    arms = found["arms"]
    assert arms["fast only"]["evaluations"] == arms["plain, guidance 1"]["evaluations"] == 4
    assert arms["slow only"]["evaluations"] == arms["plain, best guidance"]["evaluations"] == 8
    ends = (arms[f"plain, {name}"] for name in ("guidance 1", "best guidance"))
    alone, best = (end["score"]["share"] for end in ends)
    for arm in arms.values():
        expected = (arm["score"]["share"] - alone) / max(best - alone, 1e-9)
        assert arm["gap_closed"]["share"] == pytest.approx(expected, abs=2e-3)
    assert len(found["explained"]["by_level"]) == 4
    assert {"batch 1", "batch 16"} == set(found["timing"])


@pytest.mark.slow
@pytest.mark.parametrize("result", ["harness"], indirect=True)
def test_harness_measures_what_it_names(result):
    assert result["ledger"]["items"] == 200
    assert result["report"]["arms"] == 6
    assert len(result["targets"]) == 5
    assert all(result["ledger"][name] > 0 for name in ("made_ms", "score_record_ms", "scan_s"))


@pytest.mark.slow
@pytest.mark.parametrize("result", ["attention"], indirect=True)
def test_attention_measures_every_kind_and_the_port_computes_the_same(result):
    cpu = result["cpu"]
    assert max(cpu["difference_to_port"].values()) < 1e-4
    for part in ("attention", "layer", "denoiser"):
        some = [row for row in cpu[part] if row["kind"] != "none"]
        assert len({(row["kind"], row["ratio"]) for row in some}) == 10
        assert {row["pass"] for row in some} == {"forward", "forward and backward"}
        assert all(row["times_faster"] > 0 for row in some)
    allowed = {
        (row["kind"], row["ratio"]): row["allowed"]
        for row in cpu["attention"]
        if row["kind"] in ("uniform", "uniform_every")
    }
    assert allowed == {  # of keys alone: nothing is added up
        ("uniform", 2): 4,
        ("uniform", 4): 16,
        ("uniform_every", 2): 2,
        ("uniform_every", 4): 4,
    }


@pytest.mark.slow
@pytest.mark.parametrize("result", ["highres"], indirect=True)
def test_the_denoiser_of_a_large_picture_sees_all_of_its_tokens(result):
    assert result["targets"]["image tokens"] == {"measured": 256, "target": 256, "met": True}
    assert list(result["runs"][0]["stages"]) == ["loading", "prompt", "denoising", "decoding"]


@pytest.mark.slow
def test_pairs_are_reported_by_category_beside_their_rivals(tmp_path):
    """A run of four captions, and the table that the script makes of it."""
    experiment = REPO / "benchmarks" / "experiments" / "shapes_pairs_dit.yaml"
    run, out = tmp_path / "shapes_pairs_dit", tmp_path / "pairs.json"
    bench = ["bench", str(experiment), "--limit", "4", "--batch", "4", "--no-report"]
    script = [str(REPO / "benchmarks" / "shapes_pairs.py"), "--models", "shapes-dit"]
    for command in (
        ["-m", "w2sdiff", *bench, "--device", "cpu", "--quiet", "--out", str(run)],
        [*script, "--runs", str(tmp_path), "--out", str(out)],
    ):
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, check=False, cwd=REPO
        )
        assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text(encoding="utf-8"))["models"]["shapes-dit"]
    asked = {name: arm for name, arm in found["arms"].items() if arm["rival_of"] is None}
    pairs = [name for name in asked if not name.startswith("plain")]
    assert len(pairs) == 6
    for name in pairs:
        arm = found["arms"][name]
        assert sum(part["n"] for part in arm["parts"].values()) == arm["score"]["n"] == 4
        matches = {found["arms"][rival]["match"] for rival in arm["minus"]}
        assert {"evaluations", "first order"} <= matches
        assert "plain" in arm["minus"]


@pytest.mark.slow
@pytest.mark.parametrize("result", ["shapes_highres"], indirect=True)
def test_the_ablation_judges_what_needs_no_training(result):
    arms = result["arms"]
    assert {"positions kept", "positions interpolated", "64 pixels, as it is"} <= arms.keys()
    assert not [name for name in arms if "steps" in name]
    error = {name: arm["error"]["mean"] for name, arm in arms.items()}
    assert error["positions interpolated"] < error["positions kept"]
    more = arms["64 pixels, average, untuned"]["error_minus_rival"]["difference"]
    least = error["64 pixels, as it is"]
    assert 0 < more == pytest.approx(error["64 pixels, average, untuned"] - least, abs=2e-4)
    assert len(result["trainings"]) > 10
    assert all(line.startswith("w2sdiff kv tune") for line in result["trainings"])
    assert [row["none"]["over_none"] for row in result["timing"].values()] == [1, 1, 1]
    # Activations: so many times the tokens, so many times the memory.
    small, middle, large = (row["none"]["peak_mb"] for row in result["timing"].values())
    assert (middle / small, large / middle) == pytest.approx((4, 4), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("result", ["compressed_weak"], indirect=True)
def test_weak_models_spend_no_more_than_w2sd_and_their_errors_have_a_direction(result):
    found = result["sizes"]["64"]
    assert max(arm["evaluations"] for arm in found["arms"].values()) == found["budget"]
    guidance = found["arms"]["W2SD, guidance 1 and 0"]
    assert guidance["evaluations"] == found["arms"]["W2SD, early checkpoint"]["evaluations"]
    assert guidance["minus_rival"]["rival"] == "plain, guidance g + 1"
    directions = found["directions"]
    assert {"no caption", "early checkpoint", "average, R = 2, deep"} <= directions.keys()
    for row in directions.values():
        # |w - y|² = |s - y|² + (1 + 2 a) |w - s|²: the three figures belong together.
        moved = row["error"] - row["strong_error"]
        assert (moved > 0) == (row["best_a"]["a"] > -0.5)


@pytest.mark.slow
def test_arms_are_added_only_beside_arms_of_the_same_networks(tmp_path):
    out = tmp_path / "compressed_weak.json"
    smallest = SMALLEST["compressed_weak"].format(tmp=tmp_path).split()
    script = [str(REPO / "benchmarks" / "compressed_weak.py"), *smallest, "--out", str(out)]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *script, *more]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)

    reference, first, second = (
        "plain, equal evaluations",
        "W2SD, guidance 1 and 0",
        "plain, guidance g + 1",
    )
    done = run("--arms", first)
    assert done.returncode == 0, done.stderr[-2000:]
    before = json.loads(out.read_text(encoding="utf-8"))
    assert before["sizes"]["64"]["arms"].keys() == {reference, first}
    done = run("--arms", second, "--add")
    assert done.returncode == 0, done.stderr[-2000:]
    after = json.loads(out.read_text(encoding="utf-8"))
    assert after["sizes"]["64"]["arms"].keys() == {reference, first, second}
    after["sizes"]["64"]["directions"]["early checkpoint"]["error"] += 1e-4
    out.write_text(json.dumps(after), encoding="utf-8")
    done = run("--arms", second, "--add")
    assert done.returncode != 0
    assert "early checkpoint came out otherwise than in the file" in done.stderr
    assert json.loads(out.read_text(encoding="utf-8")) == after


@pytest.mark.slow
@pytest.mark.parametrize("result", ["families"], indirect=True)
def test_families_has_a_row_per_variant(result):
    rows = {row["variant"]: row for row in result["rows"]}
    assert set(rows) == {"sd", "flux", "sdxl-pag"}
    for row in rows.values():
        assert row["plain_identical"] is True
        assert row["oracle_max_diff"] <= 1e-5
        assert row["overhead"] > 0
    steps = {name: row["evaluations_per_step"] for name, row in rows.items()}
    assert steps == {"sd": 2, "flux": 1, "sdxl-pag": 3}
    reflected = {name: row["evaluations_per_w2sd_step"] for name, row in rows.items()}
    assert reflected == {"sd": 2 + 2 + 1, "flux": 3, "sdxl-pag": 3 + 3 + 2}
