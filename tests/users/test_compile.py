"""Compiled denoisers: what a method adds to the number of graphs does not grow with its calls.

Counted with dynamo's own counter on FLUX, whose branches are calls of one size: no graph is owed
to another batch.
"""

from __future__ import annotations

import pytest
import tiny
import torch
import torch._dynamo
from torch._dynamo.testing import CompileCounter

from w2sdiff import W2SD, Checkpoint, Guidance, Lora, Plain, Prompt, attach

FAMILY = "flux-true-cfg"
STEPS = 3


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(pipe, how, **settings):
    counter = CompileCounter()
    settings = {"backend": counter, "fullgraph": True, **settings}
    if how == "module.compile()":
        pipe.transformer.compile(**settings)
    else:
        pipe.transformer = torch.compile(pipe.transformer, **settings)
    return counter


def drawn(pipe, method=None):
    if method is None:
        return tiny.latents(pipe, FAMILY, steps=STEPS)
    with attach(pipe, method):
        return tiny.latents(pipe, FAMILY, steps=STEPS)


HOW = ["torch.compile(module)", pytest.param("module.compile()", marks=pytest.mark.slow)]


@pytest.mark.parametrize("how", HOW)
def test_one_graph_for_every_role(how):
    pipe, other = tiny.build(FAMILY), tiny.build_denoiser(FAMILY)
    pairs = {
        "guidance": W2SD(weak=Guidance(1.0)),
        "both halves": W2SD(strong=Guidance(2.0), weak=Guidance(0.0)),
        "prompt": W2SD(weak=Prompt(tiny.PROMPT[::-1])),
        "checkpoint": W2SD(weak=Checkpoint(other)),
    }
    expected = {name: drawn(pipe, method) for name, method in pairs.items()}
    counter = compiled(pipe, how, dynamic=False)
    stock = drawn(pipe)
    assert counter.frame_count == 1
    assert torch.equal(drawn(pipe, Plain()), stock)
    # A compiled module guards on its class, and a tapped one has another: one graph, once.
    warm = counter.frame_count
    assert warm <= (1 if how.startswith("torch") else 2)
    for name, method in pairs.items():
        found = drawn(pipe, method)
        torch.testing.assert_close(found, expected[name], rtol=0, atol=1e-4)
    assert torch.equal(drawn(pipe), stock)
    assert counter.frame_count == warm


def test_one_graph_more_for_all_weights_of_a_lora(tmp_path):
    """Dynamo takes a scaling for a constant until it sees a second one, then for a number.

    With `dynamic=False` every weight would be a constant, and have a graph of its own.
    """
    pipe = tiny.build(FAMILY)
    tiny.add_lora(pipe, FAMILY, tmp_path)
    methods = [
        W2SD(*(Lora("style", weight) for weight in weights))
        for weights in ((1.5, -1.5, 0.8), (0.7, -0.2, 0.1))
    ]
    expected = drawn(pipe, methods[-1])
    counter = compiled(pipe, "torch.compile(module)")
    for method in methods:
        found = drawn(pipe, method)
        assert counter.frame_count == 2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_weak_checkpoint_may_be_compiled_itself():
    pipe, other = tiny.build(FAMILY), tiny.build_denoiser(FAMILY)
    expected = drawn(pipe, W2SD(weak=Checkpoint(other)))
    counter = CompileCounter()
    weak = Checkpoint(torch.compile(other, backend=counter, fullgraph=True))
    for _ in range(2):
        torch.testing.assert_close(drawn(pipe, W2SD(weak=weak)), expected, rtol=0, atol=1e-4)
    assert counter.frame_count == 1
