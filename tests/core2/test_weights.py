"""Weights of the published noise model come and go exactly, and other files are told apart."""

from __future__ import annotations

import json
import os
import pickle
import random
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from w2sdiff.core2 import load_noise_model, save_noise_model, weights
from w2sdiff.core2.noise_model import FORMAT
from w2sdiff.core2.published import SD35, SDXL, PublishedNoiseModel
from w2sdiff.core2.weights import load_published
from w2sdiff.errors import InputError

SMALL = {
    "heads": 2,
    "head_dim": 4,
    "max_patches": 6,
    "sample_size": 8,
    "text_tokens": 3,
    "text_dim": 8,
    "bottleneck": 4,
    "lora_rank": 2,
}
TINY = {
    "SDXL": SDXL.replace(**SMALL, layers=1, pooled_dim=5, loras=3),
    "SD35": SD35.replace(**SMALL, layers=1, pooled_dim=4, loras=2),
}


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def header(version: int = 1, form: str = "published", config: object = None) -> str:
    return json.dumps({"version": version, "form": form, "config": config})


@pytest.fixture(params=TINY)
def model(request):
    torch.manual_seed(0)
    model = PublishedNoiseModel(TINY[request.param])
    for weight in model.parameters():
        torch.nn.init.normal_(weight)
    return model.eval()


@pytest.fixture
def hosts(monkeypatch):
    """The two published hosts in small, for files that do not say what they are."""
    for name, config in TINY.items():
        monkeypatch.setattr(weights, name, config)


def assert_same(found, model):
    assert found.config == model.config
    assert not found.training
    state = model.state_dict()
    for name, tensor in found.state_dict().items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_saved_is_loaded(tmp_path, model, dtype):
    file = tmp_path / "noise.safetensors"
    save_noise_model(model.to(dtype), file)
    assert_same(load_published(str(file)), model)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert_same(load_noise_model(file), model)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_published_checkpoint_is_told_by_its_keys(tmp_path, hosts, model, wrap, zipped):
    file = tmp_path / "ckpt_v9.pth"
    torch.save(wrap(model.state_dict()), file, _use_new_zipfile_serialization=zipped)
    found = load_published(file)
    assert_same(found, model)
    save_noise_model(found, tmp_path / "ckpt.safetensors")
    assert_same(load_published(tmp_path / "ckpt.safetensors"), model)


def test_safetensors_without_a_word_of_ours_are_told_by_their_keys(tmp_path, hosts, model):
    save_file(model.state_dict(), tmp_path / "converted.safetensors")
    assert_same(load_published(tmp_path / "converted.safetensors"), model)


def test_content_decides_and_not_the_name(tmp_path, hosts, model):
    torch.save(model.state_dict(), tmp_path / "pickle.safetensors")
    save_file(model.state_dict(), tmp_path / "safe.pth")
    for name in ("pickle.safetensors", "safe.pth"):
        assert_same(load_published(tmp_path / name), model)


def test_safetensors_whose_length_looks_like_a_pickle(tmp_path, model):
    """The first byte is the lowest of the header's length."""
    file = tmp_path / "noise.safetensors"
    for size in range(0, 264, 8):
        said = {FORMAT: header(config=model.config.to_json())}
        save_file(model.state_dict(), file, metadata={**said, "padding": "x" * size})
        if file.read_bytes()[0] == 0x80:
            assert_same(load_published(file), model)
            return
    pytest.fail("no padding gives this length")


