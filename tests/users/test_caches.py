"""Cache hooks of diffusers: every role remembers for itself; the user's memories stay theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from diffusers import FasterCacheConfig, FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from diffusers.hooks import (
    MagCacheConfig,
    TaylorSeerCacheConfig,
    apply_faster_cache,
    apply_pyramid_attention_broadcast,
)

from w2sdiff import W2SD, Checkpoint, Guidance, Plain, attach
from w2sdiff.drivers.caches import RoleCaches

STEPS = 5
GUIDANCE_PAIR = W2SD(weak=Guidance(1.0))


def first_block(network, threshold=10.0):
    network.enable_cache(FirstBlockCacheConfig(threshold=threshold))


def mag(network):
    config = MagCacheConfig(
        num_inference_steps=STEPS,
        mag_ratios=torch.ones(STEPS),
        threshold=10.0,
        max_skip_steps=1,
        retention_ratio=0.2,
    )
    network.enable_cache(config)


def taylor_seer(network):
    network.enable_cache(
        TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=2, max_order=1)
    )


def pyramid(network):
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        spatial_attention_block_identifiers=("transformer_blocks",),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(network, config)


def faster(network, skip=2):
    config = FasterCacheConfig(
        spatial_attention_block_skip_range=skip,
        spatial_attention_timestep_skip_range=(-1, 1001),
        spatial_attention_block_identifiers=("transformer_blocks",),
        unconditional_batch_skip_range=skip,
        unconditional_batch_timestep_skip_range=(-1, 1001),
        tensor_format="BCHW",
        current_timestep_callback=lambda: 500,
    )
    apply_faster_cache(network, config)


@dataclass(frozen=True)
class Cache:
    """One way to cache, and a family whose loop does what it asks of a loop."""

    apply: Callable[[Any], None]
    family: str


CACHES = {
    # These want the loop's calls to have names ("cond", "uncond") ...
    "FirstBlockCache": Cache(first_block, "flux-true-cfg"),
    "MagCache": Cache(mag, "flux-true-cfg"),
    "TaylorSeer": Cache(taylor_seer, "flux-true-cfg"),
    # ... and these keep one memory, whatever the name; the last wants both branches in one call.
    "PyramidAttentionBroadcast": Cache(pyramid, "pixart"),
    "FasterCache": Cache(faster, "pixart"),
}


@pytest.fixture(params=CACHES)
def cache(request):
    return CACHES[request.param]


def cached(cache):
    pipe = tiny.build(cache.family)
    cache.apply(pipe.transformer)
    return pipe


def drawn(pipe, cache, method=None, **changes):
    if method is None:
        return tiny.latents(pipe, cache.family, steps=STEPS, **changes)
    with attach(pipe, method):
        return tiny.latents(pipe, cache.family, steps=STEPS, **changes)


def test_off_is_exact_and_the_cache_works(cache):
    stock = drawn(cached(cache), cache)
    assert not torch.equal(stock, drawn(tiny.build(cache.family), cache)), "it does nothing here"
    pipe = cached(cache)
    for _ in range(2):
        assert torch.equal(drawn(pipe, cache, Plain()), stock)
    # Last: PixArt (diffusers 0.42) does not empty its memories at the end of a call of its own.
    assert torch.equal(drawn(pipe, cache), stock)


def test_roles_remember_as_if_each_had_a_network_of_its_own(cache):
    """Three copies of one network, each with hooks of its own, cannot mix: the oracle."""
    pipe = cached(cache)
    together = drawn(pipe, cache, W2SD())
    strong, weak = (Checkpoint(cached(cache).transformer) for _ in range(2))
    assert torch.equal(drawn(pipe, cache, W2SD(strong=strong, weak=weak)), together)


def test_one_memory_for_all_roles_would_differ(cache, monkeypatch):
    pipe = cached(cache)
    apart = drawn(pipe, cache, W2SD())
    own = RoleCaches.of
    monkeypatch.setattr(RoleCaches, "of", lambda self, module, _: own(self, module, "all"))
    mixed = drawn(pipe, cache, W2SD())
    assert float((apart - mixed).norm() / apart.norm()) > 1e-4


def test_a_guidance_pair_runs_with_every_cache(cache):
    """A weak role at scale 1 asks for one branch; FasterCache needs both in a call."""
    pipe = cached(cache)
    with attach(pipe, GUIDANCE_PAIR) as run:
        found = tiny.latents(pipe, cache.family, steps=STEPS)
    assert torch.isfinite(found).all()
    left_out = 0 if cache.apply is faster else STEPS - 1
    assert run.stats.evaluations == 2 * (3 * (STEPS - 1) + 1) - left_out
    with attach(pipe, GUIDANCE_PAIR):
        assert torch.equal(tiny.latents(pipe, cache.family, steps=STEPS), found)


@pytest.mark.parametrize(
    ("family", "apply"),
    [
        ("flux-true-cfg", lambda network: first_block(network, threshold=0.0)),
        ("pixart", lambda network: faster(network, skip=1)),
    ],
    ids=["FirstBlockCache", "FasterCache"],
)
def test_a_cache_that_skips_nothing_changes_nothing(family, apply):
    cache = Cache(apply, family)
    expected = drawn(tiny.build(family), cache, GUIDANCE_PAIR)
    found = drawn(cached(cache), cache, GUIDANCE_PAIR)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_a_role_that_speaks_twice_in_a_step_has_two_memories():
    """A hook counts its calls as steps: it must skip in the steps in which it skips stock calls."""
    cache = CACHES["MagCache"]
    pipe, computed = cached(cache), [0]
    block = pipe.transformer.transformer_blocks[0].norm1
    block.register_forward_pre_hook(lambda *_: computed.__setitem__(-1, computed[-1] + 1))

    def next_step(_pipe, _i, _t, kwargs):
        computed.append(0)
        return kwargs

    drawn(pipe, cache, callback_on_step_end=next_step)
    stock = computed[:-1]
    assert {0, 2} == set(stock)
    computed[:] = [0]
    drawn(pipe, cache, W2SD(times=2), callback_on_step_end=next_step)
    assert computed[:-1] == [5 * calls for calls in stock[:-1]] + stock[-1:]


class OnPurposeError(Exception):
    pass


def test_nothing_of_a_call_stays_behind(cache):
    pipe = cached(cache)
    before = memories(pipe.transformer)
    drawn(pipe, cache, GUIDANCE_PAIR)
    assert memories(pipe.transformer) == before

    def fail(_pipe, i, _t, kwargs):
        if i == 1:
            raise OnPurposeError
        return kwargs

    def fail_too(i, _t, _latents):
        fail(None, i, None, None)

    old = cache.family == "pixart"  # only the legacy form exists there
    callback = {"callback": fail_too} if old else {"callback_on_step_end": fail}
    with pytest.raises(OnPurposeError):
        drawn(pipe, cache, GUIDANCE_PAIR, **callback)
    assert memories(pipe.transformer) == before


def memories(network):
    """What the hooks hold: which objects, and what is in them."""
    found = []
    for part in network.modules():
        registry = part.__dict__.get("_diffusers_hook")
        for hook in registry.hooks.values() if registry is not None else ():
            manager, state = (getattr(hook, name, None) for name in ("state_manager", "state"))
            if manager is not None:
                found.append((id(manager._state_cache), list(manager._state_cache)))
            if state is not None:
                found.append((id(state), dict(vars(state))))
    return found
