"""The recipe on tiny real networks: each change, going on after a stop, and what is left behind."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
from model_folders import model_folder
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from w2sdiff.attention import KVCompression, adapter_compression, compress, load_adapter
from w2sdiff.attention.train import main as door
from w2sdiff.cli import main
from w2sdiff.errors import InputError, UnsupportedError
from w2sdiff.generate import find_model
from w2sdiff.highres import Folder, Rendered, Setup, Tuning, raise_resolution, tune
from w2sdiff.highres.data import encode
from w2sdiff.highres.optimisers import OPTIMISERS, build_optimiser

CONV = KVCompression("conv", 2, "all")
SHORT = Tuning(
    steps=6, batch=4, lr=2e-3, warmup=2, ema=0.9, validation=0.3, validate_every=3, seed=1
)


@pytest.fixture(scope="module")
def model():
    return find_model(str(model_folder("pixart")))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for number in range(12):
        pixels = np.full((20, 24, 3), random.integers(0, 255, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number % 3}\n", encoding="utf-8")
    return folder


def validations(folder):
    rows = (folder / "curves.csv").read_text().splitlines()[1:]
    return [float(row.split(",")[3]) for row in rows if row.split(",")[3]]


def same_weights(one, other):
    names = [p.relative_to(one) for p in one.rglob("*.safetensors")]
    assert names == [p.relative_to(other) for p in other.rglob("*.safetensors")] != []
    for name in names:
        ours, theirs = load_file(one / name), load_file(other / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


class Stop:
    """Says yes after so many questions."""

    def __init__(self, after):
        self.left = after

    def __call__(self):
        self.left -= 1
        return self.left == 0


# ---- tuning


@pytest.mark.parametrize("optimiser", ["adamw", "adafactor"])
@pytest.mark.parametrize("only_adapter", [False, True], ids=["all weights", "adapter"])
def test_a_tuning_that_was_stopped_goes_on_bit_for_bit(
    tmp_path, model, pictures, only_adapter, optimiser
):
    setup, source = Setup(model, compression=CONV), Folder(pictures, 16)
    tuning = dataclasses.replace(SHORT, only_adapter=only_adapter, optimiser=optimiser)
    whole = tune(setup, source, tmp_path / "whole", tuning)
    assert tune(setup, source, tmp_path / "parts", tuning, stopping=Stop(2)) is None
    assert tune(setup, source, tmp_path / "parts", tuning, stopping=Stop(3)) is None
    parts = tune(setup, source, tmp_path / "parts", tuning)
    same_weights(tmp_path / "whole", tmp_path / "parts")
    assert parts.relative_to(tmp_path / "parts") == whole.relative_to(tmp_path / "whole")
    curves = [
        [row.split(",")[::2] for row in (tmp_path / name / "curves.csv").read_text().split()]
        for name in ("whole", "parts")
    ]
    assert [row[0] for row in curves[0]] == [row[0] for row in curves[1]]
    assert validations(tmp_path / "whole") == validations(tmp_path / "parts")
    # A longer one goes on from there; another one is refused.
    longer = dataclasses.replace(tuning, steps=8)
    assert tune(setup, source, tmp_path / "parts", longer) == parts
    other = dataclasses.replace(tuning, lr=1e-4)
    with pytest.raises(InputError, match="another lr"):
        tune(setup, source, tmp_path / "parts", other)
    plain = dataclasses.replace(tuning, only_adapter=False)
    with pytest.raises(InputError, match=r"another .*setup"):
        tune(Setup(model), source, tmp_path / "parts", plain)


def test_a_compressed_network_comes_nearer_to_what_it_was(tmp_path, model, pictures):
    """With the uncompressed network as the teacher, on pictures that were held back."""
    setup, source = Setup(model, compression=CONV), Folder(pictures, 16)
    tuning = dataclasses.replace(SHORT, steps=40, lr=5e-3, teacher=True, only_adapter=True)
    file = tune(setup, source, tmp_path, tuning)
    errors = validations(tmp_path)
    assert errors[-1] < 0.8 * errors[0]
    # And away from the training's own books: a call of the stock network with that adapter.
    plain = tiny.build("pixart").transformer
    call = {
        "hidden_states": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)),
        "encoder_hidden_states": torch.randn(2, 5, 32),
        "timestep": torch.tensor([400, 700]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    with torch.no_grad():
        target = plain(**call).sample[:, :4]
        compress(plain, CONV)
        before = (plain(**call).sample[:, :4] - target).square().mean()
        load_adapter(plain, file)
        after = (plain(**call).sample[:, :4] - target).square().mean()
    assert after < before


def test_the_loss_falls_and_what_is_left_is_a_stock_folder(tmp_path, model, pictures):
    from diffusers import DiffusionPipeline, PixArtTransformer2DModel

    setup, source = Setup(model, compression=CONV), Folder(pictures, 16)
    tuning = dataclasses.replace(SHORT, steps=40, keep=(10, 20), lr=5e-3)
    told = []
    place = tune(setup, source, tmp_path, tuning, pipeline=True, on_progress=told.append)
    errors = validations(tmp_path)
    assert errors[-1] < 0.8 * errors[0]
    assert told[-1].step == told[-1].steps == 40
    assert (tmp_path / "curves.png").is_file()
    assert place == tmp_path / "transformer"
    network = PixArtTransformer2DModel.from_pretrained(place)
    assert not [name for name in network.state_dict() if ".kv." in name]
    assert adapter_compression(place) == CONV
    for step in (10, 20):
        assert adapter_compression(tmp_path / "steps" / str(step) / "transformer") == CONV
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    ours, theirs = pipe.transformer.state_dict(), network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert find_model(str(tmp_path / "pipeline")).adapter is not None


def test_only_the_adapter_leaves_the_network_as_it_was(tmp_path, model, pictures):
    file = tune(
        Setup(model, compression=CONV),
        Folder(pictures, 16),
        tmp_path,
        dataclasses.replace(SHORT, only_adapter=True),
    )
    assert file == tmp_path / "kv_adapter.safetensors"
    assert not (tmp_path / "transformer").exists()
    start = tiny.build("pixart").transformer
    compress(start, CONV)
    begun = {n: p for n, p in start.named_parameters() if ".kv." in n}
    tuned = load_file(file)
    assert tuned.keys() == begun.keys()
    assert all(not torch.equal(tuned[name], begun[name]) for name in tuned)


def test_parts_of_a_batch_are_the_batch(tmp_path, model, pictures):
    setup, source = Setup(model), Folder(pictures, 16)
    one = tune(setup, source, tmp_path / "one", SHORT)
    two = tune(setup, source, tmp_path / "two", dataclasses.replace(SHORT, accumulate=2))
    check = dataclasses.replace(SHORT, checkpointing=True)
    three = tune(setup, source, tmp_path / "three", check)
    file = "diffusion_pytorch_model.safetensors"
    states = [load_file(place / file) for place in (one, two, three)]
    for name, weight in states[0].items():
        if name.endswith("to_k.bias"):  # adds the same to all scores: no gradient, only rounding
            continue
        # A change of Adam's is the learning rate whatever the gradient's size, so where that is
        # nearly nothing its sign is chance: a few steps of 2e-3 at most.
        assert (states[1][name] - weight).abs().mean() < 1e-4, name
        torch.testing.assert_close(states[2][name], weight, rtol=0, atol=1e-3)


def scaled(precision):
    """The accelerator of an fp16 training, on a CPU, where accelerate has none: torch has."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision="no", cpu=True)
    AcceleratorState._shared_state["_mixed_precision"] = precision
    accelerator.native_amp = True
    # A scale so large that gradients overflow, and steps are left out, until it has come down.
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)
    return accelerator


