"""Every host against its own stock code: what compressed attention computes, and for whom.

The oracle is the stock transformer with its stock processors. Only `scaled_dot_product_attention`
is wrapped, and the outputs of `to_k` and `to_v`: a mean over a cell is as if every token of the
cell had the cell's key and value, stood at its centre, and counted 1 / (number of tokens); a
discarded token is as if it were hidden. Nothing of the code under test takes part, except the
cells' keys and values, which `test_kinds.py` checks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from tiny_hosts import HOSTS, arguments, attentions, build_host, flux_ids, run
from torch import Tensor

from w2sdiff import InputError
from w2sdiff.attention import KINDS, KVCompression, KVCompressor, compress, restore

GRIDS = ((4, 6), (5, 3), (3, 7))
TEXT = {"sd3": 5, "sd35": 5, "flux": 5, "cogvideox": 5}
FRAMES = {"wan": 3, "cogvideox": 3}
# Channels per rotary axis (frame or image, row, column). HunyuanDiT's table has no first axis and
# takes columns before rows.
AXES = {"flux": (4, 4, 8), "wan": (4, 4, 4), "cogvideox": (4, 6, 6), "hunyuan": (0, 8, 8)}


def table(name: str, positions: Tensor) -> Tensor:
    """Rotary angles [N, D] at positions [N, 3], whole or not."""
    angles = []
    order = (0, 2, 1) if name == "hunyuan" else (0, 1, 2)
    for axis, dim in zip(order, AXES[name], strict=True):
        frequencies = 10000.0 ** (-torch.arange(0, dim, 2).double() / max(dim, 1))
        angles.append((positions[:, axis, None] * frequencies).repeat_interleave(2, -1))
    return torch.cat(angles, -1)


def tokens(name: str, height: int, width: int) -> list[tuple[int, int, int]]:
    frames = range(FRAMES.get(name, 1))
    return [(f, r, c) for f in frames for r in range(height) for c in range(width)]


def grouped(kind: str, name: str, height: int, width: int, ratio: int):
    """For every token the tokens of its cell, by index; for a sampling kind, the kept ones only."""
    every = tokens(name, height, width)
    keys = [(f, r // ratio, c // ratio) for f, r, c in every]
    return [[j for j, other in enumerate(keys) if other == key] for key in keys]


@contextmanager
def oracle(model, name: str, kind: str, height: int, width: int, ratio: int) -> Iterator[None]:
    """The stock model computes what compression in all its layers should."""
    every = tokens(name, height, width)
    count, text = len(every), TEXT.get(name, 0)
    frames = FRAMES.get(name, 1)
    cells = grouped(kind, name, height, width, ratio)
    pooled = kind in ("average", "conv")
    handles = []
    if pooled:
        bias = torch.tensor([-math.log(len(cell)) for cell in cells])
        where = torch.tensor(every).double()
        centre = torch.stack([where[cell].mean(0) for cell in cells])
        turn = table(name, centre - where) if name in AXES else None
        index = torch.tensor([cell[0] for cell in cells])  # a cell's first token, per token
        number = {first: i for i, first in enumerate(sorted(set(index.tolist())))}
        expand = torch.tensor([number[first] for first in index.tolist()])

        def widen(layer):
            module = KVCompressor(KVCompression(kind, ratio), 2)
            if kind == "conv":
                module = KVCompressor(KVCompression(kind, ratio), layer.inner_dim)
                module.load_state_dict(weights[id(layer)])

            def hook(linear, args, out):
                image = out[:, out.shape[1] - count :]
                folded = image.reshape(-1, height * width, out.shape[-1])
                few = module.pool(folded, height, width, (ratio, ratio))
                few = few.reshape(image.shape[0], -1, out.shape[-1])
                assert few.shape[1] == len(number)
                return torch.cat([out[:, : out.shape[1] - count], few[:, expand]], 1)

            return hook

        weights = {
            id(a): random_conv(a.inner_dim, ratio) for b in attentions(model, name) for a in b
        }
        for block in attentions(model, name):
            for layer in block:
                handles += [
                    linear.register_forward_hook(widen(layer))
                    for linear in (layer.to_k, layer.to_v)
                ]
    else:
        module = KVCompressor(KVCompression(kind, ratio), 1)
        numbers = torch.arange(height * width).reshape(1, -1, 1).float()
        kept = module.pool(numbers, height, width, (ratio, ratio)).flatten().long().tolist()
        kept = [f * height * width + i for f in range(frames) for i in kept]
        bias = torch.full((count,), -math.inf)
        bias[kept] = 0
        turn = None

    def attention(q, k, v, attn_mask=None, **settings):
        if k.shape[2] not in (count, count + text) or q.shape[2] != k.shape[2]:
            return stock(q, k, v, attn_mask=attn_mask, **settings)  # attention to text
        start = 0 if name in ("sd3", "sd35") else k.shape[2] - count
        image = slice(start, start + count)
        mask = torch.zeros(k.shape[2])
        mask[image] = bias
        if turn is not None:
            k = k.clone()
            real, imaginary = k[:, :, image].double().reshape(*k.shape[:2], count, -1, 2).unbind(-1)
            cos, sin = turn.cos()[:, ::2], turn.sin()[:, ::2]
            turned = [real * cos - imaginary * sin, real * sin + imaginary * cos]
            k[:, :, image] = torch.stack(turned, -1).flatten(-2).to(k.dtype)
        mask = mask.expand(q.shape[2], -1).to(q.dtype)
        return stock(q, k, v, attn_mask=mask, **{**settings, "enable_gqa": False})

    def by_name(query=None, key=None, value=None, *args, **settings):
        if args:  # HunyuanDiT's pooling of the text, by torch's own multi-head attention
            return stock(query, key, value, *args, **settings)
        return attention(query, key, value, **settings)

    stock = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = by_name
    try:
        yield
    finally:
        F.scaled_dot_product_attention = stock
        for handle in handles:
            handle.remove()


def random_conv(channels: int, ratio: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(channels + ratio)
    draw = {
        key: torch.randn(value.shape, generator=generator)
        for key, value in KVCompressor(KVCompression("conv", ratio), channels).state_dict().items()
    }
    return {key: 1 + 0.2 * x if key == "norm.weight" else 0.4 * x for key, x in draw.items()}


@pytest.fixture(scope="module", params=HOSTS)
def host(request):
    return request.param, build_host(request.param)


@pytest.mark.parametrize("name", sorted(AXES))
def test_the_oracles_rotary_table_is_the_hosts_own(name):
    height, width = 4, 6
    angles = table(name, torch.tensor(tokens(name, height, width)).double())
    given = arguments(name, height, width)
    if name == "flux":
        own = build_host(name).pos_embed(given["img_ids"])
    elif name == "wan":
        own = [x[0, :, 0] for x in build_host(name).rope(given["hidden_states"])]
    else:
        own = given["image_rotary_emb"]
    for ours, theirs in zip((angles.cos(), angles.sin()), own, strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_compressed_host_computes_what_its_stock_code_would(host, kind, grid):
    name, model = host
    plain = run(model, name, *grid)
    with oracle(model, name, kind, *grid, ratio=2):
        expected = run(model, name, *grid)
    compress(model, KVCompression(kind, 2, "all"))
    if kind == "conv":
        for block in attentions(model, name):
            for layer in block:
                layer.kv.load_state_dict(random_conv(layer.inner_dim, 2))
    ours = run(model, name, *grid)
    restore(model)
    scale = expected.abs().max()
    assert (ours - plain).abs().max() > 1e-3 * scale, "it must make a difference"
    torch.testing.assert_close(ours / scale, expected / scale, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_ratio_one_and_no_layers_are_bit_identical(host, kind):
    name, model = host
    plain = run(model, name)
    every = dict.fromkeys(range(len(attentions(model, name))), 1)
    for compression in (
        KVCompression(kind, 1, "all"),
        KVCompression(kind, 2, []),
        KVCompression(kind, 2, "all", per_layer=every),
        KVCompression(kind, {0.9: 2}, "all"),  # the call is at 0.7
    ):
        compress(model, compression)
        assert torch.equal(run(model, name), plain), compression
        restore(model)


@pytest.mark.parametrize("kind", ["average", "conv"])
def test_items_of_a_batch_do_not_see_each_other(host, kind):
    """So guidance halves do not either: they are items of one batch."""
    name, model = host
    compress(model, KVCompression(kind, 2, "all"))
    together = run(model, name, batch=3)
    given = arguments(name, batch=3)
    for i in range(3):
        alone = {
            key: value[i : i + 1] if torch.is_tensor(value) and value.shape[0] == 3 else value
            for key, value in given.items()
            if key not in ("img_ids", "txt_ids")
        }
        alone |= {key: given[key] for key in ("img_ids", "txt_ids") if key in given}
        if given.get("added_cond_kwargs", {}).get("resolution") is not None:
            added = given["added_cond_kwargs"].items()
            alone["added_cond_kwargs"] = {key: value[i : i + 1] for key, value in added}
        with torch.no_grad():
            own = model(**alone, return_dict=False)[0]
        torch.testing.assert_close(own, together[i : i + 1], rtol=1e-4, atol=1e-5)
    restore(model)


def test_layers_are_the_ones_named(host):
    name, model = host
    layers = attentions(model, name)
    deep = KVCompression("average", 2, "deep").layers_of(len(layers))
    stock = [[layer.processor for layer in block] for block in layers]
    compress(model, KVCompression("average", 2, "deep"))
    for index, (block, before) in enumerate(zip(layers, stock, strict=True)):
        for layer, processor in zip(block, before, strict=True):
            assert (layer.processor is not processor) == (index in deep)
            assert hasattr(layer, "kv") == (index in deep)
    restore(model)


def test_restoring_leaves_nothing_behind(host):
    name, model = host
    before = run(model, name)

    def inventory():
        return {
            path: (type(module), sorted(module.__dict__), list(module._modules), id_of(module))
            for path, module in model.named_modules()
        }

    def id_of(module):
        return id(getattr(module, "processor", None))

    state, things = {k: id(v) for k, v in model.state_dict(keep_vars=True).items()}, inventory()
    compress(model, KVCompression("conv", 2, "all"))
    assert isinstance(model, things[""][0])
    assert type(model).__name__ == things[""][0].__name__
    assert inventory() != things
    run(model, name)
    restore(model)
    assert inventory() == things
    assert {k: id(v) for k, v in model.state_dict(keep_vars=True).items()} == state
    assert torch.equal(run(model, name), before)


def test_a_ratio_larger_than_the_grid_is_refused_at_the_call(host):
    name, model = host
    compress(model, KVCompression("average", (2, 5), "all"))
    assert run(model, name, 2, 5).isfinite().all()
    with pytest.raises(InputError, match=r"2 x 5 is larger than the grid of 4 x 4"):
        run(model, name, 4, 4)
    restore(model)


@pytest.mark.parametrize("kind", ["average", "conv"])
def test_gradients_reach_every_weight(host, kind):
    name, model = host
    compress(model, KVCompression(kind, 2, "all"))
    model.zero_grad()
    out = model(**arguments(name), return_dict=False)[0]
    out.square().mean().backward()
    for block in attentions(model, name):
        for layer in block:
            wanted = [layer.to_k, layer.to_v, *layer.kv.children()]
            grads = [p.grad for part in wanted for p in part.parameters()]
            assert all(grad is not None for grad in grads)
            assert any(grad.abs().max() > 0 for grad in grads)
    model.zero_grad(set_to_none=True)
    restore(model)


def test_kontexts_reference_image_is_a_grid_of_its_own():
    model = build_host("flux")
    given = arguments("flux", 4, 6)
    other = arguments("flux", 2, 3, seed=1)
    both = {
        **given,
        "hidden_states": torch.cat([given["hidden_states"], other["hidden_states"]], 1),
        "img_ids": torch.cat([flux_ids(4, 6), flux_ids(2, 3, image=1)]),
    }
    compress(model, KVCompression("average", 2, "all"))
    lengths = []
    stock = F.scaled_dot_product_attention

    def count(query, key, value, **settings):
        lengths.append(key.shape[2])
        return stock(query, key, value, **settings)

    F.scaled_dot_product_attention = count
    try:
        with torch.no_grad():
            model(**both)
    finally:
        F.scaled_dot_product_attention = stock
    assert lengths == [5 + 6 + 2] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grid", [(4, 6), (300, 2), (2, 300)])
def test_flux_reads_its_grid_from_the_position_ids(grid, dtype):
    from w2sdiff.attention.hosts.flux import Flux

    ids = flux_ids(*grid).to(dtype)  # from 256 on, bfloat16 rounds
    for given in (ids, ids[None]):
        assert Flux.planes(None, {"img_ids": given}) == ((1, *grid),)
    ids[0, 2] = 9
    if dtype == torch.float32:
        with pytest.raises(Exception, match="rows of a grid"):
            Flux.planes(None, {"img_ids": ids})
