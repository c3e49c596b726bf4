"""`Method.cost` against counts written down by hand, and against what a method asks for."""

from __future__ import annotations

import pytest
import torch

from w2sdiff import W2SD, AutoGuidance, Guidance, Lora, Plain, Window, ZigZag
from w2sdiff.edits import Edits
from w2sdiff.errors import InputError
from w2sdiff.levels import Levels
from w2sdiff.methods.base import Step

LORA_PAIR = W2SD(
    strong=Guidance(1.0) | Lora("dpo", 0.8),
    weak=Guidance(1.0) | Lora("dpo", -1.5),
    base=Lora("dpo", 0.8),
)


@pytest.mark.parametrize(
    ("method", "evaluations"),
    [
        (Plain(), 100),
        (LORA_PAIR, 198),  # 49 reflections of two single branches, 50 guided steps
        (ZigZag(strong=Guidance(5.5), weak=Guidance(0.0)), 247),  # 49 (2 + 1) + 100
        (ZigZag(), 247),
        (W2SD(strong=Lora("dpo", 0.8), weak=Lora("dpo", -1.5)), 296),  # both branches everywhere
        (W2SD(weak=Guidance(1.0), times=2), 2 * 49 * 3 + 100),
        (W2SD(weak=Guidance(1.0), window=Window(0.0, 0.0)), 100),
        (W2SD(weak=Guidance(1.0), window=Window(0.0, 0.5)), 25 * 3 + 100),
        (W2SD(weak=Guidance(1.0), window=Window(0.5, 1.0)), 24 * 3 + 100),
        (W2SD(weak=Guidance(1.0), window=Window(last=True)), 50 * 3 + 100),
        (AutoGuidance(weak=Lora("dpo", -1.5)), 200),
        (AutoGuidance(strong=Guidance(1.0), weak=Guidance(0.0), scale=5.5), 100),  # plain guidance
        (
            AutoGuidance(strong=Guidance(1.0), weak=Lora("dpo", 0.0) | Guidance(1.0), base=Edits()),
            200,
        ),
        (AutoGuidance(weak=Guidance(1.0), scale=1.0), 100),  # the weak model is not asked
    ],
    ids=repr,
)
def test_fifty_guided_steps(method, evaluations):
    assert method.cost(num_inference_steps=50, guidance_scale=5.5) == evaluations


def test_without_guidance_every_request_is_one_evaluation():
    assert Plain().cost(50, 1.0) == 50
    assert LORA_PAIR.cost(50, 1.0) == 50 + 2 * 49


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_is_an_error(steps):
    with pytest.raises(InputError, match="at least 1"):
        Plain().cost(steps)


METHODS = [
    Plain(),
    LORA_PAIR,
    ZigZag(times=3),
    W2SD(weak=Guidance(1.0), window=Window(0.2, 0.7)),
    W2SD(weak=Guidance(1.0), inversion="reference", window=Window(steps=(0, 3))),
    AutoGuidance(weak=Guidance(1.0)),
    AutoGuidance(weak=Guidance(1.0), base=Guidance(3.0), window=Window(0.0, 0.5)),
]


@pytest.mark.parametrize("scale", [1.0, 5.5])
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_cost_counts_what_the_method_asks_for(method, scale):
    """A hand-turned crank: answer every request with zeros, add up what each role costs."""
    n = 9
    levels = Levels.flow(n)
    spent = 0
    for i in range(n):
        conversation = method.steps(
            Step(torch.ones(1, 2), i, method.window.contains(i, n), lambda: levels)
        )
        answer = None
        while True:
            try:
                request = conversation.send(answer)
            except StopIteration:
                break
            spent += (method.roles[request.role] or Edits()).evaluations(scale)
            answer = torch.zeros_like(request.x)
    assert spent == method.cost(n, scale)