def test_the_scale_of_an_fp16_loss_goes_on_where_it_was(tmp_path, model, pictures, monkeypatch):
    # As a module: by its name it is the function that the package has of it.
    monkeypatch.setattr(sys.modules["w2sdiff.highres.tune"], "accelerator_of", scaled)
    setup, source = Setup(model), Folder(pictures, 16)
    tuning = dataclasses.replace(SHORT, steps=12, validate_every=4, precision="fp16")
    tune(setup, source, tmp_path / "whole", tuning)
    assert tune(setup, source, tmp_path / "parts", tuning, stopping=Stop(5)) is None
    state = torch.load(tmp_path / "parts" / "state.pt", weights_only=True)
    assert state["scaler"]["scale"] < 2.0**20
    tune(setup, source, tmp_path / "parts", tuning)
    same_weights(tmp_path / "whole", tmp_path / "parts")
    scales = [
        torch.load(tmp_path / name / "state.pt", weights_only=True)["scaler"]
        for name in ("whole", "parts")
    ]
    assert scales[0] == scales[1]


@pytest.mark.gpu
def test_an_fp16_tuning_that_was_stopped_goes_on(tmp_path, model, pictures):
    setup, source = Setup(model, compression=CONV), Folder(pictures, 16)
    tuning = dataclasses.replace(SHORT, precision="fp16")
    tune(setup, source, tmp_path / "whole", tuning)
    assert tune(setup, source, tmp_path / "parts", tuning, stopping=Stop(4)) is None
    tune(setup, source, tmp_path / "parts", tuning)
    whole, parts = (
        torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "parts")
    )
    assert whole["scaler"] == parts["scaler"]
    for name, weight in whole["weights"].items():  # kernels of CUDA may add in any order
        torch.testing.assert_close(parts["weights"][name], weight, rtol=0, atol=1e-3)


