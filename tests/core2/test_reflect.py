"""Training: it learns what can be learned, resumes bit for bit, and stops in time."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import subprocess
import sys

import pytest
import torch
from core2 import synthetic
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from w2sdiff.core2 import load_noise_model
from w2sdiff.core2.compact import CompactConfig, CompactNoiseModel, flops_of
from w2sdiff.core2.data import Collected
from w2sdiff.core2.noise_model import read_header
from w2sdiff.core2.reflect import reflect
from w2sdiff.core2.sizing import calibrated, share_of, sized
from w2sdiff.core2.training import Training
from w2sdiff.core2.validate import explained_by, validate
from w2sdiff.errors import InputError
from w2sdiff.jobs import Ledger

QUICK = Training(
    steps=12, batch=24, warmup=4, validation=0.2, validate_every=4, ema=0.9, width=16, lr=3e-3
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    texts = synthetic.prompts(40)
    return synthetic.write(tmp_path_factory.mktemp("data"), texts=texts, shard=10, lengths=(5, 3))


@pytest.fixture
def data(folder):
    return Collected.open(folder)


def stop_after(count):
    asked = []

    def stopping():
        asked.append(1)
        return len(asked) >= count

    return stopping


def state_of(folder):
    return torch.load(folder / "state.pt", weights_only=True)


def weights(folder):
    return load_file(folder / "noise_model.safetensors")


def equal(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


# --- it learns ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss", ["relative", *(pytest.param(n, marks=pytest.mark.slow) for n in ("prediction", "x0"))]
)
def test_it_learns_what_can_be_learned(data, tmp_path, loss):
    """Guidance that is a linear function of x, of a size of its own at each level: 1 is nothing."""
    training = dataclasses.replace(QUICK, steps=150, validate_every=75, width=32, loss=loss)
    told = []
    file = reflect(data, tmp_path, training, on_progress=told.append)
    found = [one.validation for one in told if one.validation]
    assert found[-1].errors[loss] < 0.4
    assert told[-1].step == 150
    train, held = data.split(training.validation)
    again = validate(load_noise_model(file), held)
    best = min(one.errors[loss] for one in found)
    assert again.errors[loss] == pytest.approx(best, rel=1e-4)
    assert read_header(file)["card"]["validation"]["errors"][loss] == pytest.approx(best, abs=1e-5)
    assert all(share > 0.4 for share in again.explained)
    assert len(again.levels) == 3
    assert list(again.levels) == sorted(again.levels)
    # As well on one half of the prompts as on the other: nothing depends on the group.
    groups = explained_by(load_noise_model(file), held, lambda text: str(int(text[-1]) % 2))
    assert set(groups) == {"0", "1"}
    assert all(share > 0.4 for share in groups.values())
    assert load_noise_model(file).host == data.host
    assert len(train)


def test_an_untrained_model_has_an_error_of_one(data):
    train, held = data.split(0.2)
    model = calibrated(CompactNoiseModel(sized(data, 1.0, QUICK)), train)
    found = validate(model, held)
    assert dict(found.errors) == pytest.approx(
        {"relative": 1.0, "prediction": 1.0, "x0": 1.0}, abs=1e-9
    )
    assert found.explained == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)


def test_the_errors_are_what_they_say(data):
    """Written out here, for a model with random weights."""
    import tiny

    held = data.split(0.2)[1]
    model = tiny.randomise(CompactNoiseModel(sized(data, 1.0, QUICK)), 3)
    model.calibrate([-3.0, 0.0, 3.0], [0.5, 0.4, 0.2], 1.0)
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in ("relative", "prediction", "x0")}
    for batch in held.read():
        with torch.no_grad():
            wrong = (model(batch.c, batch.given) - batch.target).double().square().sum((1, 2, 3))
        whole = (batch.c - batch.target).double().square().sum((1, 2, 3))
        size = model.size_at(batch.given, batch.c).double()
        by = {
            "relative": 1 / size**2,
            "prediction": torch.ones_like(size),
            "x0": batch.given.sigma.double() ** 2,  # alpha + sigma is one on a straight path
        }
        for name, weight in by.items():
            sums[name] += torch.stack([(weight * wrong).sum(), (weight * whole).sum()])
    expected = {name: float(a / b) for name, (a, b) in sums.items()}
    assert validate(model, held).errors == pytest.approx(expected, rel=1e-4)


def test_what_is_saved_says_where_it_is_from(data, tmp_path):
    file = reflect(data, tmp_path, QUICK, card={"note": "made in a test"})
    card = read_header(file)["card"]
    assert card["note"] == "made in a test"
    assert card["training"]["lr"] == QUICK.lr
    assert card["data"]["model"] == "made"
    assert card["samples"] == len(data.split(0.2)[0])
    assert read_header(file)["host"]["guidance_scale"] == 3.0


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.02, 0.05, 0.5])
def test_a_model_costs_no_more_than_its_share(tmp_path, ratio):
    data = Collected.open(synthetic.write(tmp_path, flops=5e7, shape=(4, 8, 8)))
    config = sized(data, ratio, Training())
    batch = next(data.read(1))
    given = batch.given.map(lambda _, t: t[:1])
    share = flops_of(CompactNoiseModel(config), batch.c[:1], given) / 5e7
    assert share == share_of(config, data) <= ratio
    wider = dataclasses.replace(config, width=config.width + 8, hidden=2)
    assert share_of(wider, data) > ratio
    if config.hidden < 4:
        assert share_of(dataclasses.replace(config, hidden=config.hidden + 1), data) > ratio
    assert sized(data, ratio, Training(depth=4)).width < config.width


def test_what_cannot_be_kept_is_refused(tmp_path):
    data = Collected.open(synthetic.write(tmp_path / "a"))
    with pytest.raises(InputError, match=r"width 16 costs more than 1e-06.*--cost-ratio"):
        sized(data, 1e-6, Training())
    assert sized(data, 1e-6, Training(width=24)).width == 24
    unknown = Collected.open(synthetic.write(tmp_path / "b", flops=None))
    with pytest.raises(InputError, match="--width"):
        sized(unknown, 0.05, Training())
    with pytest.raises(InputError, match="multiple of 8"):
        sized(data, 0.05, Training(width=20))


@pytest.mark.parametrize(
    ("shape", "architecture", "patch"),
    [
        ((4, 8, 8), {"patch_size": 2}, 4),
        ((4, 8, 8), {"patch_size": [1, 2, 2]}, 4),
        ((4, 8, 8), {}, 2),
        ((4, 6, 9), {}, 1),
        ((4, 128, 128), {}, 4),
        ((9, 4), {"patch_size": 2}, 1),
    ],
    ids=str,
)
def test_a_token_covers_two_of_the_hosts_where_the_grid_allows(
    tmp_path, shape, architecture, patch
):
    data = Collected.open(synthetic.write(tmp_path, shape=shape, architecture=architecture))
    config = sized(data, 0.5, Training(width=16))
    assert (config.patch, config.channels, config.text_width) == (patch, 4, 8)


def test_calibrated_sizes_are_those_of_the_data(data):
    train, _ = data.split(0.2)
    model = calibrated(CompactNoiseModel(sized(data, 1.0, QUICK)), train)
    by_step, clean = {}, []
    for batch in train.read():
        for step in range(3):
            rows = batch.step == step
            by_step.setdefault(step, []).append((batch.target - batch.c)[rows])
        clean.append(batch.given.x[batch.step == 2])
    for step, parts in by_step.items():
        sigma = 1 - (step + 0.5) / 3
        given = synthetic.Given(torch.zeros(1), 1 - sigma, sigma)
        expected = torch.cat(parts).square().mean().sqrt()
        assert float(model.size_at(given, torch.zeros(1, 4, 1, 1))) == pytest.approx(
            float(expected), rel=1e-3
        )
    expected = torch.cat(clean).square().mean().sqrt()
    assert float(model.clean_size) == pytest.approx(float(expected), rel=1e-3)
    assert model.knots.tolist() == sorted(model.knots.tolist())


@pytest.mark.parametrize("shape", [(4, 4, 8), (9, 4), (4, 2, 4, 4)], ids=["wide", "packed", "5-D"])
@pytest.mark.parametrize("steps", [1, 3])
def test_other_shapes_and_a_single_step(tmp_path, shape, steps):
    made = synthetic.write(
        tmp_path / "data", shape=shape, steps=steps, texts=synthetic.prompts(24), masked=False
    )
    training = dataclasses.replace(QUICK, steps=2, batch=8, validate_every=2)
    file = reflect(Collected.open(made), tmp_path / "out", training)
    assert load_noise_model(file).channels == 4


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
def test_other_predictions(tmp_path, prediction):
    made = synthetic.write(tmp_path / "data", prediction=prediction, texts=synthetic.prompts(24))
    training = dataclasses.replace(QUICK, steps=2, batch=8, validate_every=2, loss="x0")
    file = reflect(Collected.open(made), tmp_path / "out", training)
    assert load_noise_model(file).sizes.prediction == prediction


# --- again, and in parts --------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 4, 7])
def test_stopped_and_taken_up_again_it_ends_bit_for_bit_alike(data, tmp_path, at):
    """Over the end of a pass, and at a validation and between two."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    reflect(data, whole, QUICK)
    assert reflect(data, parts, QUICK, stopping=stop_after(at)) is None
    assert state_of(parts)["step"] == at
    with_more = reflect(data, parts, QUICK, stopping=stop_after(2))
    assert with_more is None
    assert state_of(parts)["step"] == at + 2
    torch.manual_seed(99)  # whatever else was drawn in between
    assert reflect(data, parts, QUICK) is not None
    equal(weights(parts), weights(whole))
    for name in ("model", "average"):
        equal(state_of(parts)[name], state_of(whole)[name])
    steps = [row["step"] for row in rows(parts)]
    assert steps == sorted(set(steps), key=int)
    # A finished training is only read again.
    before = (whole / "state.pt").read_bytes()
    assert reflect(data, whole, QUICK) is not None
    assert (whole / "state.pt").read_bytes() == before


