"""`w2sdiff generate` and `w2sdiff rerun` on real tiny pipelines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from model_folders import model_folder
from PIL import Image

from w2sdiff.cli import main
from w2sdiff.imaging import read_metadata

FAST = ("--size", "16", "--steps", "3", "--guidance", "3", "--device", "cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def command(out, *words, model=None, fast=FAST):
    model = model or model_folder("sd", weak=True, lora=True)
    return ["generate", "--model", str(model), "--out", str(out), *fast, *words]


def events(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def pictures(folder):
    return sorted(path for path in Path(folder).glob("*.png") if "compare" not in path.name)


def files(folder):
    return {p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file()}


def pixels(path):
    return np.asarray(Image.open(path))


def stock(prompt, seed, family="sd", **changes):
    """The picture that the stock pipeline makes by itself."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(model_folder(family, weak=True, lora=True))
    pipe.set_progress_bar_config(disable=True)
    arguments = {
        "width": 16,
        "height": 16,
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
    } | changes
    generator = torch.Generator("cpu").manual_seed(seed)
    return np.asarray(pipe(prompt, generator=generator, **arguments).images[0])


def test_plain_is_the_stock_pipeline_pixel_by_pixel(tmp_path):
    assert main(command(tmp_path, "a red circle", "--method", "plain", "--seed", "5")) == 0
    [path] = pictures(tmp_path)
    assert np.array_equal(pixels(path), stock("a red circle", 5))


def test_a_finished_picture_is_not_made_again_and_nothing_is_loaded(tmp_path, capsys, monkeypatch):
    words = command(tmp_path, "a red circle", "--count", "2", "--json")
    assert main(words) == 0
    assert [e["status"] for e in events(capsys) if e["event"] == "picture"] == ["made", "made"]
    before = {path: path.stat().st_mtime_ns for path in pictures(tmp_path)}

    monkeypatch.setattr("w2sdiff.generate.draw.load_pipeline", None)
    assert main(words) == 0
    assert [e["status"] for e in events(capsys) if e["event"] == "picture"] == ["found", "found"]
    assert {path: path.stat().st_mtime_ns for path in pictures(tmp_path)} == before


def test_every_other_setting_is_another_picture(tmp_path):
    changes = {
        "--seed": "1",
        "--steps": "4",
        "--guidance": "4",
        "--negative": "blurry",
        "--scheduler": "euler",
        "--method": "plain",
        "--window": "0:0.3",
        "--dtype": "bfloat16",
    }
    assert main(command(tmp_path, "a red circle")) == 0
    for change in changes.items():
        assert main([*command(tmp_path, "a red circle"), *change]) == 0
    drawn = {pixels(path).tobytes() for path in pictures(tmp_path)}
    assert len(drawn) == len(pictures(tmp_path)) == 1 + len(changes)


def test_the_place_of_a_model_and_the_offload_do_not_count_but_its_weights_do(tmp_path):
    import shutil

    moved = tmp_path / "moved"
    shutil.copytree(model_folder("sd", weak=True, lora=True), moved)
    out = tmp_path / "out"
    assert main(command(out, "a red circle")) == 0
    assert main(command(out, "a red circle", model=moved)) == 0
    assert len(pictures(out)) == 1
    shutil.rmtree(moved / "unet")
    tiny.build_denoiser("sd", seed=7).save_pretrained(moved / "unet")
    assert main(command(out, "a red circle", model=moved)) == 0
    assert len(pictures(out)) == 2


def test_each_picture_says_how_it_was_made_also_to_other_tools(tmp_path):
    out = tmp_path / "out"
    words = (
        "a red circle",
        "--negative",
        "blurry",
        "--seed",
        "3",
        "--weak",
        "lora:style=-1,guidance=1",
    )
    assert main(command(out, *words)) == 0
    [path] = pictures(out)
    said = read_metadata(path)
    assert (said["prompt"], said["seed"], said["settings"]["negative"]) == (
        "a red circle",
        3,
        "blurry",
    )
    lora = next(edit for edit in said["method"]["weak"] if edit["edit"] == "lora")
    assert len(lora["sha256"]) == len(said["model"]["sha256"]) == 64
    assert {"torch", "diffusers", "w2sdiff"} <= said["versions"].keys()
    assert said["cost"]["evaluations"] == 3 * 2 + 2 * (2 + 1)
    assert str(tmp_path) not in json.dumps(said), "no place on this machine in a picture"
    lines = Image.open(path).info["parameters"].splitlines()
    assert lines[:2] == ["a red circle", "Negative prompt: blurry"]
    assert lines[2].startswith("Steps: 3, Sampler: ")
    assert "CFG scale: 3.0, Seed: 3, Size: 16x16" in lines[2]


