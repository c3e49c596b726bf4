"""The published `AttentionKVCompress`, seven cases, by the compressor alone and by a whole layer.

The tensors were produced by the authors' own code. They stand beside the repository, not in it;
where they are missing these tests are skipped.
"""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from w2sdiff.attention import KVCompression, KVCompressor, compress

CASES = (
    "conv_r2_square",
    "conv_r2_wide",
    "conv_r4",
    "conv_r2_qknorm",
    "ave_r2",
    "uniform_r2_wide",
    "uniform_every_r2",
)
KIND = {"ave": "nearest"}  # what the published code calls ave does not average


@pytest.fixture(scope="module")
def recorded(golden):
    folder = golden / "pixart_kv"
    if not folder.is_dir():
        pytest.skip(f"no golden tensors at {folder}")
    cases = json.loads((folder / "cases.json").read_text(encoding="utf-8"))["cases"]
    assert {case["name"] for case in cases} == set(CASES)
    return {case["name"]: case for case in cases}, load_file(folder / "tensors.safetensors")


def the_case(recorded, name):
    cases, tensors = recorded
    own = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
    weights = {k.removeprefix("weight."): v for k, v in own.items() if k.startswith("weight.")}
    return cases[name], own["input"], own["output"], weights


def compression_of(case):
    sampling = case["sampling"]
    return KVCompression(KIND.get(sampling, sampling), case["ratio"], layers="all")


def published(weights):
    return {key: w for key, w in weights.items() if key.startswith(("sr.", "norm."))}


@pytest.mark.parametrize("name", CASES)
def test_the_compressor_between_projections_and_attention(recorded, name):
    case, x, output, weights = the_case(recorded, name)
    compressor = KVCompressor(compression_of(case), case["dim"])
    compressor.load_state_dict(published(weights))
    q, k, v = F.linear(x, weights["qkv.weight"], weights["qkv.bias"]).chunk(3, -1)
    if case["qk_norm"]:  # the published LayerNorm is over all heads, before the compression
        shape = (case["dim"],)
        q = F.layer_norm(q, shape, weights["q_norm.weight"], weights["q_norm.bias"])
        k = F.layer_norm(k, shape, weights["k_norm.weight"], weights["k_norm.bias"])
    k, v = compressor(k, v, case["height"], case["width"])
    q, k, v = (t.unflatten(-1, (case["heads"], -1)).transpose(1, 2) for t in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    ours = F.linear(attended, weights["proj.weight"], weights["proj.bias"])
    torch.testing.assert_close(ours, output, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True], ids=["separate", "fused"])
@pytest.mark.parametrize("name", [name for name in CASES if name != "conv_r2_qknorm"])
def test_a_compressed_layer_of_a_stock_transformer(recorded, name, fused):
    """The same through `compress`: inside a PixArt whose first layer has these weights."""
    from diffusers import PixArtTransformer2DModel

    case, x, output, weights = the_case(recorded, name)
    model = PixArtTransformer2DModel(
        num_layers=1,
        num_attention_heads=case["heads"],
        attention_head_dim=case["dim"] // case["heads"],
        cross_attention_dim=case["dim"],
        caption_channels=8,
        sample_size=8,
    )
    layer = model.transformer_blocks[0].attn1
    parts = [("to_q", 0), ("to_k", 1), ("to_v", 2)]
    state = {
        f"{part}.{kind}": weights[f"qkv.{kind}"].chunk(3)[i]
        for part, i in parts
        for kind in ("weight", "bias")
    }
    state |= {f"to_out.0.{kind}": weights[f"proj.{kind}"] for kind in ("weight", "bias")}
    layer.load_state_dict(state)
    if fused:
        model.fuse_qkv_projections()
    compress(model, compression_of(case))
    layer.kv.load_state_dict(published(weights))
    seen = []
    layer.register_forward_hook(lambda *args: seen.append(args[-1]))
    layer.register_forward_pre_hook(lambda _, args: (x, *args[1:]))
    batch = x.shape[0]
    with torch.no_grad():
        model(
            torch.zeros(batch, 4, 2 * case["height"], 2 * case["width"]),
            encoder_hidden_states=torch.zeros(batch, 3, 8),
            timestep=torch.zeros(batch),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        )
    torch.testing.assert_close(seen[0], output, rtol=0, atol=1e-5)
