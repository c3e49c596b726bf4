"""What is no checkpoint is refused in our words, wherever it is read."""

from __future__ import annotations

import pickle
from hashlib import sha256

import pytest
import torch
from safetensors.torch import save_file

from w2sdiff import InputError
from w2sdiff.attention import from_published
from w2sdiff.cli import main
from w2sdiff.core2.weights import load_published
from w2sdiff.pickles import load_pickle
from w2sdiff.scorers.weights import load_state

TEXT = "# A page\n\nof text, with an em dash \N{EM DASH} and long enough.\n" * 20


def text(file):
    file.write_text(TEXT, encoding="utf-8")


def module(file):
    torch.save(torch.nn.Linear(2, 2), file)


def pickled(file):
    """Protocol 4, which the restricted reader of torch does not know in full."""
    file.write_bytes(pickle.dumps({"a": bytearray(3)}, protocol=4))


def cut(file):
    torch.save({"a": torch.ones(2000)}, file)
    file.write_bytes(file.read_bytes()[:3000])


WHAT = {
    "text": (text, "expected a file that torch.save wrote, got text"),
    "bytes": (lambda file: file.write_bytes(b"\xff\x00" * 99), "got bytes that mean nothing"),
    "empty": (lambda file: file.touch(), "got an empty file"),
    "safetensors": (lambda file: save_file({"a": torch.ones(2)}, file), "looks like safetensors"),
    "cut": (cut, "got a zip file that is cut off"),
    "damaged": (lambda file: file.write_bytes(b"\x80\x04broken"), "got a pickle"),
    "pickled": (pickled, "a pickle that is cut off or holds other things than tensors"),
    "module": (module, r"contains code \(torch.nn.modules.linear.Linear\)"),
}
READERS = {
    "kv convert": lambda file: from_published(file, file.parent / "out"),
    "scorers": lambda file: load_state(file, sha256=sha256(file.read_bytes()).hexdigest()),
    "pickles": load_pickle,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("what", WHAT)
def test_what_is_no_checkpoint_is_refused_in_our_words(tmp_path, reader, what):
    file = tmp_path / "weights.pth"
    write, says = WHAT[what]
    write(file)
    with pytest.raises(InputError, match=says) as error:
        READERS[reader](file)
    assert "weights.pth" in str(error.value)
    assert "weights_only" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("what", ["cut", "damaged", "pickled", "module"])
def test_a_noise_model_is_read_so_too(tmp_path, what):
    file = tmp_path / "weights.pth"
    write, says = WHAT[what]
    write(file)
    with pytest.raises(InputError, match=says):
        load_published(file)


@pytest.mark.filterwarnings(
    "ignore:`torch.jit:FutureWarning", "ignore:.*torch.jit.load:UserWarning"
)
def test_a_program_of_torchscript_is_named(tmp_path):
    file = tmp_path / "weights.pth"
    torch.jit.script(torch.nn.Linear(2, 2)).save(file)
    with pytest.raises(InputError, match=r"TorchScript program.*state_dict"):
        load_pickle(file)


def test_on_the_command_line_it_is_one_line(tmp_path, capsys):
    file = tmp_path / "README.md"
    text(file)
    assert main(["kv", "convert", str(file), "--out", str(tmp_path / "x")]) == 2
    [said] = capsys.readouterr().err.splitlines()
    assert "README.md is damaged, cut off or no checkpoint" in said
    assert "weights_only" not in said
    assert not (tmp_path / "x").exists()