def test_rerun_makes_the_identical_file(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(out, "a red circle", "--weak", "lora:style=-1")) == 0
    [path] = pictures(out)
    again = tmp_path / "again.png"
    assert main(["rerun", str(path), "--out", str(again)]) == 0
    assert "the same picture" in capsys.readouterr().err
    assert again.read_bytes() == path.read_bytes()


def test_rerun_repeats_the_whole_batch(tmp_path):
    out = tmp_path / "out"
    assert (
        main(command(out, "a red circle", "two blue squares", "--count", "2", "--batch", "3")) == 0
    )
    paths = pictures(out)
    assert sorted(len(read_metadata(path)["group"]) for path in paths) == [1, 3, 3, 3]
    for path in paths:
        again = tmp_path / "again.png"
        assert main(["rerun", str(path), "--out", str(again)]) == 0
        assert again.read_bytes() == path.read_bytes()


def test_batches_draw_the_same_pictures_up_to_rounding(tmp_path):
    prompts = ("a red circle", "two blue squares", "a green triangle")
    assert main(command(tmp_path / "one", *prompts)) == 0
    assert main(command(tmp_path / "three", *prompts, "--batch", "3")) == 0
    for single, batched in zip(
        pictures(tmp_path / "one"), pictures(tmp_path / "three"), strict=True
    ):
        assert np.abs(pixels(single).astype(int) - pixels(batched).astype(int)).max() <= 1
    keys = [{p.name[-12:] for p in pictures(tmp_path / name)} for name in ("one", "three")]
    assert not keys[0] & keys[1], "the batch is part of what is recorded"


def test_rerun_says_what_differs(tmp_path, capsys):
    import shutil

    model = tmp_path / "model"
    shutil.copytree(model_folder("sd"), model)
    assert main(command(tmp_path / "out", "a red circle", "--method", "plain", model=model)) == 0
    shutil.rmtree(model / "unet")
    tiny.build_denoiser("sd", seed=7).save_pretrained(model / "unet")
    [path] = pictures(tmp_path / "out")
    capsys.readouterr()
    assert main(["rerun", str(path), "--json"]) == 1
    captured = capsys.readouterr()
    [event] = [json.loads(line) for line in captured.out.splitlines()]
    assert event["pixels_changed"] > 0
    assert event["differences"] == [f"the weights of {model} are others"]
    assert Path(event["file"]).name == f"{path.stem}-again.png"


def test_rerun_downloads_nothing_on_the_word_of_a_picture(tmp_path, capsys, monkeypatch):
    assert main(command(tmp_path, "a red circle", "--method", "plain")) == 0
    [path] = pictures(tmp_path)
    said = read_metadata(path)
    said["model"]["name"] = "someone/something"
    from w2sdiff.imaging import png_bytes

    path.write_bytes(png_bytes(Image.open(path), said))
    asked = []
    monkeypatch.setattr(
        "diffusers.DiffusionPipeline.download",
        lambda *_, **k: asked.append(k["local_files_only"]) or (_ for _ in ()).throw(OSError("no")),
    )
    assert main(["rerun", str(path)]) == 2
    assert asked == [True]
    assert "--model" in capsys.readouterr().err


