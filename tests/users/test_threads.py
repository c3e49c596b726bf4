"""Two pipelines in two threads, step by step in turn: neither notices the other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
import torch

from w2sdiff import W2SD, Guidance, InputError, attach

STEPS = 4
PAIR = W2SD(weak=Guidance(1.0))


def drawn(method, *, seed, wait=lambda: None):
    pipe = tiny.build("sd")

    def callback(_pipe, _i, _t, kwargs):
        wait()
        return kwargs

    call = {"steps": STEPS, "seed": seed, "callback_on_step_end": callback}
    if method is None:
        return tiny.latents(pipe, "sd", **call)
    with attach(pipe, method):
        return tiny.latents(pipe, "sd", **call)


@pytest.mark.parametrize("other", [None, W2SD(weak=Guidance(0.0))], ids=["stock", "attached"])
def test_another_pipeline_of_the_same_class_meanwhile(other):
    alone = [drawn(PAIR, seed=0), drawn(other, seed=1)]
    in_step = threading.Barrier(2, timeout=60)
    with ThreadPoolExecutor(2) as pool:
        found = [
            pool.submit(drawn, method, seed=seed, wait=in_step.wait)
            for seed, method in enumerate((PAIR, other))
        ]
        for expected, future in zip(alone, found, strict=True):
            assert torch.equal(future.result(), expected)


def test_one_pipeline_is_in_one_call_at_a_time():
    """Its scheduler counts the steps of one call; a second one inside it would draw nonsense."""
    pipe = tiny.build("sd")

    def again(_pipe, _i, _t, kwargs):
        with pytest.raises(InputError, match="already in a call") as error:
            tiny.latents(pipe, "sd", steps=2)
        assert "\n" not in str(error.value)
        return kwargs

    with attach(pipe, PAIR):
        expected = tiny.latents(pipe, "sd", steps=STEPS)
        found = tiny.latents(pipe, "sd", steps=STEPS, callback_on_step_end=again)
    assert torch.equal(found, expected)