# ---- the changes


@pytest.mark.parametrize("micro", [False, True])
def test_interpolated_positions_are_those_a_stock_network_takes_by_itself(micro):
    from diffusers import PixArtTransformer2DModel

    small = PixArtTransformer2DModel(
        sample_size=128 if micro else 8,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=3,
        cross_attention_dim=24,
        caption_channels=16,
    )
    tiny.randomise(small, 0)
    old = small.config.sample_size
    large = raise_resolution(small, 2 * old)
    assert large.use_additional_conditions is micro
    assert large.pos_embed.interpolation_scale == 2 * small.pos_embed.interpolation_scale
    x = torch.randn(1, 4, 2 * old, 2 * old)
    torch.testing.assert_close(large.pos_embed(x), small.pos_embed(x), rtol=1e-5, atol=1e-5)
    kept = raise_resolution(small, 2 * old, positions="kept")
    side = old // 2
    grid = kept.pos_embed.pos_embed.reshape(2 * side, 2 * side, -1)[:side, :side]
    assert torch.equal(grid.reshape(1, side * side, -1), small.pos_embed.pos_embed)
    assert all(
        torch.equal(a, b) for a, b in zip(small.parameters(), kept.parameters(), strict=True)
    )


def test_steps_follow_one_another(tmp_path, model, pictures):
    """Another VAE, then a higher resolution, then compression: each from the last one's folder."""
    other = tmp_path / "vae"
    tiny.vae(5).save_pretrained(other)
    first = tune(Setup(model, vae=other), Folder(pictures, 16), tmp_path / "a", SHORT)
    second = tune(
        Setup(model, transformer=first, vae=other, size=32),
        Folder(pictures, 32),
        tmp_path / "b",
        SHORT,
    )
    config = json.loads((second / "config.json").read_text())
    assert (config["sample_size"], config["interpolation_scale"]) == (16, 2)
    third = tune(
        Setup(model, transformer=second, vae=other, compression=CONV),
        Folder(pictures, 32),
        tmp_path / "c",
        SHORT,
        pipeline=True,
    )
    assert json.loads((third / "config.json").read_text())["sample_size"] == 16
    words = ["generate", "a circle", "--model", str(tmp_path / "c" / "pipeline"), "--steps", "1"]
    words += ["--method", "plain", "--kv-compress", "model", "--out", str(tmp_path / "d")]
    assert main([*words, "--size", "32", "--device", "cpu"]) == 0
    weights = load_file(next((tmp_path / "c" / "pipeline" / "vae").glob("*.safetensors")))
    assert torch.equal(weights["decoder.conv_in.weight"], tiny.vae(5).decoder.conv_in.weight)


def test_a_trained_adapter_is_where_the_next_one_starts(tmp_path, model, pictures):
    tuning = dataclasses.replace(SHORT, only_adapter=True)
    source = Folder(pictures, 16)
    file = tune(Setup(model, compression=CONV), source, tmp_path / "a", tuning)
    setup = Setup(model, compression=CONV, adapter=file)
    tune(setup, source, tmp_path / "b", tuning)
    assert validations(tmp_path / "b")[0] == pytest.approx(validations(tmp_path / "a")[-1])


# ---- the data