def test_compare_draws_weak_strong_and_method_from_the_same_noise(tmp_path, capsys):
    assert main(command(tmp_path, "a red circle", "a blue square", "--compare", "--json")) == 0
    told = events(capsys)
    drawn = {(e["prompt"], e["arm"]): e for e in told if e["event"] == "picture"}
    assert {arm for _, arm in drawn} == {"weak", "strong", "w2sd"}
    cost = {arm: e["evaluations"] for (_, arm), e in drawn.items()}
    assert cost == {"weak": 6, "strong": 6, "w2sd": 6 + 2 * 2}
    strong = drawn["a red circle", "strong"]["file"]
    assert np.array_equal(pixels(strong), stock("a red circle", 0))
    weak = drawn["a red circle", "weak"]["file"]
    from diffusers import UNet2DConditionModel

    folder = model_folder("sd", weak=True, lora=True)
    pipe = tiny.build("sd")
    pipe.unet = UNet2DConditionModel.from_pretrained(folder / "unet_weak")
    arguments = {"width": 16, "height": 16, "num_inference_steps": 3, "guidance_scale": 3.0}
    expected = pipe("a red circle", generator=torch.Generator().manual_seed(0), **arguments).images[
        0
    ]
    assert np.array_equal(pixels(weak), np.asarray(expected))
    sheets = [e["file"] for e in told if e["event"] == "sheet"]
    assert len(sheets) == 2
    assert Image.open(sheets[0]).width == 3 * (256 + 16) + 16


def test_a_comparison_reuses_what_is_there(tmp_path, capsys):
    assert main(command(tmp_path, "a red circle", "--method", "plain", "--quiet")) == 0
    assert main(command(tmp_path, "a red circle", "--compare", "--json")) == 0
    status = [e["status"] for e in events(capsys) if e["event"] == "picture"]
    assert sorted(status) == ["found", "made", "made"]


def test_the_cost_is_said_before_and_counted_after(tmp_path, capsys):
    assert main(command(tmp_path, "a red circle", "--method", "zigzag", "--json")) == 0
    told = {e["event"]: e for e in events(capsys)}
    assert told["plan"]["evaluations"] == told["picture"]["evaluations"] == 3 * 2 + 2 * (2 + 1)
    assert told["plan"]["plain_evaluations_per_picture"] == 6
    assert told["summary"]["made"] == 1


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(out, "a red circle", "--dry-run", "--compare")) == 0
    assert "evaluations" in capsys.readouterr().err
    assert not out.exists()


def test_quiet_is_silent(tmp_path, capsys):
    assert main(command(tmp_path, "a red circle", "--quiet")) == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_stdout_is_the_files_and_nothing_else(tmp_path, capsys):
    assert main(command(tmp_path, "a red circle", "--count", "2")) == 0
    assert sorted(capsys.readouterr().out.split()) == [str(path) for path in pictures(tmp_path)]


def test_prompts_from_a_file_with_a_column_for_the_weak_model(tmp_path, capsys):
    file = tmp_path / "p.csv"
    file.write_text("id,prompt,vague\nx,a red circle,a shape\ny,a blue square,a thing\n")
    out = tmp_path / "out"
    words = ("--prompts", str(file), "--weak", "prompt=@vague", "--batch", "2", "--json")
    assert main(command(out, *words)) == 0
    drawn = [e for e in events(capsys) if e["event"] == "picture"]
    assert [e["prompt_id"] for e in drawn] == ["x", "y"]
    for path in pictures(out):
        again = tmp_path / "again.png"
        assert main(["rerun", str(path), "--out", str(again)]) == 0
        assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("family", ["sd", "pixart"])  # diffusers has no loader for the second
def test_a_lora_file_is_loaded_at_its_weight(family, tmp_path):
    lora = model_folder(family, lora=True) / "loras" / "style.safetensors"
    plain = ("a red circle", "--method", "plain")
    bare = model_folder(family)
    for name, more in {"on": f"s={lora}", "off": f"s={lora}@0", "none": None}.items():
        words = (*plain, "--lora", more) if more else plain
        assert main(command(tmp_path / name, *words, model=bare)) == 0
    on, off, none = (pixels(pictures(tmp_path / name)[0]) for name in ("on", "off", "none"))
    assert np.array_equal(off, none)
    assert (on != none).any()


