"""Published checkpoints: what they compute is what comes out, and nothing is lost either way."""

from __future__ import annotations

import json
import os
from pathlib import Path

import plain_pixart
import pytest
import torch
from model_folders import model_folder
from published_files import positions, published
from safetensors.torch import load_file

from w2sdiff.attention import (
    KVCompression,
    adapter_compression,
    compress,
    find_adapter,
    from_published,
    load_adapter,
    write_published,
)
from w2sdiff.cli import main
from w2sdiff.errors import InputError, UnsupportedError

HEADS = 3
DEEP = {1: (2, 2)}


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def saved(tmp_path, state, name="model.pth"):
    torch.save(state, tmp_path / name)
    return tmp_path / name


def converted(tmp_path, state, **options):
    file = saved(tmp_path, {"state_dict": state})
    return from_published(file, tmp_path / "transformer", heads=HEADS, **options)


def loaded(folder, *, with_adapter=True):
    from diffusers import PixArtTransformer2DModel

    network = PixArtTransformer2DModel.from_pretrained(folder)
    adapter = find_adapter(network)
    if with_adapter and adapter is not None:
        compress(network, adapter_compression(adapter))
        load_adapter(network, adapter)
    return network


def call(height=8, width=12, caption=16):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 4, height, width, generator=generator)
    text = torch.randn(2, 5, caption, generator=generator)
    mask = torch.ones(2, 5)
    mask[1, 3:] = 0
    return x, torch.tensor([700, 20]), text, mask


