"""Weights are found where they were said to be, and no file runs code."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from w2sdiff.errors import InputError
from w2sdiff.scorers.weights import fetch_file, find_weights, load_state


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


def test_safetensors_need_no_hash(tmp_path, state):
    save_file(state, tmp_path / "head.safetensors")
    found = load_state(find_weights(str(tmp_path), "head.safetensors"))
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_a_pickle_needs_a_hash_and_the_message_says_which(tmp_path, state, suffix):
    file = tmp_path / f"head{suffix}"
    torch.save({"state_dict": state}, file)
    with pytest.raises(InputError, match=f"head{suffix}.*sha256={sha256(file)}"):
        load_state(file)
    found = load_state(file, sha256=sha256(file).upper())
    assert torch.equal(found["weight"], state["weight"])


def test_another_file_than_the_stated_one_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "head.pt")
    save_file(state, tmp_path / "head.safetensors")
    for name in ("head.pt", "head.safetensors"):
        with pytest.raises(InputError, match=f"{name} is another file: expected sha256 00"):
            load_state(tmp_path / name, sha256="0" * 64)
        with pytest.raises(InputError, match="another file"):
            find_weights(str(tmp_path / name), sha256="0" * 64)


def test_code_in_a_pickle_never_runs_even_with_its_hash(tmp_path):
    mark, file = tmp_path / "mark", tmp_path / "trap.pt"
    torch.save({"weight": Trap(mark)}, file)
    with pytest.raises(InputError, match=r"trap\.pt contains code"):
        load_state(file, sha256=sha256(file))
    file.write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(InputError, match=r"trap\.pt .* other things than tensors"):
        load_state(file, sha256=sha256(file))
    assert not mark.exists()
    pickle.loads(file.read_bytes())  # the trap is one
    assert mark.exists()


def test_a_pickle_under_the_name_of_safetensors_is_refused(tmp_path, state):
    mark = tmp_path / "mark"
    new, old = tmp_path / "new.safetensors", tmp_path / "old.safetensors"
    torch.save({**state, "trap": Trap(mark)}, new)
    old.write_bytes(pickle.dumps(Trap(mark)))
    for file in (new, old):
        with pytest.raises(InputError, match=f"{file.name} holds no safetensors: it is a pickle"):
            load_state(file)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"{}", random.Random(0).randbytes(100)])
@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_damaged_files_are_refused_by_name(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=name):
        load_state(file, sha256=sha256(file))


@pytest.mark.parametrize("value", [[torch.ones(1)], {"weight": 3}, torch.ones(1)])
def test_what_is_no_dictionary_of_tensors_is_refused(tmp_path, value):
    file = tmp_path / "x.pt"
    torch.save(value, file)
    with pytest.raises(InputError, match=r"x\.pt holds no dictionary of tensors"):
        load_state(file, sha256=sha256(file))


@pytest.mark.parametrize(
    ("source", "file", "words"),
    [
        ("nobody/nothing", "model.safetensors", "model.safetensors of nobody/nothing is not here"),
        ("nobody/nothing", None, "nobody/nothing is not here.*--download"),
        ("./nothing", None, "no file or folder at ./nothing"),
        ("nothing.pt", None, "no file or folder at nothing.pt"),
        ("../../x y", None, "no file or folder"),
        ("a/b/c", None, "expected a file, a folder or a hub id"),
        (" ", "config.json", "got nothing"),
    ],
)
def test_what_is_not_here_is_said_so(source, file, words):
    with pytest.raises(InputError, match=words):
        find_weights(source, file)


def test_a_folder_without_the_file_says_which(tmp_path):
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        find_weights(str(tmp_path), "model.safetensors")


def test_other_formats_are_refused(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"x")
    with pytest.raises(InputError, match=r"x\.onnx"):
        load_state(tmp_path / "x.onnx")


def test_fetching_is_asked_for_cached_and_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    published = tmp_path / "published.bin"
    published.write_bytes(b"weights")
    name, url, right = "head.bin", published.as_uri(), sha256(published)
    with pytest.raises(InputError, match="--download"):
        fetch_file(name, url, right, download=False)
    with pytest.raises(InputError, match=r"is not the known head\.bin"):
        fetch_file(name, url, "0" * 64, download=True)
    with pytest.raises(InputError, match="cannot fetch"):
        fetch_file(name, url + "x", right, download=True)
    assert not list((tmp_path / "cache").rglob("head.bin"))
    assert fetch_file(name, url, right, download=True).read_bytes() == b"weights"
    published.unlink()
    cached = fetch_file(name, url, right, download=False)
    cached.write_bytes(b"changed")
    with pytest.raises(InputError, match="another file"):
        fetch_file(name, url, right, download=False)
