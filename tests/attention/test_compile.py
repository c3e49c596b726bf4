"""torch.compile with `fullgraph=True`: compression adds no graph breaks, in whatever order."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo
from tiny_hosts import arguments, build_host, run
from torch._dynamo.testing import CompileCounter

from w2sdiff import InputError
from w2sdiff.attention import KVCompression, Schedule, compress, restore

HALVED = KVCompression("average", 2, "all")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("pixart", "compress first"),
        ("pixart", "compile first"),
        ("pixart", "in place"),
        ("flux", "compress first"),
        ("flux", "compile first"),
    ],
)
def test_one_graph_without_breaks(name, order):
    model, counter = build_host(name), CompileCounter()
    compress(model, HALVED)
    grids = ((4, 6), (5, 3)) if name == "pixart" else ((4, 6),)
    expected = {grid: run(model, name, *grid) for grid in grids}
    settings = {"backend": counter, "fullgraph": True, "dynamic": False}
    if order == "compile first":
        restore(model)
        called = compress(torch.compile(model, **settings), HALVED)
    elif order == "in place":
        model.compile(**settings)
        called = model
    else:
        called = torch.compile(model, **settings)
    for grid, wanted in expected.items():
        counter.clear()
        for _ in range(2):
            torch.testing.assert_close(run(called, name, *grid), wanted, rtol=1e-5, atol=1e-5)
        assert counter.frame_count == 1, "one graph per size, reused"
    restore(called if order == "compile first" else model)


@pytest.mark.parametrize("name", ["hunyuan", "sd35", "wan", "cogvideox"])
def test_the_other_hosts_compile_too(name):
    model = compress(build_host(name), KVCompression("conv", 2, "all"))
    expected = run(model, name)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(run(compiled, name), expected, rtol=1e-5, atol=1e-5)


def test_sizes_may_be_dynamic():
    model = compress(build_host("pixart"), HALVED)
    grids = ((4, 6), (5, 3), (7, 9))
    expected = [run(model, "pixart", *grid) for grid in grids]
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for grid, wanted in zip(grids, expected, strict=True):
        torch.testing.assert_close(run(compiled, "pixart", *grid), wanted, rtol=1e-5, atol=1e-5)


def test_a_wrapped_transformer_is_one_with_what_it_wraps():
    pixart = build_host("pixart")
    compiled = torch.compile(pixart, backend="eager")
    compress(compiled, HALVED)
    for module in (compiled, pixart):
        with pytest.raises(InputError, match="compressed already"):
            compress(module, HALVED)
    restore(pixart)  # by either name
    compress(pixart, HALVED)
    restore(pixart)


def test_a_schedule_compiles_to_one_graph_per_ratio():
    counter, pixart = CompileCounter(), build_host("pixart")
    compress(pixart, KVCompression("average", Schedule({0.3: 2, 0.6: 4}), "all"))
    compiled = torch.compile(pixart, backend=counter, fullgraph=True)
    given = arguments("pixart", 4, 8)
    for _ in range(2):
        for step in (900, 700, 400, 100):
            with torch.no_grad():
                compiled(**{**given, "timestep": torch.tensor([step, step])})
    assert counter.frame_count == 3
