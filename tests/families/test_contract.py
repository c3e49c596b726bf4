"""What holds for every variant of the table, so that a new family is one row and gets it all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from restored import compare, fingerprint

from w2sdiff import W2SD, Guidance, Plain, attach
from w2sdiff.drivers.families import FAMILIES, family_of
from w2sdiff.testing import VARIANTS, replay, variants
from w2sdiff.testing.contract import Counted, counting, oracle_difference

STEPS = 4
ROWS = [variant for variant in variants() if variant.installed]
FIRST = {variant.family: variant.name for variant in reversed(ROWS)}.values()  # one per family


@dataclass(frozen=True)
class Subject:
    """A pipeline that all tests share, and what it does without the driver."""

    variant: object
    pipe: object
    before: dict
    stock: torch.Tensor
    counted: Counted

    def latents(self, method, **changes):
        """Latents and statistics of a call under a method, and what hooks counted meanwhile."""
        with counting(self.pipe) as counted, attach(self.pipe, method) as run:
            latents = self.variant.latents(self.pipe, **{"steps": STEPS, **changes})
        return latents, run.stats, counted


@cache
def subject_of(name):
    variant = VARIANTS[name]
    pipe = variant.build()
    variant.latents(pipe, steps=2)  # what a first call sets up stays
    before = fingerprint(pipe)
    with counting(pipe) as counted:
        stock = variant.latents(pipe, steps=STEPS)
    return Subject(variant, pipe, before, stock, counted)


@pytest.fixture
def subject(name):
    return subject_of(name)


every_variant = pytest.mark.parametrize("name", [variant.name for variant in ROWS])


@every_variant
def test_plain_is_the_stock_pipeline_bit_for_bit_and_leaves_it_so(subject):
    latents, stats, counted = subject.latents(Plain())
    assert torch.equal(latents, subject.stock)
    compare(subject.before, fingerprint(subject.pipe))
    assert counted == subject.counted
    assert (stats.steps, stats.calls, stats.evaluations) == (
        counted.steps,
        counted.calls,
        counted.items,
    )


@every_variant
def test_the_row_says_what_a_step_costs(subject):
    row, counted = subject.variant, subject.counted
    assert counted.steps >= 3
    assert counted.calls == counted.steps * row.calls
    assert counted.items == counted.steps * row.evaluations


@every_variant
def test_a_guidance_pair_agrees_with_the_replay(subject):
    difference = oracle_difference(subject.variant, subject.pipe, steps=STEPS)
    if difference is None:
        pytest.skip("the replay does not apply")
    assert difference <= 1e-5
    compare(subject.before, fingerprint(subject.pipe))


def two_calls(subject):
    return subject.variant.guidance is not None and family_of(subject.pipe).layout == "two"


@every_variant
def test_at_scale_1_the_weak_model_is_asked_for_one_half_only(subject):
    row, n = subject.variant, subject.counted.steps
    alone = row.unguided or row.evaluations - (row.guidance is not None)
    latents, stats, counted = subject.latents(W2SD(weak=Guidance(1.0)))
    assert not torch.allclose(latents, subject.stock, rtol=0.01), "the pair does nothing here"
    assert stats.steps == counted.steps == n
    assert stats.requests == 3 * (n - 1) + 1
    expected = n * row.evaluations + (n - 1) * (row.evaluations + alone)
    assert stats.evaluations == counted.items == expected
    calls = n * row.calls + (n - 1) * (2 * row.calls - two_calls(subject))
    assert stats.calls == counted.calls == calls


def really_at(row, scale):
    """Arguments of a call at another scale; an embedded one is an argument of the same name."""
    return {"guidance_scale": scale} if row.guidance is None else row.at_scale(scale)


@every_variant
def test_guidance_is_what_the_pipeline_does_when_called_with_that_scale(subject, name):
    if name == "flux-controlnet":
        pytest.skip("the ControlNet is told the scale as well, and an edit is of the denoiser")
    latents, _, _ = subject.latents(Plain(base=Guidance(2.5)))
    called = subject.variant.latents(subject.pipe, steps=STEPS, **really_at(subject.variant, 2.5))
    assert not torch.allclose(called, subject.stock, rtol=0.01)
    size = max(1.0, float(called.abs().max()), float(subject.stock.abs().max()))
    assert float((latents - called).abs().max()) <= 1e-5 * size


# Steps from which halving is seen; else 10. With these betas a leading grid starts at a noisier
# level with every doubling, and a random network's first steps are all that counts.
FINER = {"animatediff": 20}


@pytest.mark.parametrize(
    "name",
    [pytest.param(row.name, marks=() if row.name in FIRST else pytest.mark.slow) for row in ROWS],
)
def test_equal_models_move_x_by_half_as_much_with_twice_the_steps(subject, name):
    """Strong = weak: what is left is the discretisation, of first order in the step.

    At a wrong level, or with a network told the wrong time, it would not go away.
    """
    sizes = []
    coarse = FINER.get(name, 10)
    for steps in (coarse, 2 * coarse):
        _, stats, _ = subject.latents(W2SD(), steps=steps)
        assert stats.reflection[-1] == 0.0
        sizes.append(sum(stats.reflection) / (len(stats.reflection) - 1))
    assert 0.35 < sizes[1] / sizes[0] < 0.65, sizes


@every_variant
def test_the_family_is_known_by_the_rows_name(subject):
    family = family_of(subject.pipe)
    assert family is not None
    assert family.name == subject.variant.family
    assert family.embedded == ("guidance" in called_with(subject))


def called_with(subject):
    """Names of tensors that the denoiser is given."""
    seen = set()

    def hook(_module, _args, kwargs):
        seen.update(name for name, value in kwargs.items() if torch.is_tensor(value))

    handle = subject.variant.network(subject.pipe).register_forward_pre_hook(hook, with_kwargs=True)
    subject.variant.latents(subject.pipe, steps=STEPS)
    handle.remove()
    return seen


def test_the_replay_knows_every_variant_of_the_table():
    assert set(replay.FAMILIES) == {variant.name for variant in variants()}


def test_every_known_pipeline_is_a_variant_or_stands_for_one():
    """A class in the table of families without a row would be a claim without a test."""
    tested = {cls.__name__ for row in ROWS for cls in type(subject_of(row.name).pipe).__mro__}
    assert set(FAMILIES) <= tested
