"""A whole run with compressed keys and values, and large pictures: `--kv-compress`, tiles."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tiny
import torch
from model_folders import model_folder
from PIL import Image

from w2sdiff import W2SD, AutoGuidance, Checkpoint, CompressedKV, Plain, attach, shapes
from w2sdiff.attention import KVCompression, compress, save_adapter
from w2sdiff.cli import main
from w2sdiff.errors import InputError, UnsupportedError
from w2sdiff.generate import Recipe, Settings, Shot, Studio, find_model, parse_kv
from w2sdiff.imaging import read_metadata

FAST = ("--size", "16", "--steps", "2", "--guidance", "3", "--device", "cpu", "--method", "plain")
SETTINGS = Settings(steps=2, guidance=3.0, size=(16, 16), device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def with_adapter(tmp_path):
    """A model in whose transformer's folder trained compressors lie."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder("pixart", weak=True), folder)
    transformer = tiny.build("pixart").transformer
    compress(transformer, KVCompression("conv", 2, "all"))
    for block in transformer.transformer_blocks:
        block.attn1.kv.norm.weight.data.mul_(0.3)
    save_adapter(transformer, folder / "transformer")
    return folder


def command(out, *words, model=None):
    model = model or model_folder("pixart", weak=True)
    return ["generate", "a red circle", "--model", str(model), "--out", str(out), *FAST, *words]


def pictures(folder):
    return sorted(folder.glob("*.png"))


def drawn(settings, method, model=None):
    model = find_model(str(model or model_folder("pixart", weak=True)))
    with Studio(model, settings) as studio:
        [one] = studio.draw(method, [Shot("a red circle", 0)])
    return np.asarray(one.image)


# ---- every role


@pytest.mark.parametrize("text", ["2", "2x1", "2:average:deep", "4:uniform"])
def test_plain_is_the_stock_pipeline_with_a_compressed_transformer(text, tmp_path):
    from diffusers import DiffusionPipeline

    model = find_model(str(model_folder("pixart", weak=True)))
    assert main(command(tmp_path, "--kv-compress", text)) == 0
    pipe = DiffusionPipeline.from_pretrained(model.folder)
    pipe.set_progress_bar_config(disable=True)
    compress(pipe.transformer, parse_kv(text, model).compression)
    stock = pipe(
        ["a red circle"],
        width=16,
        height=16,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(0)],
        use_resolution_binning=False,
    ).images[0]
    [path] = pictures(tmp_path)
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(stock))


def test_every_role_is_compressed_also_those_with_another_network():
    kv = CompressedKV(ratio=2)
    weak = Checkpoint(model_folder("pixart", weak=True) / "transformer_weak")
    whole = dataclasses.replace(SETTINGS, kv_compress=kv)
    for plain, worn in (
        (W2SD(weak=weak), W2SD(weak=weak | kv, strong=kv, base=kv)),
        (AutoGuidance(weak=weak), AutoGuidance(weak=weak | kv, strong=kv)),
        (Plain(), Plain(base=kv)),
    ):
        ours = drawn(whole, plain)
        assert np.array_equal(ours, drawn(SETTINGS, worn))
        assert not np.array_equal(ours, drawn(SETTINGS, plain))


def test_a_role_s_own_compression_stands():
    kv, stronger = CompressedKV(ratio=2), CompressedKV(ratio=4)
    ours = drawn(dataclasses.replace(SETTINGS, kv_compress=kv), W2SD(weak=stronger))
    assert np.array_equal(ours, drawn(SETTINGS, W2SD(weak=stronger, strong=kv, base=kv)))


def test_the_cost_is_that_of_the_method_and_nothing_stays_behind():
    pipe = tiny.build("pixart")
    before = tiny.latents(pipe, "pixart")
    with attach(pipe, W2SD(weak=CompressedKV(ratio=4)), everywhere=CompressedKV()) as run:
        tiny.latents(pipe, "pixart")
        assert run.stats.notes == []
        assert run.stats.evaluations == W2SD().cost(4, 5.0)
    assert torch.equal(tiny.latents(pipe, "pixart"), before)


# ---- keys, metadata, rerun


def test_settings_without_it_say_and_decide_what_they_did_before():
    data = SETTINGS.to_json()
    assert not {"kv_compress", "vae_tiling"} & {*data, *SETTINGS.decides()}
    assert Settings.from_json(data) == SETTINGS


def test_settings_with_it_come_and_go(with_adapter):
    kv = parse_kv("model", find_model(str(with_adapter)))
    settings = dataclasses.replace(SETTINGS, kv_compress=kv, vae_tiling=False)
    again = Settings.from_json(json.loads(json.dumps(settings.to_json())))
    assert again.decides() == settings.decides()
    assert again.kv_compress.compression == KVCompression("conv", 2, "all")
    assert str(with_adapter) not in json.dumps(settings.decides())
    assert settings.decides()["kv_compress"]["sha256"] == again.kv_compress.sha256