def rows(folder):
    with (folder / "curves.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_what_lies_after_a_crash_is_cut_off(data, tmp_path):
    """The curves may be ahead of the state that a killed process left."""
    reflect(data, tmp_path, QUICK, stopping=stop_after(5))
    with (tmp_path / "curves.csv").open("a", encoding="utf-8") as file:
        file.write("9,1.0,0.5,,,\n")
    reflect(data, tmp_path, QUICK)
    steps = [int(row["step"]) for row in rows(tmp_path)]
    assert 9 not in steps
    assert steps[-1] == 12


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(data, tmp_path, parts):
    short = dataclasses.replace(QUICK, steps=3, validate_every=3)
    reflect(data, tmp_path / "whole", short)
    reflect(data, tmp_path / "parts", dataclasses.replace(short, accumulate=parts))
    one, other = (state_of(tmp_path / name)["model"] for name in ("whole", "parts"))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-5)


def test_the_average_follows_the_weights(data, tmp_path):
    """Step by step, against the formula; and it is the average that is saved."""
    average, training = None, dataclasses.replace(QUICK, steps=6, validate_every=6)
    for step in range(6):
        reflect(data, tmp_path, training, stopping=stop_after(1))
        model = state_of(tmp_path)["model"]
        if average is None:
            train = data.split(0.2)[0]
            torch.manual_seed(training.seed)
            start = calibrated(CompactNoiseModel(sized(data, 1, training)), train)
            average = {name: t.clone() for name, t in start.state_dict().items()}
        decay = min(0.9, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * t for name, t in model.items()}
    for name, tensor in state_of(tmp_path)["average"].items():
        torch.testing.assert_close(tensor, average[name], rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(model[name], average[name]) for name in model)