def test_a_picture_to_start_from(tmp_path):
    start = tmp_path / "start.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(start)
    out = tmp_path / "out"
    words = ("a red circle", "--image", str(start), "--image-strength", "0.7")
    assert main(command(out, *words)) == 0
    [path] = pictures(out)
    assert read_metadata(path)["settings"]["image_strength"] == 0.7
    again = tmp_path / "again.png"
    assert main(["rerun", str(path), "--out", str(again)]) == 0
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux", "pixart"])
def test_every_family_draws(tmp_path, family, capsys):
    words = command(tmp_path, "a red circle", "--json", model=model_folder(family, weak=True))
    assert main(words) == 0
    told = {e["event"]: e for e in events(capsys)}
    assert told["picture"]["evaluations"] == told["plan"]["evaluations"]


def broken_pipeline(monkeypatch, hook):
    """Real pipelines whose denoiser runs `hook(inputs, output)` after each call."""
    from w2sdiff.generate import draw

    load = draw.load_pipeline

    def loaded(*arguments):
        pipe = load(*arguments)
        pipe.unet.register_forward_hook(lambda _module, inputs, output: hook(inputs, output))
        return pipe

    monkeypatch.setattr(draw, "load_pipeline", loaded)


def test_a_picture_that_is_not_a_number_is_recorded_and_the_rest_goes_on(
    tmp_path, capsys, monkeypatch
):
    calls = iter(range(1000))
    broken = [True]

    def hook(_inputs, output):
        bad = next(calls) == 4 and broken[0]  # within the second picture
        return (output[0] * float("nan"),) if bad else None

    broken_pipeline(monkeypatch, hook)
    words = command(tmp_path, "a red circle", "--count", "3", "--method", "plain", "--json")
    assert main(words) == 1
    drawn = [e for e in events(capsys) if e["event"] == "picture"]
    assert [e["status"] for e in drawn] == ["made", "failed", "made"]
    assert "NaN" in drawn[1]["reason"]
    assert len(pictures(tmp_path)) == 2
    broken[0] = False
    assert main(words) == 0
    assert [e["status"] for e in events(capsys) if e["event"] == "picture"] == [
        "found",
        "made",
        "found",
    ]


def test_a_black_picture_is_a_failure(tmp_path, capsys, monkeypatch):
    from w2sdiff.generate import draw

    load = draw.load_pipeline

    def loaded(*arguments):
        pipe = load(*arguments)
        for parameter in pipe.vae.decoder.conv_out.parameters():
            torch.nn.init.constant_(parameter, 0.0)
        pipe.vae.decoder.conv_out.bias.data -= 9
        return pipe

    monkeypatch.setattr(draw, "load_pipeline", loaded)
    assert main(command(tmp_path, "a red circle", "--json")) == 1
    [event] = [e for e in events(capsys) if e["event"] == "picture"]
    assert event["reason"] == "the picture is black"
    assert pictures(tmp_path) == []


def test_out_of_memory_halves_the_batch_and_rerun_repeats_what_ran(tmp_path, capsys, monkeypatch):
    largest = 2

    def hook(inputs, _output):
        if inputs[0].shape[0] > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")

    broken_pipeline(monkeypatch, hook)
    words = command(tmp_path, "a red circle", "--count", "4", "--batch", "4", "--method", "plain")
    assert main([*words, "--guidance", "1"]) == 0
    assert sorted(len(read_metadata(path)["group"]) for path in pictures(tmp_path)) == [2, 2, 2, 2]
    monkeypatch.undo()
    for path in pictures(tmp_path):
        again = tmp_path / "again" / "x.png"
        assert main(["rerun", str(path), "--out", str(again)]) == 0
        assert again.read_bytes() == path.read_bytes()


def test_out_of_memory_at_batch_one_is_recorded(tmp_path, capsys, monkeypatch):
    def hook(inputs, _output):
        raise torch.OutOfMemoryError("CUDA out of memory")

    broken_pipeline(monkeypatch, hook)
    assert main(command(tmp_path, "a red circle", "--batch", "2", "--count", "2", "--json")) == 1
    assert {e["reason"] for e in events(capsys) if e["event"] == "picture"} == {"out of memory"}


