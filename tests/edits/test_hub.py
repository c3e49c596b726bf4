"""Checkpoints on the hub: looked for once, in the local cache first, and fetched without a rest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch

from w2sdiff import W2SD, Checkpoint, InputError, Plain, attach
from w2sdiff.edits import Edits, hub

REPO, COMMIT = "someone/weak-model", "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The client's functions with what they were asked; no request leaves the machine."""

    def __init__(self, monkeypatch, tmp_path):
        self.cache = tmp_path / "cache"
        self.remote = tmp_path / "remote"
        self.asked = []
        self.fetched = []
        self._own = __import__("huggingface_hub").snapshot_download
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(self.cache))
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.snapshot)
        monkeypatch.setattr("huggingface_hub.list_repo_files", self.list)

    @property
    def folder(self):
        return self.cache / "models--someone--weak-model" / "snapshots" / COMMIT

    def put(self, files):
        """Files of the remote model into the cache, as the client keeps them."""
        for file in files:
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.remote / file, self.folder / file)
        refs = self.folder.parents[1] / "refs"
        refs.mkdir(exist_ok=True)
        (refs / "main").write_text(COMMIT, "utf-8")

    def files(self):
        found = (path for path in self.remote.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.remote).as_posix() for path in found)

    def list(self, repo):
        self.asked.append(repo)
        if not self.remote.is_dir():
            raise ConnectionError("no network")
        return self.files()

    def snapshot(self, repo, *, allow_patterns, local_files_only=False):
        if local_files_only:
            return self._own(repo, local_files_only=True, allow_patterns=allow_patterns)
        self.asked.append(repo)
        self.fetched += [file for file in self.files() if file in allow_patterns]
        self.put(self.fetched)
        return str(self.folder)


@pytest.fixture
def online(monkeypatch, tmp_path):
    """A hub that has the model as trainers leave it: several sets of weights, and other parts."""
    one = Hub(monkeypatch, tmp_path)
    network = tiny.build_denoiser("sd")
    network.save_pretrained(one.remote / "unet")
    network.to(torch.float16).save_pretrained(one.remote / "unet", variant="fp16")
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet"]}
    (one.remote / "model_index.json").write_text(json.dumps(index), "utf-8")
    for other in ("vae/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin"):
        (one.remote / other).parent.mkdir(exist_ok=True)
        (one.remote / other).write_bytes(b"not wanted")
    return one


NEEDED = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]


@pytest.fixture
def offline(online):
    """The same model in the cache, and no network."""
    online.put(NEEDED)
    shutil.rmtree(online.remote)
    return online


def drawn(pipe, method, calls=1):
    with attach(pipe, method):
        for _ in range(calls):
            found = tiny.latents(pipe, "sd", steps=3)
    return found


def expected(pipe):
    return drawn(pipe, W2SD(weak=Checkpoint(tiny.build_denoiser("sd"))))


def test_from_the_cache_without_a_question(offline):
    pipe = tiny.build("sd")
    method = W2SD(weak=Checkpoint(REPO))
    found = drawn(pipe, method, calls=2)
    assert torch.equal(found, drawn(pipe, method))
    assert torch.equal(found, expected(pipe))
    assert offline.asked == []


def test_the_cache_is_looked_into_once_per_process(offline, monkeypatch):
    looked = []
    own = hub._cached
    monkeypatch.setattr(hub, "_cached", lambda repo: looked.append(repo) or own(repo))
    pipe, edit = tiny.build("sd"), Checkpoint(REPO)
    for _ in range(2):
        drawn(pipe, W2SD(weak=edit, strong=Checkpoint(REPO)), calls=2)
        assert edit == Checkpoint(REPO)
        assert hash(edit) == hash(Checkpoint(REPO))
        edit.to_json()
    assert looked == [REPO]


