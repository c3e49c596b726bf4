"""A model is what its weights are, not what it is called or where it lies."""

from __future__ import annotations

import json
import shutil

import pytest
from model_folders import model_folder

from w2sdiff.errors import InputError
from w2sdiff.generate import find_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(model_folder("sd", weak=True, lora=True), tmp_path / "model")


def sha256(folder, **how):
    return find_model(str(folder), **how).sha256


def test_the_identity_is_that_of_the_files_that_are_loaded(folder, tmp_path):
    before = sha256(folder)
    assert sha256(folder.rename(tmp_path / "elsewhere")) == before
    folder = tmp_path / "elsewhere"
    (folder / "README.md").write_text("hello")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another variant")
    shutil.rmtree(folder / "loras")
    shutil.rmtree(folder / "unet_weak")
    assert sha256(folder) == before

    config = folder / "scheduler" / "scheduler_config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"beta_end": 0.013}))
    assert sha256(folder) != before


def test_a_variant_is_another_model(folder):
    plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
    before = sha256(folder)
    shutil.copyfile(folder / "unet_weak" / plain.name, plain.with_suffix(".fp16.safetensors"))
    assert sha256(folder) == before
    assert sha256(folder, variant="fp16") != before
    with pytest.raises(InputError, match=r"no variant 'bf16' \(it has: fp16\)"):
        find_model(str(folder), variant="bf16")


def test_one_changed_byte_of_the_weights_is_another_model(folder):
    before = sha256(folder)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert sha256(folder) != before


def test_what_comes_with_a_model_is_found(folder):
    model = find_model(str(folder))
    assert model.weak == folder / "unet_weak"
    assert model.lora("style") == folder / "loras" / "style.safetensors"
    assert model.lora("../unet/style") is None
    assert find_model(str(model_folder("sd"))).weak is None
    assert (model.pipeline, model.scheduler) == ("StableDiffusionPipeline", "DDIMScheduler")
    assert model.default("num_inference_steps", 0) == 50


def test_a_pickle_beside_safetensors_is_passed_over(folder):
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")
    find_model(str(folder))


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "../x"])
def test_a_name_that_is_neither_folder_nor_hub_id(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no model folder"):
        find_model(name)


def test_a_hub_id_that_is_not_in_the_cache_is_refused_offline():
    with pytest.raises(InputError, match="the hub gives no such model"):
        find_model("nobody/nothing-of-this-name")