def test_a_full_disk_leaves_finished_pictures_and_no_halves(tmp_path, capsys, monkeypatch):
    real, written = os.fsync, []

    def full(descriptor):
        written.append(descriptor)
        if len(written) > 2:  # a picture and its record fit
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert main(command(tmp_path, "a red circle", "--count", "3")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("w2sdiff: error: cannot write")
    assert "disk is full" in error
    assert len(pictures(tmp_path)) == 1
    assert not [name for name in files(tmp_path) if "tmp" in name]
    monkeypatch.undo()
    assert main(command(tmp_path, "a red circle", "--count", "3")) == 0
    assert len(pictures(tmp_path)) == 3


class Worker:
    """`main` in a process of its own, forked so that it need not import everything again."""

    def __init__(self, log, out, *words):
        self.log = log
        self.returncode = None
        arguments = command(out, *words)
        self.pid = os.fork()
        if self.pid == 0:
            sys.stdout = sys.stderr = log.open("w", buffering=1)
            os._exit(main(arguments))

    def running(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode is None

    def wait(self, seconds=300):
        deadline = time.monotonic() + seconds
        while self.running() and time.monotonic() < deadline:
            time.sleep(0.01)
        if self.running():
            os.kill(self.pid, signal.SIGKILL)
        assert not self.running(), self.log.read_text()

    def wait_for_pictures(self, out, number):
        while self.running() and len(pictures(out)) < number:
            time.sleep(0.005)
        assert self.running(), self.log.read_text()

    def events(self):
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


def test_killed_and_resumed_by_two_processes_nothing_is_lost_or_made_twice(tmp_path, capsys):
    out = tmp_path / "out"
    words = ("a red circle", "--count", "40", "--method", "plain", "--json")
    victim = Worker(tmp_path / "victim", out, *words)
    victim.wait_for_pictures(out, 3)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    survived = {path: path.stat().st_mtime_ns for path in pictures(out)}
    assert 3 <= len(survived) < 40
    for path in survived:
        Image.open(path).load()

    workers = [Worker(tmp_path / name, out, *words) for name in ("first", "second")]
    for worker in workers:
        worker.wait()
    assert [worker.returncode for worker in workers] == [0, 0]
    told = [event for worker in workers for event in worker.events()]
    made = [event["file"] for event in told if event.get("status") == "made"]
    assert len(made) == len(set(made))
    assert len(pictures(out)) == len(list((out / "records").iterdir())) == 40
    untouched = [path for path, at in survived.items() if path.stat().st_mtime_ns == at]
    assert len(untouched) >= len(survived) - 1  # one may have lacked its record when it was killed
    assert not [name for name in files(out) if "tmp" in name or "claims" in name]
    assert main(command(out, *words)) == 0
    assert {e["status"] for e in events(capsys) if e["event"] == "picture"} == {"found"}


def test_ctrl_c_finishes_the_picture_in_hand(tmp_path):
    out = tmp_path / "out"
    worker = Worker(tmp_path / "log", out, "a red circle", "--count", "500", "--json")
    worker.wait_for_pictures(out, 1)
    os.kill(worker.pid, signal.SIGINT)
    worker.wait()
    log = worker.log.read_text()
    assert worker.returncode == 130, log
    assert "picture in hand" in log
    summary = worker.events()[-1]
    assert summary["made"] == len(pictures(out)) >= 1
    assert summary["made"] + summary["left"] == 500
    assert not [name for name in files(out) if "tmp" in name]


def test_as_a_program(tmp_path):
    words = [sys.executable, "-m", "w2sdiff", *command(tmp_path, "a red circle", "--json")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == [
        "plan",
        "picture",
        "summary",
    ]
    assert len(done.stderr.splitlines()) == 4, "libraries are kept quiet: " + done.stderr


def test_a_second_ctrl_c_stops_at_once():
    from w2sdiff.cli.interrupt import Interrupt

    before = signal.getsignal(signal.SIGINT)
    told = []
    with Interrupt(lambda: told.append(1)) as stopping:
        assert not stopping()
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert told == [1]
    assert signal.getsignal(signal.SIGINT) is before
