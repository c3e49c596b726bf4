"""`w2sdiff core2`: collect, reflect, convert, show, from the embedded model to a file."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest
import torch
from core2 import synthetic
from model_folders import model_folder
from noise_models import noise_model_file

from w2sdiff.cli import main
from w2sdiff.core2 import load_noise_model

FAST = ("--model", "shapes-unet", "--device", "cpu", "--steps", "3", "--guidance", "3")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def collect(out, *words, fast=FAST, limit=4):
    words = ("--limit", str(limit), "--shard", "2", *words)
    return ["core2", "collect", "--prompts", "shapes-train", "--out", str(out), *fast, *words]


def reflect(data, out, *words):
    fast = ("--steps", "4", "--batch", "8", "--warmup", "2", "--validation", "0.3")
    fast += ("--validate-every", "2", "--width", "16")
    return ["core2", "reflect", "--data", str(data), "--out", str(out), *fast, *words]


def events(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_from_prompts_to_a_noise_model_that_draws(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "training"
    assert main(collect(data, "--json", limit=8)) == 0
    said = {event.pop("event"): event for event in events(capsys)}
    assert said["plan"]["samples"] == 24
    assert (said["summary"]["made"], said["summary"]["failed"]) == (4, 0)
    on_disk = sum(path.stat().st_size for path in data.glob("*.safetensors"))
    assert abs(said["plan"]["bytes"] - on_disk) < 0.25 * on_disk

    assert main(reflect(data, out, "--json")) == 0
    heard = events(capsys)
    assert [event["event"] for event in heard] == ["validation", "validation", "noise_model"]
    assert heard[0]["step"] == 2
    assert set(heard[0]["errors"]) == {"relative", "prediction", "x0"}
    file = heard[-1]["file"]
    assert file == str(out / "noise_model.safetensors")

    assert main(["core2", "show", file]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["host"]["guidance_scale"] == 3.0
    assert shown["host"]["denoiser"] == "UNet2DConditionModel"
    assert shown["host"]["evaluation_flops"] > 0
    assert shown["card"]["training"]["steps"] == 4

    from diffusers import DiffusionPipeline

    from w2sdiff import attach, shapes
    from w2sdiff.errors import UnsupportedError
    from w2sdiff.methods import Core2

    pipe = DiffusionPipeline.from_pretrained(shapes.checkpoint_path("shapes-unet"))
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "output_type": "latent"}
    with attach(pipe, Core2(file, slow_until=0.5)) as run:
        pipe("a red circle", guidance_scale=3.0, **call)
        assert run.stats.evaluations == 3
        with pytest.raises(UnsupportedError, match="guidance at 3, the pipeline runs at 2"):
            pipe("a red circle", guidance_scale=2.0, **call)
    pipe.unet.register_to_config(block_out_channels=[1, 2])
    with attach(pipe, Core2(file)), pytest.raises(UnsupportedError, match="block_out_channels"):
        pipe("a red circle", guidance_scale=3.0, **call)


@pytest.mark.slow
def test_again_it_only_looks(tmp_path, capsys):
    data = tmp_path / "data"
    assert main(collect(data)) == 0
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*.safetensors")}
    capsys.readouterr()
    assert main(collect(data, "--json")) == 0
    assert events(capsys)[-1]["found"] == 2
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*.safetensors")} == before


def test_dry_run_says_it_and_writes_nothing(tmp_path, capsys):
    assert main(collect(tmp_path / "data", "--dry-run", "--json", limit=100)) == 0
    [plan] = events(capsys)
    assert (plan["event"], plan["prompts"], plan["samples"]) == ("plan", 100, 300)
    assert plan["bytes"] > 10_000
    assert plan["seconds"] > 0
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_some_steps_another_method_and_a_filter(tmp_path, capsys):
    data = tmp_path / "data"
    words = ("--method", "w2sd", "--strong", "guidance=1", "--weak", "guidance=0")
    words += ("--keep-steps", "0,2", "--filter", "contrast", "--threshold", "-1", "--json")
    assert main(collect(data, *words)) == 0
    about = json.loads((data / "collect.json").read_text("utf-8"))
    assert about["method"]["method"] == "w2sd"
    assert about["decides"]["steps"] == [0, 2]
    assert about["decides"]["keep"]["threshold"] == -1
    from w2sdiff.core2.data import Collected

    assert len(Collected.open(data)) == 8


def test_a_failed_shard_is_exit_code_1(tmp_path, capsys, monkeypatch):
    from w2sdiff.core2 import collect as module

    own, calls = module.shard_bytes, []

    def fails(*args):
        calls.append(1)
        if len(calls) == 3:  # after two of the estimate
            raise RuntimeError("a cosmic ray")
        return own(*args)

    monkeypatch.setattr(module, "shard_bytes", fails)
    assert main(collect(tmp_path / "data", "--json")) == 1
    captured = capsys.readouterr()
    summary = json.loads(captured.out.splitlines()[-1])
    assert (summary["made"], summary["failed"]) == (1, 1)
    assert "a cosmic ray" in captured.err
    monkeypatch.undo()
    assert main(collect(tmp_path / "data", "--json")) == 0
    assert events(capsys)[-1]["made"] == 1


def interrupting(monkeypatch, module, name, at):
    """Ctrl-C in the middle of a call of a function."""
    own, calls = getattr(module, name), []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return own(*args)

    monkeypatch.setattr(module, name, interrupted)


@pytest.mark.slow
def test_ctrl_c_while_collecting(tmp_path, capsys, monkeypatch):
    from w2sdiff.core2 import collect as module

    interrupting(monkeypatch, module, "shard_bytes", 3)
    assert main(collect(tmp_path / "data", "--json")) == 130
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["left"] == 1
    assert "stopping after the shard in hand" in captured.err
    monkeypatch.undo()
    assert main(collect(tmp_path / "data", "--json")) == 0
    summary = events(capsys)[-1]
    assert (summary["found"], summary["made"]) == (1, 1)


def test_ctrl_c_while_training(tmp_path, capsys, monkeypatch):
    from w2sdiff.core2 import reflect as module

    data = synthetic.write(tmp_path / "data", texts=synthetic.prompts(20))
    interrupting(monkeypatch, module, "_parts", 3)
    assert main(reflect(data, tmp_path / "stopped", "--json")) == 130
    captured = capsys.readouterr()
    assert "stopping after the step in hand" in captured.err
    assert "the same command goes on" in captured.err
    monkeypatch.undo()
    assert main(reflect(data, tmp_path / "stopped")) == 0
    assert main(reflect(data, tmp_path / "whole")) == 0
    one, other = (
        load_noise_model(tmp_path / name / "noise_model.safetensors").state_dict()
        for name in ("stopped", "whole")
    )
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_quiet_says_nothing(tmp_path, capsys):
    assert main(collect(tmp_path / "data", "--quiet", "--dry-run")) == 0
    captured = capsys.readouterr()
    assert captured.err == ""


def test_convert_writes_what_a_published_checkpoint_says(tmp_path, capsys):
    from core2.test_published import TINY, trained

    from w2sdiff.core2 import save_noise_model

    model = trained(TINY["sdxl"])
    save_noise_model(model, tmp_path / "published.safetensors")
    out = tmp_path / "there" / "g.safetensors"
    assert main(["core2", "convert", str(tmp_path / "published.safetensors"), "-o", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    again = load_noise_model(out)
    assert again.form == "published"
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


BAD_COLLECT = [
    (["--prompts", "shapes-trian"], "Did you mean 'shapes-train'"),
    (["--engine", "mpi"], "engine local or ray"),
    (["--filter", "contrast"], "give both"),
    (["--threshold", "0.5"], "give both"),
    (["--filter", "contrats", "--threshold", "0"], "Did you mean 'contrast'"),
    (["--keep-steps", "first"], "steps such as 0,2,5-9"),
    (["--keep-steps", "3"], "from 0 to 2"),
    (["--keep-steps", "2-1"], "steps"),
    (["--keep-steps", "-1"], "steps such as"),
    (["--shard", "0"], "at least 1 prompt per shard"),
    (["--guidance", "1"], "off at this step"),
    (["--steps", "0"], "at least 1 step"),
    (["--limit", "0"], "limit"),
    (["--method", "w2ds"], "Did you mean 'w2sd'"),
    (["--method", "plain", "--scale", "2"], "takes no --scale"),
    (["--weak", "guidance=0"], "weak"),
    (["--scheduler", "eulr"], "Did you mean 'euler'"),
    (["--size", "17"], "multiples of 8"),
    (["--true-cfg", "2"], "takes no true CFG scale"),
]


def refused(words, message, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    error = captured.err.splitlines()[-1]
    assert error.startswith("w2sdiff: error: ")
    assert "Traceback" not in captured.err
    assert re.search(message, error), error


@pytest.mark.parametrize(
    ("words", "message"), BAD_COLLECT, ids=lambda w: w if isinstance(w, str) else " ".join(w)
)
def test_bad_options_of_collect(words, message, tmp_path, capsys):
    refused(collect(tmp_path / "data", *words), message, capsys)
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_flux_without_true_guidance_has_nothing_to_collect(tmp_path, capsys):
    fast = ("--model", str(model_folder("flux")), "--device", "cpu", "--steps", "2")
    fast += ("--guidance", "3", "--size", "16")
    refused(collect(tmp_path / "data", fast=fast), "true_cfg_scale", capsys)
    assert not (tmp_path / "data").exists()
    words = ("--true-cfg", "4", "--negative", "blurry")
    assert main(collect(tmp_path / "data", *words, fast=fast)) == 0


@pytest.mark.slow
def test_another_plan_in_the_same_folder(tmp_path, capsys):
    assert main(collect(tmp_path / "data", limit=2)) == 0
    refused(collect(tmp_path / "data", "--guidance", "4"), "collected otherwise", capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "steps is at least 1"),
        (["--steps", "many"], "--steps"),
        (["--lr", "-1"], "lr is a positive number"),
        (["--loss", "l1"], "relative, prediction, x0"),
        (["--precision", "int8"], "no, bf16 or fp16"),
        (["--validation", "2"], r"\(0, 1\)"),
        (["--width", "15"], "multiple of 8"),
        (["--batch", "100000"], "smaller --batch"),
        (["--accumulate", "3"], "does not go into 3"),
        (["--lr", "1e30", "--warmup", "0"], "diverged"),
    ],
    ids=lambda w: w if isinstance(w, str) else " ".join(w),
)
def test_bad_options_of_reflect(words, message, tmp_path, capsys):
    data = synthetic.write(tmp_path / "data", texts=synthetic.prompts(20))
    refused(reflect(data, tmp_path / "out", *words), message, capsys)


def test_bad_data(tmp_path, capsys):
    out = tmp_path / "out"
    refused(reflect(tmp_path / "nowhere", out), "no folder of collected data", capsys)
    unfinished = synthetic.write(tmp_path / "a", stop_after=1)
    refused(reflect(unfinished, out), "1 of 3 shards", capsys)
    whole = synthetic.write(tmp_path / "b", texts=synthetic.prompts(20))
    (whole / "0001.safetensors").unlink()
    refused(reflect(whole, out), "0001.safetensors is missing", capsys)
    (whole / "collect.json").write_text("{", "utf-8")
    refused(reflect(whole, out), "collect.json is damaged", capsys)
    assert not out.exists()


def test_bad_noise_models(tmp_path, capsys):
    text, table = tmp_path / "text.safetensors", tmp_path / "published.pth"
    text.write_text("not a noise model", "utf-8")
    table.write_text("a text", "utf-8")
    refused(["core2", "show", str(tmp_path / "none.safetensors")], "No noise model file", capsys)
    refused(["core2", "show", str(text)], "no safetensors file", capsys)
    refused(["core2", "convert", str(table), "-o", str(tmp_path / "g.safetensors")], ".", capsys)
    torch.save({"weights": torch.zeros(3)}, table)
    convert = ["core2", "convert", str(table), "-o", str(tmp_path / "g.safetensors")]
    refused(convert, "does not fit the noise model", capsys)
    refused(["core2", "convert", str(tmp_path / "none.pth"), "-o", "g.safetensors"], "none", capsys)
    good = noise_model_file(tmp_path / "good.safetensors")
    refused(["core2", "convert", str(good), "-o", str(tmp_path / "g.safetensors")], ".", capsys)
    assert not (tmp_path / "g.safetensors").exists()


def test_help_of_every_command(capsys):
    for words in (["core2", "--help"], *(["core2", name, "--help"] for name in NAMES)):
        assert main(words) == 0
        assert "w2sdiff core2" in capsys.readouterr().out


NAMES = ("collect", "reflect", "convert", "show")