def test_a_folder_is_encoded_once_as_the_pipeline_would(tmp_path, pictures):
    pipe, source = tiny.build("pixart"), Folder(pictures, 16)
    told = []
    data = encode(source, pipe, tmp_path, {}, on_progress=lambda *n: told.append(n))
    assert told[-1] == (12, 12)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    encode(Folder(pictures, 16), pipe, tmp_path, {})
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before
    batch = data.batch([4, 5], [False, True])
    states, mask, *_ = pipe.encode_prompt(
        [source.captions[4], ""], do_classifier_free_guidance=False, clean_caption=True
    )
    for row in range(2):
        length = int(mask[row].sum())
        assert int(batch.mask[row].sum()) == length
        torch.testing.assert_close(batch.states[row, :length], states[row, :length])
    pixels = torch.from_numpy(source.pixels(4, 5)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        mode = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    torch.testing.assert_close(batch.latents[:1], mode, rtol=1e-3, atol=1e-3)  # kept in half
    encode(Folder(pictures, 8), pipe, tmp_path, {})
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} != before


def test_captions_come_from_the_picture_the_text_or_the_table(tmp_path, pictures):
    shutil.copy(pictures / "0.png", tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png has no caption: expected a text file a\.txt"):
        Folder(tmp_path, 16)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "from the table"}\n')
    words = ["generate", "a red circle", "--model", str(model_folder("pixart")), "--size", "16"]
    words += ["--steps", "1", "--method", "plain", "--device", "cpu", "--out", str(tmp_path / "b")]
    assert main(words) == 0
    [drawn] = (tmp_path / "b").glob("*.png")
    shutil.copy(drawn, tmp_path / "b.png")
    shutil.copy(pictures / "0.png", tmp_path / "c.png")
    (tmp_path / "c.txt").write_text("from the text")
    source = Folder(tmp_path, 16)
    assert source.captions == ["from the table", "a red circle", "from the text"]
    assert source.pixels(0, 3).shape == (3, 16, 16, 3)
    (tmp_path / "metadata.jsonl").write_text("no table")
    with pytest.raises(InputError, match=r"metadata\.jsonl, line 1"):
        Folder(tmp_path, 16)
    for empty in (tmp_path / "nowhere", tmp_path / "transformer"):
        with pytest.raises(InputError):
            Folder(empty, 16)


def test_the_renderer_draws_the_same_scenes_at_any_size():
    small, large = Rendered(4, 64, seed=3), Rendered(4, 128, seed=3)
    assert small.captions == large.captions
    halved = large.pixels(0, 4).reshape(4, 64, 2, 64, 2, 3).mean((2, 4))
    difference = np.abs(halved - small.pixels(0, 4))
    assert difference.mean() < 1  # of 255: edges are one pixel wide in either
    assert large.to_json() != small.to_json()


# ---- what is refused


@pytest.mark.parametrize("name", [n for n, (m, *_) in OPTIMISERS.items() if "torch.o" not in m])
def test_optimisers_are_there_or_refused_by_name(name):
    module, _, package, _ = OPTIMISERS[name]
    if importlib.util.find_spec(module.split(".")[0]) is None:
        with pytest.raises(InputError, match=rf"'{name}' needs {package}.* pip install {package}"):
            Tuning(optimiser=name)
        return
    weight = torch.nn.Parameter(torch.ones(4, 4))
    optimiser = build_optimiser(name, [weight], lr=0.1, weight_decay=0.0)
    weight.square().sum().backward()
    optimiser.step()
    assert (weight < 1).all()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optimiser": "adamv"}, "Did you mean 'adamw'"),
        ({"steps": 0}, "steps is at least 1"),
        ({"lr": float("nan")}, "lr is a positive number"),
        ({"ema": 1.0}, "ema lies in"),
        ({"batch": 6, "accumulate": 4}, "does not go into 4 parts"),
        ({"precision": "fp8"}, "precision is"),
    ],
)
def test_bad_values_are_said(changes, says):
    with pytest.raises(InputError, match=says):
        dataclasses.replace(SHORT, **changes)


