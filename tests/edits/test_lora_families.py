"""`Lora` on the denoiser of every family: loaded as a user would, switched, and put back.

Where the pipeline has a loader that is it, elsewhere `load_lora`. What the role must be is written
out in plain torch: the matrices of the file added to the weights.
"""

from __future__ import annotations

import math

import pytest
import torch
from noise_models import close
from restored import compare, fingerprint
from safetensors.torch import save_file
from torch import nn

from w2sdiff import Lora, Plain, attach, load_lora
from w2sdiff.testing import VARIANTS

STEPS = 2
RANK = 2


def one_of_each():
    """The first row of every family and network."""
    found = {}
    for row in VARIANTS.values():
        if row.installed:
            found.setdefault((row.family, row.denoiser), row)
    return list(found.values())


def projections(network):
    """The linear layers of its attention."""
    names = ("to_q", "to_k", "to_v", "to_out.0", "to_qkv")
    return {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and name.endswith(names)
    }


def matrices(network, seed=0):
    """(down [r, in], up [out, r]) of every projection."""
    generator = torch.Generator().manual_seed(seed + 23)
    return {
        name: (
            torch.randn(RANK, layer.in_features, generator=generator)
            / math.sqrt(layer.in_features),
            torch.randn(layer.out_features, RANK, generator=generator) / (3 * math.sqrt(RANK)),
        )
        for name, layer in projections(network).items()
    }


def write(halves, path, prefix):
    state = {}
    for name, (down, up) in halves.items():
        state[f"{prefix}{name}.lora_A.weight"] = down
        state[f"{prefix}{name}.lora_B.weight"] = up
    save_file(state, path)
    return path


def load(pipe, row, path):
    if hasattr(pipe, "load_lora_weights"):
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="style")
    else:
        load_lora(pipe, path, "style")


def merged(row, halves, weight):
    """A pipeline with weight * up @ down in its weights."""
    pipe = row.build()
    layers = projections(row.network(pipe))
    with torch.no_grad():
        for name, (down, up) in halves.items():
            layers[name].weight += weight * up @ down
    return pipe


def drawn(row, pipe, edit):
    with attach(pipe, Plain(edit)):
        return row.latents(pipe, steps=STEPS)


@pytest.mark.parametrize("row", one_of_each(), ids=lambda row: row.name)
def test_every_family(row, tmp_path):
    pipe = row.build()
    halves = matrices(row.network(pipe))
    assert halves
    stock = row.latents(pipe, steps=STEPS)
    load(pipe, row, write(halves, tmp_path / "style.safetensors", f"{row.denoiser}."))
    as_called, before = row.latents(pipe, steps=STEPS), fingerprint(pipe)
    found = drawn(row, pipe, Lora("style", -1.5))
    expected = row.latents(merged(row, halves, -1.5), steps=STEPS)
    close(found, expected, scheduler=pipe.scheduler)
    assert not torch.allclose(found, as_called, rtol=1e-3)
    close(drawn(row, pipe, Lora("style", 0.0)), stock, scheduler=pipe.scheduler)
    compare(before, fingerprint(pipe))
    assert torch.equal(row.latents(pipe, steps=STEPS), as_called)


def test_both_networks_of_a_pair(tmp_path):
    """Wan 2.2 has two, and a file for each: the edit switches what has this name in either."""
    row = VARIANTS["wan-2.2"]
    pipe, by_hand = row.build(), row.build()
    for seed, name in enumerate(("transformer", "transformer_2")):
        halves = matrices(getattr(pipe, name), seed)
        write(halves, tmp_path / f"{name}.safetensors", "transformer.")
        pipe.load_lora_weights(
            str(tmp_path),
            weight_name=f"{name}.safetensors",
            adapter_name="style",
            load_into_transformer_2=name == "transformer_2",
        )
        layers = projections(getattr(by_hand, name))
        with torch.no_grad():
            for layer, (down, up) in halves.items():
                layers[layer].weight += -1.5 * up @ down
    found = drawn(row, pipe, Lora("style", -1.5))
    close(found, row.latents(by_hand, steps=STEPS), scheduler=pipe.scheduler)


WITHOUT_LOADER = [
    row for row in one_of_each() if row.name in ("pixart", "hunyuan-dit", "dit", "pixart-alpha")
]


@pytest.mark.parametrize("prefix", ["", "transformer.", "base_model.model."])
@pytest.mark.parametrize("row", WITHOUT_LOADER, ids=lambda row: row.name)
def test_names_of_layers(row, prefix, tmp_path):
    """As in the network, as diffusers writes them, as PEFT does."""
    pipe = row.build()
    assert not hasattr(pipe, "load_lora_weights")
    halves = matrices(row.network(pipe))
    load_lora(pipe, write(halves, tmp_path / "style.safetensors", prefix), "style", 0.7)
    expected = row.latents(merged(row, halves, 0.7), steps=STEPS)
    close(row.latents(pipe, steps=STEPS), expected, scheduler=pipe.scheduler)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_kohya_s_names(family, tmp_path):
    """Most LoRAs of UNets: the pipeline's loader converts them, alpha included."""
    row = VARIANTS[family]
    pipe = row.build()
    halves = {n: h for n, h in matrices(pipe.unet).items() if "mid_block" in n}
    state = {}
    for name, (down, up) in halves.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        state[f"{key}.alpha"] = torch.tensor(3.0)
    save_file(state, tmp_path / "style.safetensors")
    load(pipe, row, tmp_path / "style.safetensors")
    expected = row.latents(merged(row, halves, -1.5 * 3.0 / RANK), steps=STEPS)
    close(drawn(row, pipe, Lora("style", -1.5)), expected, scheduler=pipe.scheduler)
