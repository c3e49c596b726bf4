"""Whatever is wrong with the input: one line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from model_folders import model_folder
from PIL import Image

from w2sdiff.cli import main

BEFORE_A_MODEL = [
    (["paint"], "paint"),
    (["generate", "--nonsense"], "--nonsense"),
    (["generate"], "expected a prompt"),
    (["generate", ""], "the prompt is empty"),
    (["generate", " \n"], "the prompt is empty"),
    (["generate", "a\0b"], "NUL"),
    (["generate", "\ud800"], "surrogate"),
    (["generate", "x" * 200_000], "200000 bytes"),
    (["generate", "a", "--method", "w2ds"], "Did you mean 'w2sd'"),
    (["generate", "a", "--model", "nowhere"], "no model folder 'nowhere'"),
    (["generate", "a", "--model", "shapes-unit"], "shapes-unit"),
    (["generate", "a", "--steps", "many"], "--steps"),
    (["generate", "a", "--seed", "1.5"], "--seed"),
    (["generate", "--prompts", "none.txt"], r"none\.txt does not exist"),
    (["list", "method"], "Did you mean 'methods'"),
    (["rerun", "none.png"], r"none\.png"),
]

WITH_A_MODEL = [
    (["--strong", "gidance=1"], "Did you mean 'guidance'"),
    (["--weak", "guidance=strong"], "number"),
    (["--weak", "guidance=nan"], "finite|number"),
    (["--weak", "guidance"], "guidance=W"),
    (["--weak", "guidance=1,guidance=2"], "[Tt]wo edits"),
    (["--weak", "checkpoint=none"], "No such file: none"),
    (["--weak", "checkpoint="], "a folder, a file or a hub id; got an empty text"),
    (["--weak", "learned-guidance="], "a noise model's file after learned-guidance=, got nothing"),
    (["--kv-compress", "2:"], "where one is empty"),
    (["--weak", "lora:nobody=1"], r"'nobody' is not loaded \(there are: style\)"),
    (["--weak", "prompt=@vague"], "no column|does not have"),
    (["--weak", ""], "[Ee]mpty"),
    (["--window", "0.5:1.5"], r"\[0, 1\]"),
    (["--window", "0.8:0.2"], "after its stop"),
    (["--window", "half"], "0:0.5"),
    (["--window", "nan:1"], r"\[0, 1\]"),
    (["--times", "0"], "at least 1"),
    (["--inversion", "rough"], "'exact' or 'reference'"),
    (["--scale", "2"], "takes no --scale"),
    (["--method", "autoguidance", "--weak", "guidance=0", "--scale", "inf"], "finite"),
    (["--method", "plain", "--times", "2"], "takes no --times"),
    (["--method", "zigzag", "--weak", "lora:style=1"], "guidance pairs only"),
    (["--method", "plain", "--compare"], "no weak and strong"),
    (["--steps", "0"], "at least 1 step"),
    (["--steps", "-3"], "at least 1 step"),
    (["--guidance", "nan"], "finite number for the guidance"),
    (["--guidance", "inf"], "finite number for the guidance"),
    (["--size", "17"], "multiples of 8"),
    (["--size", "16x17"], "multiples of 8"),
    (["--size", "0"], "multiples of 8"),
    (["--size", "1000000"], "multiples of 8"),
    (["--size", "big"], "512 or 768x512"),
    (["--size", "64x"], "512 or 768x512, got '64x'"),
    (["--size", "x64"], "512 or 768x512, got 'x64'"),
    (["--count", "0"], "count"),
    (["--count", "99999999999"], "count"),
    (["--batch", "0"], "batch"),
    (["--seed", "-1"], "seeds from 0"),
    (["--seed", "99999999999999999999"], "seeds from 0"),
    (["--scheduler", "eulr"], "Did you mean 'euler'"),
    (["--scheduler", "flow-euler"], "no flow model"),
    (["--scheduler", "heun"], "cannot reflect"),
    (["--dtype", "float23"], "Did you mean 'float32'|Did you mean 'float16'"),
    (["--device", "gpu"], "cpu, cuda"),
    (["--device", "cuda:99"], "cuda:99"),
    (["--offload", "some"], "[Uu]nknown offload"),
    (["--offload", "model"], "device is cpu"),
    (["--variant", "fp16"], "no variant 'fp16'"),
    (["--lora", "style"], "NAME=FILE"),
    (["--lora", "style=none.safetensors"], "does not exist"),
    (["--lora", "s p=x"], "letters"),
    (["--image", "none.png"], "does not exist"),
    (["--image-strength", "0.5"], "only with an image"),
    (["--true-cfg", "2"], "takes no true CFG scale"),
    (["--attention-backend", "xformers"], "attention"),
    (["--guidance", "1", "--weak", "guidance=0"], "[Gg]uidance"),
]


def one_line_and_nothing_written(words, message, capsys, folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(words) == 2
    captured = capsys.readouterr()
    error = captured.err.splitlines()[-1]
    assert error.startswith("w2sdiff: error: ")
    assert "Traceback" not in captured.err
    assert re.search(message, error), error
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    monkeypatch.chdir(tmp_path)


def with_model(*words, model=None):
    model = model or model_folder("sd", lora=True)
    fast = ("--size", "16", "--steps", "2", "--guidance", "3", "--device", "cpu")
    weak = () if "--weak" in words or "--method" in words else ("--weak", "guidance=0")
    return ["generate", "a circle", "--model", str(model), "--out", "out", *fast, *weak, *words]


@pytest.mark.parametrize(("words", "message"), BEFORE_A_MODEL)
def test_before_a_model_is_looked_at(words, message, capsys, tmp_path):
    one_line_and_nothing_written(words, message, capsys, tmp_path)


@pytest.mark.parametrize(("words", "message"), WITH_A_MODEL)
def test_with_a_model(words, message, capsys, tmp_path):
    one_line_and_nothing_written(with_model(*words), message, capsys, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"fine\nnot \xff\n", "line 2: expected UTF-8"),
        (b"fine\n" + b"x" * 1_000_000, "line 2: longer than"),
    ],
)
def test_prompt_files(content, message, capsys, tmp_path):
    Path("p.txt").write_bytes(content)
    one_line_and_nothing_written(["generate", "--prompts", "p.txt"], message, capsys, tmp_path)


def damaged_model(damage):
    folder = Path("model")
    shutil.copytree(model_folder("sd", lora=True), folder)
    index = folder / "model_index.json"
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    match damage:
        case "no index":
            index.unlink()
        case "half an index":
            index.write_text(index.read_text()[:50])
        case "own code":
            data = json.loads(index.read_text()) | {"_class_name": ["own.py", "Own"]}
            index.write_text(json.dumps(data))
        case "unknown class":
            data = json.loads(index.read_text()) | {"_class_name": "MyPipeline"}
            index.write_text(json.dumps(data))
        case "no class of ours":
            data = json.loads(index.read_text()) | {"_class_name": "DDIMScheduler"}
            index.write_text(json.dumps(data))
        case "pickle":
            weights.rename(weights.with_suffix(".bin"))
        case "no weights":
            for file in folder.rglob("*.safetensors"):
                file.unlink()
        case "no weights in a part":
            weights.unlink()
        case "half the weights":
            weights.write_bytes(weights.read_bytes()[:1000])
    return folder


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no index", "no model_index.json"),
        ("half an index", "cannot read"),
        ("own code", "never run"),
        ("unknown class", "does not have"),
        ("no class of ours", "does not have"),
        ("pickle", "has no safetensors weights, only diffusion_pytorch_model.bin"),
        ("no weights", "no safetensors weights"),
        ("no weights in a part", "unet has no safetensors weights"),
        ("half the weights", "cannot load"),
    ],
)
def test_damaged_models(damage, message, capsys, tmp_path):
    model = damaged_model(damage)
    one_line_and_nothing_written(with_model(model=model), message, capsys, tmp_path)


@pytest.mark.parametrize("content", [b"not safetensors", None])
def test_a_lora_file_that_is_none(content, capsys, tmp_path):
    from safetensors.torch import save_file
    from torch import zeros

    if content is None:
        save_file({"something.else": zeros(2)}, "x.safetensors")
    else:
        Path("x.safetensors").write_bytes(content)
    words = with_model("--lora", "x=x.safetensors")
    one_line_and_nothing_written(words, r"x\.safetensors", capsys, tmp_path)


def test_an_image_that_is_none(capsys, tmp_path):
    Path("x.png").write_bytes(b"no image")
    one_line_and_nothing_written(with_model("--image", "x.png"), "not an image", capsys, tmp_path)


def test_a_lora_of_another_network_where_diffusers_has_no_loader(capsys, tmp_path):
    file = model_folder("sd", lora=True) / "loras" / "style.safetensors"
    words = with_model("--lora", f"s={file}", model=model_folder("pixart"))
    one_line_and_nothing_written(words, "does not fit PixArtTransformer2DModel", capsys, tmp_path)


def test_rerun_of_a_picture_that_says_nothing(capsys, tmp_path):
    Image.new("RGB", (8, 8)).save("x.png")
    one_line_and_nothing_written(["rerun", "x.png"], "does not say how", capsys, tmp_path)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"schema": 2},
        {"schema": 1},
        {"schema": 1, "model": {}, "settings": {}},
        {"schema": 1, "grid": []},
        {"schema": 1, "model": {"name": 3, "variant": None, "revision": None, "commit": None}},
        {"schema": 1, "model": [], "settings": []},
    ],
)
def test_rerun_of_a_picture_that_says_nonsense(said, capsys, tmp_path):
    from w2sdiff.imaging import png_bytes

    Path("x.png").write_bytes(png_bytes(Image.new("RGB", (8, 8)), said))
    one_line_and_nothing_written(["rerun", "x.png"], r"x\.png", capsys, tmp_path)


def test_an_output_folder_that_is_a_file(capsys, tmp_path):
    Path("out").write_text("")
    one_line_and_nothing_written(with_model(), "out is not a folder", capsys, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_that_is_read_only(capsys, tmp_path):
    Path("out").mkdir(mode=0o500)
    one_line_and_nothing_written(with_model(), "permission denied", capsys, tmp_path)


def test_a_read_only_file_system(capsys, tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refuse)
    one_line_and_nothing_written(with_model(), "read-only", capsys, tmp_path)


def test_a_bug_is_one_line_too_unless_debugging(capsys, monkeypatch):
    def bug(*_args, **_kwargs):
        raise RuntimeError("no such thing\nmore of it")

    monkeypatch.setattr("w2sdiff.generate.find_model", bug)
    assert main(["generate", "a"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("w2sdiff: error: RuntimeError: no such thing more of it (a bug")
    assert error.count("\n") == 1
    assert main(["generate", "a", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