def test_the_learning_rate_rises_stays_and_falls():
    training = Training(steps=100, warmup=10, cooldown=0.4, lr=1.0)
    rates = [training.lr_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert set(rates[10:60]) == {1.0}
    falling = rates[60:]
    assert falling == sorted(falling, reverse=True)
    assert 0 < falling[-1] < 0.01
    assert falling[20] == pytest.approx(0.5)
    assert Training(steps=5, warmup=0, cooldown=0.0).lr_at(0) == Training().lr


def test_the_curves(data, tmp_path):
    reflect(data, tmp_path, QUICK)
    found = rows(tmp_path)
    assert [row["step"] for row in found] == ["4", "8", "12"]
    assert list(found[0]) == ["step", "seconds", "loss", "relative", "prediction", "x0"]
    assert all(0 < float(row["loss"]) < 2 for row in found)
    assert all(0 < float(row["relative"]) < 2 for row in found)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    # A training of its own, which is not to be drawn from: without a validation in its curves.
    from w2sdiff.curves import Curves

    (tmp_path / "other").mkdir()
    curves = Curves(tmp_path / "other", ("relative", "prediction", "x0"), "error")
    curves.add(1, 0.0, 0.5, {})
    curves.draw()
    assert curves.png.is_file()


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.gpu)])
def test_half_precision_trains(data, tmp_path, precision):
    file = reflect(data, tmp_path, dataclasses.replace(QUICK, precision=precision))
    found = weights(tmp_path)
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert read_header(file)["card"]["validation"]["errors"]["relative"] < 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with CUDA has it")
def test_a_precision_that_is_not_there_is_refused(data, tmp_path):
    """accelerate would train in float32 without a word."""
    with pytest.raises(InputError, match=r"fp16 cannot be had on this machine.* or bf16"):
        reflect(data, tmp_path, dataclasses.replace(QUICK, precision="fp16"))
    reflect(data, tmp_path, QUICK)