def test_what_cannot_be_tuned(tmp_path, model, pictures):
    source = Folder(pictures, 16)
    adapter = dataclasses.replace(SHORT, only_adapter=True)
    with pytest.raises(InputError, match="nothing is compressed"):
        tune(Setup(model), source, tmp_path, adapter)
    average = Setup(model, compression=KVCompression("average", 2))
    with pytest.raises(InputError, match="kind average have nothing to train"):
        tune(average, source, tmp_path, adapter)
    with pytest.raises(UnsupportedError, match="a StableDiffusionPipeline"):
        Setup(find_model(str(model_folder("sd")))).build()
    with pytest.raises(InputError, match="expected a multiple of 4"):
        Setup(model, size=18).build()
    with pytest.raises(InputError, match="folder of a vae or of a pipeline"):
        Setup(model, vae=tmp_path).build()
    tiny.vae(0, latent_channels=8).save_pretrained(tmp_path / "vae")
    with pytest.raises(UnsupportedError, match="has 8 latent channels, the transformer takes 4"):
        Setup(model, vae=tmp_path / "vae").build()
    with pytest.raises(InputError, match="say which"):
        Setup(model, adapter=tmp_path)
    with pytest.raises(InputError, match="diverged at step"):
        tune(Setup(model), source, tmp_path / "far", dataclasses.replace(SHORT, lr=1e30, warmup=0))


# ---- the command


def words(out, *more, model=None):
    model = model or model_folder("pixart")
    fast = ["--steps", "3", "--batch", "4", "--validate-every", "2", "--validation", "0.3"]
    return ["kv", "tune", "--model", str(model), "--out", str(out), *fast, *more]