def of_diffusers(network, x, t, text, mask):
    with torch.no_grad():
        return network(
            x,
            encoder_hidden_states=text,
            timestep=t,
            encoder_attention_mask=mask,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample


@pytest.mark.parametrize("ratios", [None, DEEP, {0: (2, 1), 1: (2, 1)}, {0: (2, 2), 1: (4, 2)}])
def test_the_converted_network_computes_what_the_published_one_does(tmp_path, ratios):
    state = published(ratios=ratios)
    found = converted(tmp_path, state)
    assert (found.layers, found.width) == (2, 24)
    x, t, text, mask = call(8, 8)
    theirs = plain_pixart.predict(state, x, t, text, mask, HEADS, positions(24, 4, 1))
    ours = of_diffusers(loaded(found.folder), x, t, text, mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_plain_one_is_the_uncompressed_diffusers_model(tmp_path):
    """The weights put into a stock transformer by hand, layer by layer."""
    from diffusers import PixArtTransformer2DModel

    state = published()
    stock = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        num_attention_heads=HEADS,
        attention_head_dim=8,
        cross_attention_dim=24,
        caption_channels=16,
    ).eval()
    with torch.no_grad():
        stock.pos_embed.proj.weight.copy_(state["x_embedder.proj.weight"])
        stock.pos_embed.proj.bias.copy_(state["x_embedder.proj.bias"])
        put(stock.adaln_single.emb.timestep_embedder.linear_1, state, "t_embedder.mlp.0")
        put(stock.adaln_single.emb.timestep_embedder.linear_2, state, "t_embedder.mlp.2")
        put(stock.adaln_single.linear, state, "t_block.1")
        put(stock.caption_projection.linear_1, state, "y_embedder.y_proj.fc1")
        put(stock.caption_projection.linear_2, state, "y_embedder.y_proj.fc2")
        put(stock.proj_out, state, "final_layer.linear")
        stock.scale_shift_table.copy_(state["final_layer.scale_shift_table"])
        for n, block in enumerate(stock.transformer_blocks):
            block.scale_shift_table.copy_(state[f"blocks.{n}.scale_shift_table"])
            first, second = block.attn1, block.attn2
            put((first.to_q, first.to_k, first.to_v), state, f"blocks.{n}.attn.qkv")
            put(first.to_out[0], state, f"blocks.{n}.attn.proj")
            put(second.to_q, state, f"blocks.{n}.cross_attn.q_linear")
            put((second.to_k, second.to_v), state, f"blocks.{n}.cross_attn.kv_linear")
            put(second.to_out[0], state, f"blocks.{n}.cross_attn.proj")
            put(block.ff.net[0].proj, state, f"blocks.{n}.mlp.fc1")
            put(block.ff.net[2], state, f"blocks.{n}.mlp.fc2")
    ours = loaded(converted(tmp_path, state).folder)
    assert torch.equal(of_diffusers(ours, *call()), of_diffusers(stock, *call()))


def put(layers, state, name):
    layers = layers if isinstance(layers, tuple) else (layers,)
    for kind in ("weight", "bias"):
        parts = state[f"{name}.{kind}"].chunk(len(layers))
        for layer, part in zip(layers, parts, strict=True):
            getattr(layer, kind).copy_(part)


@pytest.mark.parametrize("micro", [False, True], ids=["sigma", "alpha"])
@pytest.mark.parametrize("ratios", [None, DEEP, {0: (2, 2), 1: (4, 2)}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_there_and_back_loses_nothing(tmp_path, ratios, micro, dtype):
    state = {k: v.to(dtype) for k, v in published(ratios=ratios, micro=micro).items()}
    found = converted(tmp_path, state)
    back = write_published(found.folder, tmp_path / "back.pth")
    assert_same(torch.load(back, weights_only=True)["state_dict"], state)
    # And from there to the same folder, without a word about heads.
    again = from_published(back, tmp_path / "again")
    for file in found.folder.iterdir():
        other = again.folder / file.name
        if file.suffix == ".safetensors":
            assert_same(load_file(other), load_file(file))
        else:
            assert json.loads(other.read_text()) == json.loads(file.read_text())
    assert again.compression == found.compression


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_types_may_be_mixed(tmp_path):
    state = published(ratios=DEEP)
    state["blocks.1.attn.sr.weight"] = state["blocks.1.attn.sr.weight"].double()
    state["blocks.0.mlp.fc1.weight"] = state["blocks.0.mlp.fc1.weight"].half()
    back = write_published(converted(tmp_path, state).folder, tmp_path / "back.pth")
    assert_same(torch.load(back, weights_only=True)["state_dict"], state)


def test_a_folder_that_was_never_published_gets_its_positions(tmp_path):
    state = published(ratios=DEEP)
    found = converted(tmp_path, state)
    (found.folder / "published.safetensors").unlink()
    back = torch.load(write_published(found.folder, tmp_path / "back.pth"), weights_only=True)
    assert set(state) - set(back["state_dict"]) == {"y_embedder.y_embedding"}
    torch.testing.assert_close(back["state_dict"]["pos_embed"], state["pos_embed"])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 1e-5}},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    ],
)
def test_wrapped_weights_are_unwrapped(tmp_path, wrap):
    state = published(ratios=DEEP)
    file = saved(tmp_path, wrap(state))
    found = from_published(file, tmp_path / "out", heads=HEADS)
    back = write_published(found.folder, tmp_path / "back.pth")
    assert_same(torch.load(back, weights_only=True)["state_dict"], state)


def test_the_running_average_is_taken_when_asked_for(tmp_path):
    plain, average = published(seed=0), published(seed=1)
    file = saved(tmp_path, {"state_dict": plain, "state_dict_ema": average})
    for ema, expected in ((False, plain), (True, average)):
        found = from_published(file, tmp_path / "out", heads=HEADS, ema=ema)
        back = write_published(found.folder, tmp_path / "back.pth")
        assert_same(torch.load(back, weights_only=True)["state_dict"], expected)
    with pytest.raises(InputError, match=r"no running average \(state_dict_ema\)"):
        from_published(saved(tmp_path, plain), tmp_path / "out", heads=HEADS, ema=True)


