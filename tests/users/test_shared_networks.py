"""Threads whose pipelines share a network (`from_pipe`): each draws what it draws alone.

A hook inside of the shared network lets the other thread run in the middle of every evaluation.
"""

from __future__ import annotations

import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import tiny
import torch
from edits import hosts
from restored import compare, fingerprint

from w2sdiff import (
    W2SD,
    AutoGuidance,
    Checkpoint,
    CompressedKV,
    EmbeddedGuidance,
    Guidance,
    InputError,
    Lora,
    NoControl,
    Plain,
    SkipLayers,
    attach,
)
from w2sdiff.drivers.turns import NETWORKS, SCHEDULERS, Turns
from w2sdiff.testing import VARIANTS

SECONDS = 60  # until a thread that waits for ever is a failure


def sharing(pipe):
    """A second pipeline of the same networks, as threads of diffusers need it.

    A scheduler counts the steps of one call; a fast tokenizer keeps in itself how it was last told
    to pad (transformers 5), and would pad another thread's prompt so.
    """
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    own = {n: copy.deepcopy(part) for n, part in pipe.components.items() if "tokenizer" in n}
    parts = {**pipe.components, **own, "scheduler": scheduler}
    more = {"requires_safety_checker": False} if "safety_checker" in parts else {}
    second = type(pipe)(**parts, **more)
    second.set_progress_bar_config(disable=True)
    return second


def timestep_embedding(network):
    """What every network calls early, and before what edits change."""
    return next(m for m in network.modules() if "TimestepEmb" in type(m).__name__)


@contextmanager
def giving_way(*networks):
    """Networks that let other threads run in the middle of an evaluation."""
    pause = lambda *_: time.sleep(2e-3)  # noqa: E731
    handles = [timestep_embedding(one).register_forward_hook(pause) for one in networks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def drawn(variant, pipe, method, seed=0, steps=4):
    if method is None:
        return variant.latents(pipe, steps=steps, seed=seed)
    with attach(pipe, method):
        return variant.latents(pipe, steps=steps, seed=seed)


def at_once(*works):
    start = threading.Barrier(len(works), timeout=SECONDS)

    def work(one):
        start.wait()
        return one()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result(SECONDS) for future in [pool.submit(work, one) for one in works]]


def check(variant, pipe, methods, *networks):
    """Two pipelines of one network, at once and alone."""
    pipes = [pipe, sharing(pipe)]
    pairs = list(zip(pipes, methods, strict=True))
    alone = [drawn(variant, one, method, seed) for seed, (one, method) in enumerate(pairs)]
    before = fingerprint(pipe)
    with giving_way(*(networks or [variant.network(pipe)])):
        found = at_once(
            *(
                lambda one=one, method=method, seed=seed: drawn(variant, one, method, seed)
                for seed, (one, method) in enumerate(pairs)
            )
        )
    compare(before, fingerprint(pipe))
    for expected, latents in zip(alone, found, strict=True):
        assert torch.equal(latents, expected)


LORA = W2SD(weak=Lora("style", -1.5))
SECONDS_METHODS = {
    "stock": None,
    "plain": Plain(),
    "another weight": W2SD(strong=Lora("style", 1.3), weak=Guidance(1.0)),
}


@pytest.mark.parametrize("other", SECONDS_METHODS)
def test_weights_of_a_lora(other, tmp_path):
    pipe = tiny.build("sd")
    tiny.add_lora(pipe, "sd", tmp_path)
    check(VARIANTS["sd"], pipe, [LORA, SECONDS_METHODS[other]])


OTHERS = {
    "checkpoint": ("sd", lambda: Checkpoint(tiny.build_denoiser("sd"))),
    "skip-layers": ("sd", lambda: SkipLayers(["mid_block"])),
    "compressed-kv": ("pixart", lambda: CompressedKV(ratio=2)),
    "no-control": ("sd-controlnet", NoControl),
    "embedded-guidance": ("flux-controlnet", lambda: EmbeddedGuidance(1.5)),
}


@pytest.mark.parametrize("other", [None, Plain()], ids=["stock", "attached"])
@pytest.mark.parametrize("kind", OTHERS)
def test_other_edits(kind, other):
    name, edit = OTHERS[kind]
    variant = hosts.SD_CONTROL if name == "sd-controlnet" else VARIANTS[name]
    pipe = variant.build()
    controls = [pipe.controlnet] if hasattr(pipe, "controlnet") else []
    check(variant, pipe, [W2SD(weak=edit()), other], variant.network(pipe), *controls)


def test_one_edit_in_both():
    """Of the same ControlNet, whose class each exchanges."""
    pipe, method = hosts.SD_CONTROL.build(), W2SD(weak=NoControl())
    check(hosts.SD_CONTROL, pipe, [method, method], pipe.unet, pipe.controlnet)