def test_the_command_tunes_goes_on_and_tells(tmp_path, pictures, capsys):
    command = words(tmp_path, "--data", str(pictures), "--kv-compress", "2:conv:all", "--json")
    assert main([*command, "--keep", "1"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["step"] for line in told if line["event"] == "validation"] == [0, 2, 3]
    assert told[-1] == {"event": "tuned", "path": str(tmp_path / "transformer")}
    assert (tmp_path / "steps" / "1" / "transformer" / "kv_adapter.safetensors").is_file()
    # The other door; nothing is left to do.
    assert door([*command[2:], "--keep", "1"]) == 0
    assert '"validation"' not in capsys.readouterr().out
    assert main([*command, "--lr", "1"]) == 2
    assert "another lr" in capsys.readouterr().err


def test_the_command_draws_its_own_pictures(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\na green cross\n")
    command = words(tmp_path / "out", "--draw", str(prompts), "--draw-steps", "1")
    assert main([*command, "--kv-compress", "2", "--only-adapter"]) == 0
    found = adapter_compression(tmp_path / "out" / "kv_adapter.safetensors")
    assert found == KVCompression("conv", 2, "deep")


def test_the_adapter_called_model_is_the_one_in_the_networks_folder(tmp_path, pictures):
    """As in `generate`; here it is the place that training begins at."""
    model, data = model_folder("pixart"), ("--data", str(pictures), "--only-adapter")
    assert main(words(tmp_path / "a", *data, "--kv-compress", "2:conv:all", model=model)) == 0
    trained = tmp_path / "a" / "kv_adapter.safetensors"
    own = shutil.copytree(model, tmp_path / "model") / "transformer" / trained.name
    shutil.copy(trained, own)
    made = {}
    for name, place, whole in (
        ("b", "model", own.parents[1]),
        ("c", "2@model", own.parents[1]),
        ("d", f"@{trained}", model),
    ):
        out = tmp_path / name
        assert main(words(out, *data, "--kv-compress", place, model=whole)) == 0
        assert adapter_compression(out / trained.name) == KVCompression("conv", 2, "all")
        made[name] = load_file(out / trained.name)
    before = load_file(trained)
    for key, tensor in made["d"].items():
        assert torch.equal(made["b"][key], tensor)
        assert torch.equal(made["c"][key], tensor)
    assert any(not torch.equal(before[key], tensor) for key, tensor in made["d"].items())
    other = shutil.copytree(own.parent, tmp_path / "transformer")
    command = [*data, "--transformer", str(other), "--kv-compress", "model"]
    assert main(words(tmp_path / "e", *command, model=model)) == 0


@pytest.mark.parametrize("size", [None, 32], ids=["its own size", "a larger one"])
def test_the_pictures_are_drawn_at_the_size_that_is_trained(tmp_path, size):
    """And those of another size, left from a command before, are not taken."""
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a red circle\na blue square\na green cross\n")
    command = words(out, "--draw", str(prompts), "--draw-steps", "1")
    (out / "pictures").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(out / "pictures" / "another.png")
    (out / "pictures" / "another.txt").write_text("another")
    assert main([*command, *(["--size", str(size)] if size else [])]) == 0
    drawn = [Image.open(file).size for file in (out / "pictures").glob("a-*.png")]
    assert drawn == [(size or 16, size or 16)] * 3
    with safe_open(out / "data" / "latents.safetensors", "pt") as data:
        assert data.get_tensor("latents").shape[0] == 3


def test_the_command_takes_the_renderer(tmp_path):
    command = words(
        tmp_path, "--render", "6", "--size", "128", "--kv-compress", "2", model="shapes-dit"
    )
    assert main([*command, "--batch", "2", "--only-adapter", "--teacher"]) == 0
    assert (tmp_path / "kv_adapter.safetensors").stat().st_size < 2 * 2**20


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with CUDA has it")
def test_fp16_is_refused_without_cuda_before_pictures_are_drawn(tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\na green cross\n")
    command = words(tmp_path / "out", "--draw", str(prompts), "--draw-steps", "1")
    assert main([*command, "--precision", "fp16"]) == 2
    [said] = capsys.readouterr().err.splitlines()
    assert "--precision fp16 cannot be had on this machine" in said
    assert "Take --precision no, or bf16." in said
    assert not (tmp_path / "out").exists()
    assert main([*command, "--precision", "no"]) == 0  # nothing of the refused one is left over


@pytest.mark.slow
@pytest.mark.parametrize("only_adapter", [False, True], ids=["all weights", "adapter"])
def test_two_processes_tune_what_one_does(tmp_path, pictures, only_adapter):
    more = ["--data", str(pictures), "--kv-compress", "2:conv:all", "--lr", "2e-3", "--json"]
    more += ["--only-adapter"] if only_adapter else []
    assert main(words(tmp_path / "one", *more)) == 0
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--num_processes", "2", "--cpu", "--num_machines", "1", "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "-m", "w2sdiff", *words(tmp_path / "two", *more)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('"tuned"') == 1, "one of the two speaks"
    assert validations(tmp_path / "two") == pytest.approx(validations(tmp_path / "one"), abs=1e-5)
    one, two = (
        {path.name: load_file(path) for path in (tmp_path / name).glob("**/[dk]*.safetensors")}
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    assert len(one) == (1 if only_adapter else 2)
    for name, tensors in one.items():
        for key, tensor in tensors.items():
            if not key.endswith("to_k.bias"):  # no gradient, only rounding
                assert (two[name][key] - tensor).abs().mean() < 1e-5, key


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ((), "one of --data FOLDER, --draw PROMPTS and --render NUMBER"),
        (("--render", "3", "--data", "x"), "one of --data"),
        (("--render", "3", "--optimiser", "lion"), "Unknown optimiser 'lion'"),
        (("--render", "3", "--positions", "near"), "interpolated or kept"),
        (("--render", "3", "--only-adapter"), "nothing is compressed"),
        (("--render", "3", "--kv-compress", "much"), "whole numbers"),
        (("--render", "3", "--kv-compress", "0"), "1 or more"),
        (("--render", "3", "--kv-compress", "-2"), "1 or more"),
        (("--render", "3", "--kv-compress", "2:conv:1-2"), "there is no layer 2"),
        (("--render", "3", "--size", "16", "--kv-compress", "64"), "larger than the grid"),
        (("--render", "3", "--kv-compress", "2@none"), "No adapter"),
        (("--render", "3", "--kv-compress", "2@"), "an adapter's file after the @, got '2@'"),
        (("--render", "3", "--kv-compress", "2::all"), "where one is empty"),
        (
            ("--render", "3", "--kv-compress", "2@model"),
            "comes with no adapter",
        ),
        (("--render", "3", "--kv-compress", "model"), "comes with no adapter"),
        (("--render", "0"), "at least one picture"),
        (("--render", "3", "--size", "18"), "multiple of 4"),
        (("--data", "none"), "none at none"),
    ],
)
def test_bad_words_are_one_line(tmp_path, capsys, more, says):
    assert main(words(tmp_path, *more)) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