@pytest.mark.parametrize("scale", [0.5, 1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_positions_are_read_off_the_weights(tmp_path, scale, dtype):
    state = {k: v.to(dtype) for k, v in published(side=8, scale=scale).items()}
    config = json.loads((converted(tmp_path, state).folder / "config.json").read_text())
    assert (config["sample_size"], config["interpolation_scale"]) == (16, scale)


def test_compressed_layers_are_told_by_their_kernels(tmp_path):
    found = converted(tmp_path, published(depth=4, ratios={2: (2, 2), 3: (2, 2)}))
    assert found.compression == KVCompression("conv", 2, [2, 3])
    network = loaded(found.folder, with_adapter=False)
    compress(network, KVCompression("conv", 2, "deep"))  # the same layers by another name
    load_adapter(network, find_adapter(network))
    kernel = network.transformer_blocks[3].attn1.kv.sr.weight
    assert torch.equal(
        kernel, load_file(find_adapter(network))["transformer_blocks.3.attn1.kv.sr.weight"]
    )


def test_a_stale_adapter_does_not_stay(tmp_path):
    converted(tmp_path, published(ratios=DEEP))
    found = converted(tmp_path, published())
    assert {file.name for file in found.folder.iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "published.safetensors",
    }


# ---- what is refused


def without(prefix):
    return lambda state: [state.pop(key) for key in list(state) if key.startswith(prefix)]


def resized(key, *shape):
    return lambda state: state.update({key: torch.zeros(*shape)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("blocks.0."), "blocks up to 1, but no block 0"),
        (without("blocks."), r"no PixArt checkpoint: it has no blocks\.0"),
        (without("final_layer.linear"), r"has no final_layer\.linear\.weight"),
        (without("blocks.1.mlp.fc2"), r"2 missing \(blocks\.1\.mlp\.fc2\.weight"),
        (without("blocks.1.attn.norm"), r"2 missing \(blocks\.1\.attn\.norm\.weight"),
        (without("blocks.1.attn.sr"), r"2 unexpected \(blocks\.1\.attn\.norm\.weight"),
        (resized("blocks.0.attn.rel_pos_h", 3, 8), r"1 unexpected \(blocks\.0\.attn\.rel_pos_h\)"),
        (
            resized("blocks.1.attn.qkv.weight", 96, 32),
            r"blocks\.1\.attn\.qkv\.weight \[96, 32\], expected \[72, 24\]",
        ),
        (resized("blocks.0.mlp.fc1.bias", 48), r"fc1\.bias \[48\], expected \[96\]"),
        (resized("blocks.1.attn.sr.weight", 24, 2, 2), r"sr\.weight is \[24, 2, 2\]"),
        (resized("blocks.1.attn.sr.bias", 7), r"blocks\.1\.attn\.sr\.bias \[7\]"),
        (resized("pos_embed", 1, 15, 24), r"pos_embed is \[1, 15, 24\], expected"),
        (resized("pos_embed", 1, 16, 24), "pos_embed is not the published one"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    state = published(ratios=DEEP)
    change(state)
    with pytest.raises(InputError, match=message):
        converted(tmp_path, state)
    assert not (tmp_path / "transformer").exists()


def test_normalised_queries_and_keys_are_refused_by_name(tmp_path):
    state = published()
    state["blocks.0.attn.q_norm.weight"] = torch.ones(24)
    with pytest.raises(UnsupportedError, match=r"blocks\.0\.attn\.q_norm\.weight"):
        converted(tmp_path, state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 3}, r"model\.pth has a depth of 3; .*like has 2"),
        ({"width": 48}, "has a width of 48; .*like has 24"),
        ({"caption": 8}, "has a caption width of 8; .*like has 16"),
        ({"patch": 1}, "has a patch size of 1; .*like has 2"),
    ],
)
def test_another_network_than_wanted_is_refused_by_name(tmp_path, changes, message):
    other = saved(tmp_path, published(), "other.pth")
    like = from_published(other, tmp_path / "like", heads=HEADS).folder
    converted(tmp_path, published(seed=3), like=like)
    with pytest.raises(InputError, match=message):
        converted(tmp_path, published(**changes), like=like)


# ---- the config of a folder


def folder_like(place, **config):
    """A diffusers folder of the same network with another config."""
    from diffusers import PixArtTransformer2DModel

    sizes = {"num_layers": 2, "num_attention_heads": HEADS, "attention_head_dim": 8}
    sizes |= {"cross_attention_dim": 24, "caption_channels": 16, "sample_size": 8}
    PixArtTransformer2DModel(**{**sizes, **config}).save_pretrained(place)
    return place


def config_of(folder):
    config = json.loads((folder / "config.json").read_text())
    return {key: value for key, value in config.items() if not key.startswith("_")}


def test_positions_at_any_interpolation_are_those_of_the_folder(tmp_path):
    state = published(side=8, scale=3, ratios=DEEP)
    with pytest.raises(InputError, match=r"not the published one at any.*\(like=\)"):
        converted(tmp_path, state)
    like = folder_like(tmp_path / "like", sample_size=16, interpolation_scale=3)
    file = saved(tmp_path, state)
    found = from_published(file, tmp_path / "out", like=like)  # heads are the folder's too
    assert config_of(found.folder) == config_of(like)
    assert found.compression == KVCompression("conv", 2, [1])
    x, t, text, mask = call(16, 16)
    theirs = plain_pixart.predict(state, x, t, text, mask, HEADS, positions(24, 8, 3))
    ours = of_diffusers(loaded(found.folder), x, t, text, mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    back = write_published(found.folder, tmp_path / "back.pth")
    assert_same(torch.load(back, weights_only=True)["state_dict"], state)


@pytest.mark.parametrize("scale", [None, 1.5])
def test_without_stored_positions_size_and_interpolation_are_those_of_the_folder(tmp_path, scale):
    state = published(micro=True)
    del state["pos_embed"]
    like = folder_like(
        tmp_path / "like",
        sample_size=12,
        interpolation_scale=scale,
        use_additional_conditions=True,
    )
    found = converted(tmp_path, state, like=like)
    assert config_of(found.folder) == config_of(like)
    table = loaded(found.folder).pos_embed.pos_embed
    torch.testing.assert_close(table, positions(24, 6, scale or 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("stored", "config", "options", "message"),
    [
        ({"side": 8}, {}, {}, r"pos_embed \[1, 64, 24\] is not that of .*like, \[16, 24\] at"),
        ({"scale": 2}, {}, {}, r"is not that of .*like.* at an interpolation of 1\."),
        ({"micro": True}, {}, {}, r"model\.pth has micro-conditioning .*like has none"),
        ({}, {"use_additional_conditions": True}, {}, r"like has micro-cond.*model\.pth has none"),
        ({}, {"out_channels": 4}, {}, "has a number of output channels of 8; .*like has 4"),
        ({}, {"in_channels": 3}, {}, "has a number of latent channels of 4; .*like has 3"),
        ({}, {"num_attention_heads": 4, "attention_head_dim": 6}, {}, "You said 3 heads; .* has 4"),
        ({}, {}, {"size": 128}, "You said 16 latents per side; .*like has 8"),
    ],
)
def test_what_does_not_fit_the_folder_is_named(tmp_path, stored, config, options, message):
    like = folder_like(tmp_path / "like", **{"out_channels": 8, **config})
    converted(tmp_path, published(), like=folder_like(tmp_path / "fits", out_channels=8), size=64)
    with pytest.raises(InputError, match=message):
        converted(tmp_path, published(**stored), like=like, **options)


def test_names_that_do_not_fit_the_folder_are_said(tmp_path):
    state = published()
    del state["blocks.1.mlp.fc2.bias"]
    like = folder_like(tmp_path / "like")
    with pytest.raises(
        InputError,
        match=r"does not fit the config of .*like: .*1 missing \(blocks\.1\.mlp\.fc2\.bias",
    ):
        converted(tmp_path, state, like=like)


def test_the_command_takes_a_pipeline_as_the_pattern(tmp_path, capsys):
    """Its VAE says how many pixels a latent is: two, where published ones have eight."""
    pipeline, file = model_folder("pixart"), tmp_path / "weights.pth"
    weights = torch.load(write_published(pipeline, file), weights_only=True)
    torch.save({"state_dict": weights["state_dict"]}, file)  # and nothing about heads
    words = ["kv", "convert", str(file), "--out", str(tmp_path / "out"), "--like", str(pipeline)]
    assert main([*words, "--size", "16"]) == 0
    assert config_of(tmp_path / "out") == config_of(pipeline / "transformer")
    ours, theirs = (
        load_file(folder / "diffusion_pytorch_model.safetensors")
        for folder in (tmp_path / "out", pipeline / "transformer")
    )
    assert_same(ours, theirs)
    assert main([*words, "--size", "64"]) == 2
    assert "You said 32 latents per side" in capsys.readouterr().err


def test_another_ratio_than_wanted_is_refused_by_name(tmp_path):
    state = published(ratios={1: (4, 2)})
    assert converted(tmp_path, state, ratio=(4, 2)).compression.ratio == (4, 2)
    with pytest.raises(
        InputError, match=r"blocks\.1\.attn\.sr\.weight compresses 4 x 2, exp.* 2 x"
    ):
        converted(tmp_path, state, ratio=2)
    with pytest.raises(InputError, match="no compressed blocks"):
        converted(tmp_path, published(), ratio=2)


def test_sizes_that_weights_do_not_tell(tmp_path):
    state = published()
    file = saved(tmp_path, state)
    with pytest.raises(InputError, match=r"24 wide, .* say how many heads"):
        from_published(file, tmp_path / "out")
    with pytest.raises(InputError, match="does not go into 5 heads"):
        from_published(file, tmp_path / "out", heads=5)
    with pytest.raises(InputError, match="trained at 64 pixels"):
        converted(tmp_path, state, size=128)
    del state["pos_embed"]
    config = json.loads((converted(tmp_path, state, size=512).folder / "config.json").read_text())
    assert (config["sample_size"], config["interpolation_scale"]) == (64, 1)


def test_code_is_not_run(tmp_path):
    mark = tmp_path / "mark"
    file = saved(tmp_path, {**published(), "trap": Trap(mark)})
    with pytest.raises(InputError, match=r"model\.pth contains code \(\w+\.mkdir\) and is not"):
        from_published(file, tmp_path / "out", heads=HEADS)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "no dictionary of tensors"),
        ({"a": torch.ones(2), "b": 3}, "other things than weights: b"),
        ({"a": torch.ones(2)}, "no PixArt checkpoint"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        from_published(saved(tmp_path, content), tmp_path / "out")
    with pytest.raises(InputError, match="there is no file"):
        from_published(tmp_path / "absent.pth", tmp_path / "out")
    cut = tmp_path / "cut.pth"
    cut.write_bytes(saved(tmp_path, published()).read_bytes()[:5000])
    with pytest.raises(InputError, match=r"cut\.pth is damaged"):
        from_published(cut, tmp_path / "out")


def test_what_cannot_go_back(tmp_path):
    from diffusers import SD3Transformer2DModel

    with pytest.raises(InputError, match="Expected the folder of a diffusers transformer"):
        write_published(tmp_path, tmp_path / "back.pth")
    SD3Transformer2DModel(
        num_layers=1, attention_head_dim=8, num_attention_heads=2, caption_projection_dim=16
    ).save_pretrained(tmp_path / "sd3")
    with pytest.raises(UnsupportedError, match="holds a SD3Transformer2DModel"):
        write_published(tmp_path / "sd3", tmp_path / "back.pth")


def test_the_command_there_and_back(tmp_path, capsys):
    state = published(ratios=DEEP)
    file, out, back = saved(tmp_path, state), tmp_path / "out", tmp_path / "back.pth"
    words = ["kv", "convert", str(file), "--out", str(out), "--heads", str(HEADS), "--json"]
    assert main([*words, "--ratio", "2"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["layers"], said["width"], said["compression"]["layers"]) == (2, 24, [1])
    assert main(["kv", "convert", str(out), "--back", "--out", str(back)]) == 0
    assert_same(torch.load(back, weights_only=True)["state_dict"], state)
    assert main([*words, "--ratio", "4"]) == 2
    assert "compresses 2 x 2, expected a ratio of 4 x 4" in capsys.readouterr().err
    assert main([*words, "--ratio", "two"]) == 2
    assert main(["kv", "convert", str(out), "--back", "--out", str(back), "--ema"]) == 2