# --- what is refused, and what diverges -----------------------------------------------------------


def test_a_training_with_other_settings_is_not_gone_on_with(data, tmp_path):
    reflect(data, tmp_path, QUICK, stopping=stop_after(2))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for changes in ({"lr": 1e-4}, {"steps": 20}, {"batch": 12}, {"seed": 1}):
        [name] = changes
        with pytest.raises(InputError, match=f"other settings.*{name}.*another folder"):
            reflect(data, tmp_path, dataclasses.replace(QUICK, **changes))
    other = synthetic.write(
        tmp_path.parent / "other", texts=synthetic.prompts(40), shard=10, seed=1, lengths=(5, 3)
    )
    with pytest.raises(InputError, match=r"other settings.*data"):
        reflect(Collected.open(other), tmp_path, QUICK)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_other_sizes_are_other_settings(data, tmp_path):
    reflect(data, tmp_path, QUICK, stopping=stop_after(2))
    with pytest.raises(InputError, match=r"other settings.*width"):
        reflect(data, tmp_path, dataclasses.replace(QUICK, width=24))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", "half"])
def test_a_damaged_state(data, tmp_path, content):
    reflect(data, tmp_path, QUICK, stopping=stop_after(2))
    path = tmp_path / "state.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(InputError, match=r"state\.pt is damaged; take another folder") as error:
        reflect(data, tmp_path, QUICK)
    assert "\n" not in str(error.value)


def test_a_training_that_diverges_at_once_says_so(data, tmp_path):
    with pytest.raises(InputError, match=r"diverged at step \d+ .*lower --lr"):
        reflect(data, tmp_path, dataclasses.replace(QUICK, lr=1e30, warmup=0))


def test_a_training_that_diverges_keeps_the_last_good_weights(data, tmp_path, monkeypatch):
    """Nine good steps of twelve, two validations; then a learning rate from another world."""
    good = tmp_path / "good"
    reflect(data, good, QUICK, stopping=stop_after(8))
    own = Training.lr_at
    monkeypatch.setattr(
        Training, "lr_at", lambda self, step: 1e30 if step >= 9 else own(self, step)
    )
    bad = tmp_path / "bad"
    with pytest.raises(InputError, match=r"diverged at step 1[01].*best so far is in") as error:
        reflect(data, bad, QUICK)
    assert "\n" not in str(error.value)
    equal(weights(bad), weights(good))
    equal(state_of(bad)["model"], state_of(good)["model"])
    assert load_noise_model(bad / "noise_model.safetensors").channels == 4
    assert read_header(bad / "noise_model.safetensors")["card"]["step"] == 8