def test_no_weights_are_read_to_switch_a_role(offline, monkeypatch):
    """Neither the hub's nor a folder's: a key of the loaded network is not the hash of its file."""
    from w2sdiff.edits import checkpoint

    read = []
    for name in ("weights_sha256", "file_sha256"):
        own = getattr(checkpoint, name)
        monkeypatch.setattr(checkpoint, name, lambda path, own=own: read.append(path) or own(path))
    methods = [W2SD(weak=Checkpoint(source)) for source in (REPO, offline.folder / "unet")]
    read.clear()
    for method in methods:
        drawn(tiny.build("sd"), method)
    assert read == []


def test_what_is_fetched_is_what_is_loaded(online):
    pipe = tiny.build("sd")
    found = drawn(pipe, W2SD(weak=Checkpoint(REPO)), calls=2)
    assert sorted(online.fetched) == NEEDED
    assert len(online.asked) == 2  # which files there are, and these
    drawn(pipe, Plain(Checkpoint(REPO)))
    assert len(online.asked) == 2
    assert torch.equal(found, expected(pipe))


def test_its_hash_is_of_its_weights_whatever_else_lies_in_the_cache(offline):
    edit = Checkpoint(REPO)
    (data,) = Edits((edit,)).to_json()
    (offline.folder / "vae").mkdir()
    (offline.folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"another part")
    assert Edits((Checkpoint(REPO),)).to_json() == [data]
    (again,) = Edits.from_json([data])
    pipe = tiny.build("sd")
    assert torch.equal(drawn(pipe, Plain(again)), drawn(pipe, Plain(edit)))
    changed = Edits.from_json([{**data, "sha256": "0" * 64}])
    with pytest.raises(InputError, match="not the ones expected"):
        drawn(pipe, Plain(changed))


def test_a_half_of_a_model_is_not_a_model(offline):
    """An interrupted download: the second part of the weights is missing."""
    weights = offline.folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    assert not hub.is_here(REPO)
    with pytest.raises(InputError, match=r"does not hold its denoiser; the hub.*no network"):
        drawn(tiny.build("sd"), Plain(Checkpoint(REPO)))


def test_a_repository_of_one_network_alone(online):
    for file in (online.remote / "unet").iterdir():
        file.rename(online.remote / file.name)
    (online.remote / "model_index.json").unlink()
    pipe = tiny.build("sd")
    found = drawn(pipe, W2SD(weak=Checkpoint(REPO)))
    assert sorted(online.fetched) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert torch.equal(found, expected(pipe))


def test_a_name_that_the_hub_does_not_know(online):
    shutil.rmtree(online.remote)
    edit = Checkpoint("some/typo")
    assert edit == Checkpoint("some/typo")  # comparing asks nobody
    assert online.asked == []
    with pytest.raises(InputError, match="No folder 'some/typo' here") as error:
        drawn(tiny.build("sd"), Plain(edit))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["config.json", "diffusion_pytorch_model.safetensors"], [0, 1]),
        (["config.json", "diffusion_pytorch_model.fp16.safetensors"], [0, 1]),
        (
            [
                *("config.json", "diffusion_pytorch_model-00001-of-00002.safetensors"),
                *("diffusion_pytorch_model-00002-of-00002.safetensors",),
                *("diffusion_pytorch_model.fp16-00001-of-00001.safetensors",),
                *("diffusion_pytorch_model.safetensors.index.json", "flax_model.msgpack"),
            ],
            [0, 1, 2, 4],
        ),
        (["config.json", "diffusion_pytorch_model.bin"], []),
        (["diffusion_pytorch_model.safetensors"], []),
    ],
)
def test_which_files_a_network_is_loaded_from(names, wanted):
    files = [f"transformer/{name}" for name in names]
    assert hub.chosen([*files, "vae/config.json", "model_index.json"]) == sorted(
        files[i] for i in wanted
    )


def test_a_path_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.is_hub_id("runs/weak")
    Path("runs/weak").mkdir(parents=True)
    assert not hub.is_hub_id("runs/weak")
    assert not hub.is_hub_id(Path("someone/model"))
    assert not hub.is_hub_id("a/b/c")