def test_each_other_s_network_as_the_weak_one():
    """Each holds what the other wants: neither waits for ever."""
    first, second = tiny.build("sd"), tiny.build("sd", seed=1)
    pairs = [(first, Checkpoint(second.unet)), (second, Checkpoint(first.unet))]
    works = [
        lambda pipe=pipe, weak=weak: drawn(VARIANTS["sd"], pipe, W2SD(weak=weak))
        for pipe, weak in pairs
    ]
    alone = [work() for work in works]
    with giving_way(first.unet, second.unet):
        for found, expected in zip(at_once(*works), alone, strict=True):
            assert torch.equal(found, expected)


def test_a_stock_call_that_had_begun_already(tmp_path):
    """The first role waits for it: it knows nothing of turns."""
    pipe = tiny.build("sd")
    tiny.add_lora(pipe, "sd", tmp_path)
    second = sharing(pipe)
    expected = drawn(VARIANTS["sd"], second, None, steps=1)
    method = AutoGuidance(strong=Lora("style", -1.5), weak=Lora("style", 2.0), scale=1.5)
    inside = threading.Event()

    def pause(*_):
        if not inside.is_set():
            inside.set()
            time.sleep(0.2)

    handle = timestep_embedding(pipe.unet).register_forward_hook(pause)
    with ThreadPoolExecutor(1) as pool:
        stock = pool.submit(drawn, VARIANTS["sd"], second, None, steps=1)
        assert inside.wait(SECONDS)
        drawn(VARIANTS["sd"], pipe, method)
        assert torch.equal(stock.result(SECONDS), expected)
    handle.remove()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_who_fails_lets_go(error, tmp_path):
    pipe = tiny.build("sd")
    tiny.add_lora(pipe, "sd", tmp_path)
    second = sharing(pipe)
    expected = drawn(VARIANTS["sd"], second, LORA)
    failing = threading.get_ident()

    def fail(*_):
        if threading.get_ident() == failing:
            raise error("on purpose")

    handle = timestep_embedding(pipe.unet).register_forward_hook(fail)
    with attach(pipe, LORA), pytest.raises(error, match="on purpose"):
        tiny.latents(pipe, "sd")
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(drawn, VARIANTS["sd"], second, LORA).result(SECONDS)
    handle.remove()
    assert torch.equal(found, expected)
    assert not NETWORKS._owners
    assert not SCHEDULERS._owners


def test_pipelines_with_one_scheduler_take_turns_by_calls():
    """As `from_pipe` leaves them. A stock pipeline would step with the other's numbers."""
    pipe = tiny.build("sd")
    second = type(pipe).from_pipe(pipe, torch_dtype=torch.float32)
    second.tokenizer = copy.deepcopy(pipe.tokenizer)
    second.set_progress_bar_config(disable=True)
    assert second.scheduler is pipe.scheduler
    method = W2SD(weak=Guidance(1.0))
    works = [
        lambda one=one, seed=seed: drawn(VARIANTS["sd"], one, method, seed)
        for seed, one in enumerate((pipe, second))
    ]
    alone = [work() for work in works]
    with giving_way(pipe.unet):
        for found, expected in zip(at_once(*works), alone, strict=True):
            assert torch.equal(found, expected)


def test_one_scheduler_twice_in_one_thread_is_refused():
    pipe, second = tiny.build("sd"), tiny.build("sd", seed=1)
    second.scheduler = pipe.scheduler

    def again(_pipe, _i, _t, kwargs):
        with pytest.raises(InputError, match="from_config") as error:
            tiny.latents(second, "sd", steps=2)
        assert "\n" not in str(error.value)
        return kwargs

    with attach(pipe, Plain()), attach(second, Plain()):
        expected = tiny.latents(pipe, "sd")
        assert torch.equal(tiny.latents(pipe, "sd", callback_on_step_end=again), expected)
        tiny.latents(second, "sd", steps=2)


# --- turns themselves -----------------------------------------------------------------------------


def test_all_or_none_is_taken():
    turns, a, b = Turns("network"), object(), object()
    held, done = threading.Event(), threading.Event()

    def hold():
        turns.take([b])
        held.set()
        assert done.wait(SECONDS)
        turns.give_back([b])

    with ThreadPoolExecutor(2) as pool:
        holding = pool.submit(hold)
        assert held.wait(SECONDS)
        waiting = pool.submit(lambda: (turns.take([a, b]), turns.is_mine(a)))
        time.sleep(0.05)
        assert not waiting.done()
        turns.take([a])  # free: whoever waits for both holds neither
        turns.give_back([a, b])  # b is another's
        assert not waiting.done()
        done.set()
        holding.result(SECONDS)
        assert waiting.result(SECONDS)[1]


def test_whoever_holds_one_waits_for_no_other():
    turns, a, b = Turns("network"), object(), object()
    above = Turns("scheduler", under=turns)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: (turns.take([b]), above.take([b]))).result()
        above.take([a])
        turns.take([a])
        for kind in (turns, above):
            with pytest.raises(InputError, match="could be for ever"):
                kind.take([b])
        assert not turns.is_mine(b)
        pool.submit(turns.give_back, [b]).result()
        turns.take([b])
        assert turns.is_mine(b)