def test_each_compression_is_another_picture_and_can_be_made_again(tmp_path, capsys):
    for words in ((), ("--kv-compress", "2"), ("--kv-compress", "2:average:deep")):
        assert main(command(tmp_path, *words)) == 0
    made = pictures(tmp_path)
    assert len({Image.open(path).tobytes() for path in made}) == 3
    for path in made:
        again = tmp_path / "again" / path.name
        assert main(["rerun", str(path), "--out", str(again)]) == 0
        assert again.read_bytes() == path.read_bytes()


def test_an_adapter_counts_by_its_content(tmp_path, with_adapter):
    out = tmp_path / "out"
    assert main(command(out, "--kv-compress", "model", model=with_adapter)) == 0
    [path] = pictures(out)
    said = read_metadata(path)
    assert (
        said["settings"]["kv_compress"]["adapter"] == "{model}/transformer/kv_adapter.safetensors"
    )
    moved = tmp_path / "moved.safetensors"
    shutil.copy(with_adapter / "transformer" / "kv_adapter.safetensors", moved)
    for text in (f"@{moved}", f"2@{moved}", f"2:conv:all@{moved}", "2@model"):
        assert main(command(out, "--kv-compress", text, model=with_adapter)) == 0
    assert pictures(out) == [path]
    assert main(["rerun", str(path), "--out", str(tmp_path / "again.png")]) == 0
    assert (tmp_path / "again.png").read_bytes() == path.read_bytes()
    # Another content is another picture, and the old one cannot be made again with it.
    transformer = tiny.build("pixart").transformer
    compress(transformer, KVCompression("conv", 2, "all"))
    save_adapter(transformer, with_adapter / "transformer")
    assert main(command(out, "--kv-compress", "model", model=with_adapter)) == 0
    assert len(pictures(out)) == 2
    assert main(["rerun", str(path), "--out", str(tmp_path / "again.png")]) == 2


def test_an_adapter_beside_the_weights_is_not_part_of_the_model(with_adapter):
    other = find_model(str(model_folder("pixart", weak=True)))
    assert find_model(str(with_adapter)).sha256 == other.sha256


def test_the_edit_finds_the_model_s_own_adapter(with_adapter):
    file = with_adapter / "transformer" / "kv_adapter.safetensors"
    own = CompressedKV("conv", 2, "all", adapter="model")
    named = CompressedKV("conv", 2, "all", adapter=file)
    ours = drawn(SETTINGS, Plain(base=own), with_adapter)
    assert np.array_equal(ours, drawn(SETTINGS, Plain(base=named), with_adapter))
    model = find_model(str(with_adapter))
    recipes = [Recipe(model, SETTINGS, Plain(base=edit)) for edit in (own, named)]
    assert recipes[0].decides == recipes[1].decides
    with pytest.raises(InputError, match="no JSON form"):
        own.to_json()
    with pytest.raises(InputError, match=r"No kv_adapter\.safetensors travels"):
        drawn(SETTINGS, Plain(base=own))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0", "1 or more"),
        ("-2", "1 or more"),
        ("2x0", "1 or more"),
        ("two", "whole numbers"),
        ("", "whole numbers"),
        ("2:average:1-2", "there is no layer 2"),
        ("2:konv:deep", "'conv'"),
        ("2:conv:deep:x", "means nothing"),
        ("2@", "expected an adapter's file after the @"),
        ("2@nowhere.safetensors", "No adapter of compressed keys and values"),
        ("model", "comes with no adapter"),
        ("64", "larger than the grid"),
    ],
)
def test_bad_words_are_one_line(tmp_path, capsys, text, says):
    assert main(command(tmp_path, "--kv-compress", text)) in (1, 2)
    error = capsys.readouterr().err
    assert says in error.splitlines()[-1]