def test_targets_that_are_no_numbers(tmp_path):
    """Nothing to start from: said before a step is made."""
    made = synthetic.write(tmp_path / "data", texts=synthetic.prompts(24))
    for file in made.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            about = opened.metadata()
        tensors = load_file(file)
        save_file({**tensors, "target": tensors["target"] * math.nan}, file, metadata=about)
    with pytest.raises(InputError, match="nothing was worth keeping"):
        reflect(Collected.open(made), tmp_path / "out", dataclasses.replace(QUICK, batch=8))


@pytest.mark.parametrize("wrong", [math.nan, 1e6])
def test_numbers_that_float16_does_not_hold_are_not_stored(tmp_path, wrong):
    made = synthetic.write(tmp_path, target=lambda c, *_: c * wrong)
    assert not list(made.glob("*.safetensors"))
    reasons = {record.reason for record in Ledger(made).records()}
    assert len(reasons) == 1
    assert "do not fit float16" in reasons.pop()
    with pytest.raises(InputError, match="0 of 3 shards: some are missing, failed"):
        Collected.open(made)


def test_a_batch_that_the_data_does_not_fill(data, tmp_path):
    with pytest.raises(InputError, match="smaller --batch"):
        reflect(data, tmp_path, dataclasses.replace(QUICK, batch=1000))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 0}, "steps is at least 1"),
        ({"batch": 0}, "batch is at least 1"),
        ({"validate_every": 0}, "validate_every"),
        ({"accumulate": 0}, "accumulate"),
        ({"depth": 0}, "depth"),
        ({"lr": 0.0}, "lr is a positive number"),
        ({"lr": math.nan}, "lr is a positive number"),
        ({"lr": math.inf}, "lr"),
        ({"cost_ratio": -1.0}, "cost_ratio"),
        ({"ema": 1.0}, r"ema lies in \[0, 1\)"),
        ({"cooldown": 1.5}, "cooldown"),
        ({"loss": "huber"}, "relative, prediction, x0, got 'huber'"),
        ({"precision": "fp8"}, "precision is no, bf16 or fp16"),
        ({"batch": 10, "accumulate": 3}, "10 does not go into 3 parts"),
        ({"warmup": -1}, "warmup"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"validation": 0.0}, r"\(0, 1\)"),
    ],
    ids=str,
)
def test_values_out_of_range(changes, says):
    with pytest.raises(InputError, match=says):
        Training(**changes)


def test_one_process_may_train_in_several_precisions(data, tmp_path):
    short = dataclasses.replace(QUICK, steps=1)
    for precision in ("no", "bf16"):
        changed = dataclasses.replace(short, precision=precision)
        assert reflect(data, tmp_path / precision, changed) is not None


# --- several processes ----------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_what_one_does(folder, data, tmp_path):
    short = dataclasses.replace(QUICK, steps=4, validate_every=2)
    reflect(data, tmp_path / "one", short)
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--num_processes", "2", "--cpu", "--num_machines", "1", "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "-m", "w2sdiff", "core2", "reflect"),
        *("--data", str(folder), "--out", str(tmp_path / "two")),
        *("--steps", "4", "--batch", "24", "--warmup", "4", "--validation", "0.2"),
        *("--validate-every", "2", "--ema", "0.9", "--width", "16", "--lr", "3e-3", "--json"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('"noise_model"') == 1, "one of the two speaks"
    one, other = (state_of(tmp_path / name)["model"] for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-5)


def test_a_config_is_what_was_asked_for():
    assert CompactConfig(4, "v", None, width=16).heads == 4
