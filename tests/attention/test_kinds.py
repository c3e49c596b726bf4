"""The five kinds on [B, N, C] against plain torch: values, gradients, edges, positions."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2sdiff import InputError
from w2sdiff.attention import KINDS, KVCompression, KVCompressor, Schedule

GRIDS = ((4, 6), (6, 4), (5, 7), (3, 3), (1, 8), (8, 1))
RATIOS = (1, 2, 3, (1, 2), (3, 2))


def fits(ratio, height, width):
    pair = ratio if isinstance(ratio, tuple) else (ratio, ratio)
    return pair[0] <= height and pair[1] <= width


CASES = [(grid, ratio) for grid in GRIDS for ratio in RATIOS if fits(ratio, *grid)]


def compressor(kind: str, ratio: object, channels: int = 8) -> KVCompressor:
    made = KVCompressor(KVCompression(kind, ratio), channels).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return made


def cells(height: int, width: int, ratio: tuple[int, int]) -> list[list[tuple[int, int]]]:
    """The tokens (row, column) of every cell, written out."""
    return [
        [
            (row, column)
            for row in range(top, min(top + ratio[0], height))
            for column in range(left, min(left + ratio[1], width))
        ]
        for top in range(0, height, ratio[0])
        for left in range(0, width, ratio[1])
    ]


def plain(module: KVCompressor, x: Tensor, height: int, width: int, ratio) -> Tensor:
    """The definition, token by token."""
    pair = ratio if isinstance(ratio, tuple) else (ratio, ratio)
    if pair == (1, 1):
        return x
    kind, grid = module.kind, x.reshape(x.shape[0], height, width, -1)
    if kind == "uniform_every":
        return x[:, [i for i in range(height * width) if i % pair[0] == 0]]
    if kind == "nearest":
        count = [math.ceil(size / r) for size, r in zip((height, width), pair, strict=True)]
        kept = [
            grid[:, math.floor(i * height / count[0]), math.floor(j * width / count[1])]
            for i in range(count[0])
            for j in range(count[1])
        ]
        return torch.stack(kept, 1)
    if kind == "uniform":
        return torch.stack([grid[:, r, c] for (r, c), *_ in cells(height, width, pair)], 1)
    if kind == "average":
        return torch.stack(
            [
                sum(grid[:, r, c] for r, c in cell) / len(cell)
                for cell in cells(height, width, pair)
            ],
            1,
        )
    out = []
    for (top, left), *_ in cells(height, width, pair):
        total = module.sr.bias
        for i in range(pair[0]):
            for j in range(pair[1]):
                token = grid[:, min(top + i, height - 1), min(left + j, width - 1)]
                total = total + module.sr.weight[:, 0, i, j] * token
        mean = total.mean(-1, keepdim=True)
        spread = ((total - mean) ** 2).mean(-1, keepdim=True)
        normed = (total - mean) / torch.sqrt(spread + 1e-5)
        out.append(normed * module.norm.weight + module.norm.bias)
    return torch.stack(out, 1)


@pytest.mark.parametrize(
    ("kind", "grid", "ratio"),
    [
        (kind, *case)
        for kind in KINDS
        for case in CASES
        if kind != "uniform_every" or isinstance(case[1], int)
    ],
)
def test_values_and_gradients_are_those_of_the_definition(kind, grid, ratio):
    module = compressor(kind, ratio)
    generator = torch.Generator().manual_seed(1)
    shape = (2, grid[0] * grid[1], 8)
    k, v = (torch.randn(shape, generator=generator, dtype=torch.double) for _ in range(2))
    k, v = k.requires_grad_(), v.requires_grad_()
    leaves = [k, v, *module.parameters()]

    ours = torch.cat(module(k, v, *grid), 1)
    theirs = torch.cat([plain(module, x, *grid, ratio) for x in (k, v)], 1)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)

    weights = torch.randn(ours.shape, generator=generator, dtype=torch.double)
    grads = [
        torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)
        for out in (ours, theirs)
    ]
    for ours_, theirs_ in zip(*grads, strict=True):
        if ratio == 1 and ours_ is None:
            assert theirs_ is None
            continue
        torch.testing.assert_close(ours_, theirs_, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_ratio_one_returns_the_very_tensors(kind):
    k, v = torch.randn(1, 12, 8), torch.randn(1, 12, 8)
    out = KVCompressor(KVCompression(kind, 1), 8)(k, v, 3, 4)
    assert out[0] is k
    assert out[1] is v


@pytest.mark.parametrize("kind", KINDS)
def test_every_item_is_compressed_alone(kind):
    module = compressor(kind, 2)
    k, v = torch.randn(3, 20, 8).double(), torch.randn(3, 20, 8).double()
    together = module(k, v, 4, 5)
    alone = [module(k[i : i + 1], v[i : i + 1], 4, 5) for i in range(3)]
    for part in (0, 1):
        assert torch.equal(together[part], torch.cat([one[part] for one in alone]))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].commutes])
def test_pooling_commutes_with_the_projection(kind):
    module, linear = KVCompressor(KVCompression(kind, (2, 2)), 8), nn.Linear(8, 8)
    x = torch.randn(2, 35, 8)
    before = linear(module.pool(x, 5, 7, (2, 2)))
    after = module.pool(linear(x), 5, 7, (2, 2))
    torch.testing.assert_close(before, after, rtol=0, atol=1e-5)


def test_parameters_have_the_published_names_and_start_as_the_mean():
    state = torch.get_rng_state()
    module = KVCompressor(KVCompression("conv", (2, 4)), 8)
    assert torch.equal(torch.get_rng_state(), state), "building one must not draw random numbers"
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    assert shapes == {
        "sr.weight": (8, 1, 2, 4),
        "sr.bias": (8,),
        "norm.weight": (8,),
        "norm.bias": (8,),
    }
    assert (module.sr.weight == 1 / 8).all()
    assert not module.sr.bias.any()
    x = torch.randn(2, 32, 8)
    average = KVCompressor(KVCompression("average", (2, 4)), 8)
    expected = F.layer_norm(average(x, x, 4, 8)[0], (8,))
    torch.testing.assert_close(module(x, x, 4, 8)[0], expected)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "conv"])
def test_other_kinds_have_no_parameters(kind):
    assert not KVCompressor(KVCompression(kind, 2), 8).state_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles_are_of_the_same_kind(kind):
    module = compressor(kind, 2)
    k = torch.randn(1, 16, 8).double()
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(again) is type(module)
        assert torch.equal(again(k, k, 4, 4)[0], module(k, k, 4, 4)[0])


def test_a_schedule_needs_the_level():
    module = KVCompressor(KVCompression("average", Schedule({0.5: 2})), 8)
    k = torch.randn(1, 16, 8)
    assert module(k, k, 4, 4, level=0.7)[0].shape[1] == 4
    assert module(k, k, 4, 4, level=0.3)[0].shape[1] == 16
    with pytest.raises(InputError, match="noise level"):
        module(k, k, 4, 4)


@pytest.mark.parametrize(
    ("kind", "ratio", "shape", "grid", "says"),
    [
        ("average", 2, (1, 15, 8), (4, 4), r"\[B, 4 \* 4, 8\]"),
        ("average", 2, (1, 16, 4), (4, 4), r"\[B, 4 \* 4, 8\]"),
        ("average", 2, (16, 8), (4, 4), r"\[B, 4 \* 4, 8\]"),
        ("average", 5, (1, 16, 8), (4, 4), "larger than the grid of 4 x 4"),
        ("conv", (1, 3), (1, 16, 8), (8, 2), "larger than the grid of 8 x 2"),
        ("uniform_every", 17, (1, 16, 8), (4, 4), "larger than the grid"),
    ],
)
def test_what_does_not_fit_is_refused(kind, ratio, shape, grid, says):
    module = KVCompressor(KVCompression(kind, ratio), 8)
    with pytest.raises(InputError, match=says):
        module(torch.zeros(shape), torch.zeros(shape), *grid)


# ---- positions


def tables(positions: Tensor, dim: int = 8) -> tuple[Tensor, Tensor]:
    """Rotary tables [1, N, 2 dim] of positions [N, 2], half the channels for each axis."""
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2).double() / dim)
    angles = (positions[:, :, None] * frequencies).repeat_interleave(2, -1).flatten(1)
    return angles.cos()[None], angles.sin()[None]


@pytest.mark.parametrize("step", [1.0, 0.37])
@pytest.mark.parametrize("ratio", [(2, 2), (3, 2), (4, 4), (1, 5), (8, 8)])
def test_a_mean_stands_at_the_centre_of_its_cell(step, ratio):
    height, width = 9, 10
    rows, columns = torch.meshgrid(torch.arange(9), torch.arange(10), indexing="ij")
    tokens = torch.stack([rows, columns], -1).reshape(-1, 2).double() * step
    centres = [
        [sum(axis) / len(axis) * step for axis in zip(*cell, strict=True)]
        for cell in cells(height, width, ratio)
    ]
    module = KVCompressor(KVCompression("average", ratio), 8)
    ours = module.place(*tables(tokens), height, width, ratio)
    for own, expected in zip(ours, tables(torch.tensor(centres, dtype=torch.double)), strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["uniform", "uniform_every", "nearest"])
def test_a_kept_token_stays_where_it_is(kind):
    module = KVCompressor(KVCompression(kind, 2), 2)
    tokens = torch.arange(35.0).reshape(1, 35, 1)
    cos, sin = module.place(tokens, -tokens, 5, 7, (2, 2))
    assert torch.equal(cos, module.pool(tokens, 5, 7, (2, 2)))
    assert torch.equal(sin, -cos)