def test_an_adapter_of_another_network_is_refused_by_name(tmp_path, capsys):
    other = compress(tiny.build("sd3").transformer, KVCompression("conv", 2, "all"))
    file = save_adapter(other, tmp_path / "other.safetensors")
    assert main(command(tmp_path / "out", "--kv-compress", f"2@{file}")) in (1, 2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert "made for another network: its host is SD3Transformer2DModel" in error
    assert not pictures(tmp_path / "out")


def test_a_unet_is_refused_by_name(tmp_path, capsys):
    words = command(tmp_path, "--kv-compress", "2", model=model_folder("sd"))
    assert main(words) == 2
    assert "UNet2DConditionModel" in capsys.readouterr().err


# ---- large pictures


def large_pipeline(folder):
    """A pipeline that knows PixArt's sizes, as the published ones do: 1,024 pixels, factor 8."""
    from diffusers import AutoencoderKL, PixArtTransformer2DModel

    pipe = tiny.build("pixart")
    small = PixArtTransformer2DModel(
        sample_size=128,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        cross_attention_dim=16,
        caption_channels=32,
        use_additional_conditions=False,
    )
    codec = AutoencoderKL(
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
    )
    parts = {**pipe.components, "transformer": tiny.randomise(small, 0)}
    pipe = type(pipe)(**{**parts, "vae": tiny.randomise(codec, 0)})
    pipe.save_pretrained(folder)
    return pipe


def test_the_denoiser_sees_the_tokens_of_the_size_asked_for(tmp_path, capsys):
    """The pipeline alone would draw the nearest size it knows and resize the picture."""
    pipe = large_pipeline(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    seen = []
    pipe.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-1]))
    pipe("a", width=512, height=512, num_inference_steps=1, output_type="latent")
    assert seen == [128]  # latents of 1,024 pixels
    words = command(tmp_path / "out", model=tmp_path / "model")
    words += ["--size", "512", "--steps", "1", "--kv-compress", "2", "--verbose", "--json"]
    assert main(words) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    stages = {event["name"]: event for event in told if event["event"] == "stage"}
    assert list(stages) == ["loading", "prompt", "denoising", "decoding"]
    assert stages["denoising"]["tokens"] == (512 // 16) ** 2
    assert all(s["most_mb"] is None or s["most_mb"] >= s["kept_mb"] > 0 for s in stages.values())
    [path] = pictures(tmp_path / "out")
    assert Image.open(path).size == (512, 512)


def test_people_are_told_too(tmp_path, capsys):
    assert main(command(tmp_path, "--verbose")) == 0
    said = capsys.readouterr().err
    assert "denoising: 16 image tokens, " in said
    assert main(command(tmp_path / "b")) == 0
    assert "image tokens" not in capsys.readouterr().err


def test_large_pictures_are_decoded_in_tiles_unless_told_otherwise():
    def tiled(side, given=None):
        return dataclasses.replace(SETTINGS, size=(side, 64), vae_tiling=given).tiled

    assert [tiled(side) for side in (64, 2040, 2048, 4096)] == [False, False, True, True]
    assert tiled(64, True)
    assert not tiled(4096, False)
    assert dataclasses.replace(SETTINGS, size=None).tiled is False
    large = dataclasses.replace(SETTINGS, size=(4096, 64))
    assert large.decides()["vae_tiling"] is True
    assert "vae_tiling" not in dataclasses.replace(large, vae_tiling=False).decides()


def test_tiles_leave_no_seams():
    """Differences between neighbours where tiles meet are those of the picture as a whole."""
    from diffusers import AutoencoderKL

    codec = AutoencoderKL.from_pretrained(shapes.checkpoint_path("shapes-dit") / "vae")
    _, images = shapes.batch(5, 16)
    rows = [np.concatenate(images[i : i + 4], axis=1) for i in range(0, 16, 4)]
    pixels = torch.from_numpy(np.concatenate(rows)).permute(2, 0, 1)[None].float() / 127.5 - 1
    assert pixels.shape == (1, 3, 256, 256)
    with torch.no_grad():
        latents = codec.encode(pixels).latent_dist.mode()
        whole = codec.decode(latents).sample
        codec.enable_tiling()
        tiled = codec.decode(latents).sample
    error = (tiled - whole).abs().mean((0, 1))
    step = (tiled - whole).diff(dim=-1).abs().mean((0, 1, 2))  # [255], between columns
    # Tiles of 64 pixels overlap by 16, so the n-th ends at 48 n.
    seams = [48 * n - 1 for n in range(1, 6)]
    assert error.max() > 0
    assert step[seams].mean() < 1.5 * step.mean()
    # A picture of bare tiles, side by side, has them.
    with torch.no_grad():
        halves = [codec.decode(half).sample for half in latents.chunk(32 // 8, dim=-1)]
    bare = (torch.cat(halves, dim=-1) - whole).diff(dim=-1).abs().mean((0, 1, 2))
    assert bare[[63, 127, 191]].mean() > 3 * bare.mean()


def test_what_cannot_tile_says_so(monkeypatch):
    from diffusers import AutoencoderKL

    def refuse(self):
        raise NotImplementedError

    monkeypatch.setattr(AutoencoderKL, "enable_tiling", refuse)
    tiling = dataclasses.replace(SETTINGS, vae_tiling=True)
    with pytest.raises(UnsupportedError, match="AutoencoderKL cannot decode in tiles"):
        drawn(tiling, Plain())


def test_tiling_is_switched_on_and_small_pictures_are_none_the_worse():
    tiling = dataclasses.replace(SETTINGS, vae_tiling=True)
    model = find_model(str(model_folder("pixart", weak=True)))
    with Studio(model, tiling) as studio:
        assert studio.pipe.vae.use_tiling
        studio.use(model, SETTINGS)
        assert not studio.pipe.vae.use_tiling
    assert np.array_equal(drawn(tiling, Plain()), drawn(SETTINGS, Plain()))