def test_sizes_can_be_stated(tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    assert_same(load_published(tmp_path / "mine.pth", config=model.config), model)
    assert load_published(tmp_path / "mine.pth", config=model.config, reference=True).reference


def test_weights_stay_on_disk_until_they_are_used(tmp_path, model):
    """The checkpoint is mapped: what is written to the model does not reach the file."""
    file = tmp_path / "mine.pth"
    torch.save(model.state_dict(), file)
    before = file.read_bytes()
    found = load_published(file, config=model.config)
    with torch.no_grad():
        found.proj_out.linear.weight.zero_()
    assert all(weight.requires_grad for weight in found.parameters())
    assert file.read_bytes() == before
    save_noise_model(model, tmp_path / "mine.safetensors")
    again = load_published(tmp_path / "mine.safetensors")
    save_noise_model(again, tmp_path / "mine.safetensors")  # over the file it is mapped from
    assert_same(again, model)


def test_mixed_types_become_one(tmp_path, model):
    state = model.state_dict()
    state["proj_out.linear.weight"] = state["proj_out.linear.weight"].half()
    torch.save(state, tmp_path / "mixed.pth")
    found = load_published(tmp_path / "mixed.pth", config=model.config)
    assert {tensor.dtype for tensor in found.state_dict().values()} == {torch.float32}


def test_what_is_missing_unexpected_or_misshapen_is_said(tmp_path, hosts, model):
    state = model.state_dict()
    for i in range(model.config.loras):
        del state[f"trans_linear.lora.{i}.A"], state[f"trans_linear.lora.{i}.B"]
    state["extra"] = torch.ones(1)
    state["proj_out.linear.bias"] = torch.ones(3)
    torch.save(state, tmp_path / "other.pth")
    host = "SDXL" if model.config.pool_projection else r"Stable Diffusion 3\.5"
    with pytest.raises(InputError) as refusal:
        load_published(tmp_path / "other.pth")
    message, bias = str(refusal.value), 4 * model.config.channels
    assert "other.pth does not fit the noise model of " + host.replace("\\", "") in message
    assert f"{2 * model.config.loras} missing (trans_linear.lora.0.A, " in message
    assert "1 unexpected (extra)" in message
    assert f"1 of another shape (proj_out.linear.bias [3], expected [{bias}])" in message
    assert len(message) < 500


def test_another_network_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(InputError, match=r"of 3908 tensors, 3908 missing .* 2 unexpected"):
        load_published(tmp_path / "linear.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_not_run(tmp_path, model, zipped):
    mark, file = tmp_path / "mark", tmp_path / "trap.pth"
    torch.save(
        {**model.state_dict(), "trap": Trap(mark)}, file, _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(InputError, match=r"trap\.pth contains code \(\w+\.mkdir\).*not loaded"):
        load_published(file)
    file.write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(InputError, match=r"trap\.pth "):
        load_published(file)
    assert not mark.exists()


def test_a_whole_model_in_a_pickle_is_code(tmp_path, model):
    torch.save(model, tmp_path / "model.pth")
    with pytest.raises(InputError, match=r"contains code .*PublishedNoiseModel.*state_dict\(\)"):
        load_published(tmp_path / "model.pth")


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_files_that_are_cut_off_are_refused(tmp_path, model, form):
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut"
    if form == "safetensors":
        save_noise_model(model, whole)
    else:
        torch.save(model.state_dict(), whole, _use_new_zipfile_serialization=form == "zip")
    data = whole.read_bytes()
    for size in (0, 1, 3, 5, 9, 100, len(data) // 2, len(data) - 1):
        cut.write_bytes(data[:size])
        with pytest.raises(InputError, match="cut "):
            load_published(cut, config=model.config)


def test_damaged_files_are_refused_or_hold_other_numbers(tmp_path, model):
    """Whatever byte is wrong: never another error than ours."""
    file, rng = tmp_path / "file.pth", random.Random(0)
    for legacy in (True, False):
        torch.save(model.state_dict(), file, _use_new_zipfile_serialization=not legacy)
        data = file.read_bytes()
        for _ in range(25):
            wrong = bytearray(data)
            for _ in range(8):
                wrong[rng.randrange(len(data) if rng.random() < 0.2 else 2000)] = rng.randrange(256)
            file.write_bytes(wrong)
            with suppress(InputError):
                load_published(file, config=model.config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "no dictionary of tensors"),
        ({}, "no dictionary of tensors"),
        (torch.ones(2), "no dictionary of tensors"),
        ({"a": torch.ones(2), "b": 3, "c": "text"}, "other things than weights: b, c"),
        ({3: torch.ones(2)}, "other things than weights: 3"),
        ({"a": torch.ones(2, dtype=torch.int64)}, "other things than weights: a"),
    ],
)
def test_other_pickles_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(InputError, match=f"other.pth holds {message}"):
        load_published(tmp_path / "other.pth")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "notes.pth").write_text("no checkpoint at all, but long enough to look like one")
    with pytest.raises(InputError, match=r"notes\.pth is damaged, cut off or no checkpoint"):
        load_published(tmp_path / "notes.pth")
    with pytest.raises(InputError, match="there is none at"):
        load_published(tmp_path / "absent.pth")
    with pytest.raises(InputError, match="there is none at"):
        load_published(tmp_path)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        (header(config=[]), "expected the configuration"),
        (header(config={"layers": 9}), "at most 8"),
        (header(version=2), "newer w2sdiff"),
        (header(form="compact"), "form 'compact'"),
    ],
)
def test_a_file_that_speaks_wrongly_of_itself_is_refused(tmp_path, model, said, message):
    save_file(model.state_dict(), tmp_path / "noise.safetensors", metadata={FORMAT: said})
    with pytest.raises(InputError, match=message):
        load_published(tmp_path / "noise.safetensors")


def test_what_cannot_be_written_is_said(tmp_path, model):
    with pytest.raises(InputError, match=r"written as \.safetensors, got 'noise\.pth'"):
        save_noise_model(model, tmp_path / "noise.pth")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        save_noise_model(model, tmp_path / "file" / "noise.safetensors")
