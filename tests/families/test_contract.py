"""What holds for every variant of the table, so that a new family is one row and gets it all."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from restored import compare, fingerprint

from w2sdiff import W2SD, Guidance, Plain, Prompt, Window, attach
from w2sdiff.drivers.families import FAMILIES, family_of
from w2sdiff.testing import VARIANTS, replay, variants
from w2sdiff.testing.contract import Counted, counting, oracle_difference, together
from w2sdiff.testing.variants import NEGATIVE

STEPS = 4
ROWS = [variant for variant in variants() if variant.installed]
FIRST = {variant.family: variant.name for variant in reversed(ROWS)}.values()  # one per family


@dataclass(frozen=True, repr=False)  # to print a pipeline changes its config (diffusers 0.42)
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


def close(found, expected, start=1.0):
    """Equal up to rounding, which is proportional to the largest latents on the way."""
    size = max(1.0, float(expected.abs().max()), start)
    return float((found - expected).abs().max()) <= 1e-5 * size


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
@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5])
def test_a_guidance_pair_agrees_with_the_replay(subject, scale):
    difference = oracle_difference(subject.variant, subject.pipe, steps=STEPS, weak=scale)
    if difference is None:
        pytest.skip("the replay does not apply")
    assert difference <= 1e-5
    compare(subject.before, fingerprint(subject.pipe))


def two_calls(subject):
    return subject.variant.guidance is not None and family_of(subject.pipe).layout == "two"


@every_variant
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_at_scale_0_and_1_the_weak_model_is_asked_for_what_counts_only(subject, scale):
    row, n = subject.variant, subject.counted.steps
    alone = row.evaluations_at(scale)
    method = W2SD(weak=Guidance(scale))
    latents, stats, counted = subject.latents(method)
    assert not torch.allclose(latents, subject.stock, rtol=0.01), "the pair does nothing here"
    assert stats.steps == counted.steps == n
    assert stats.requests == 3 * (n - 1) + 1
    expected = n * row.evaluations + (n - 1) * (row.evaluations + alone)
    assert stats.evaluations == counted.items == expected
    # The cost counts the branches of the mix, and no third one or other use of the conditional one.
    cost = method.cost(n, guidance_scale=1.0 if row.guidance is None else 4.0)
    assert cost <= expected
    assert (cost == expected) == (row.evaluations <= 2 and alone == 1)
    left_out = two_calls(subject) and alone < row.evaluations
    calls = n * row.calls + (n - 1) * (2 * row.calls - left_out)
    assert stats.calls == counted.calls == calls


def really_at(row, scale):
    """Arguments of a call at another scale; an embedded one is an argument of the same name."""
    if row.guidance is None:
        return {"guidance_scale": scale}
    return {**row.at_scale(scale), **(picture_of(row, "c") if scale == 1 else {})}


def picture_of(row, half):
    """What IP-Adapters are given in a call without guidance: one half of what they are with it."""
    name = "ip_adapter_image_embeds"
    given = row.call().get(name)
    if given is None:
        return {}
    return {name: [pair.chunk(2)["uc".index(half)] for pair in given]}


@every_variant
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_guidance_is_what_the_pipeline_does_when_called_with_that_scale(subject, name, scale):
    if name == "flux-controlnet":
        pytest.skip("the ControlNet is told the scale as well, and an edit is of the denoiser")
    latents, _, _ = subject.latents(Plain(base=Guidance(scale)))
    if name == "sd3-skip-layers":
        scale = max(scale, 1 + 1e-7)  # at 1 its pipeline leaves skip-layer guidance out as well
    called = subject.variant.latents(subject.pipe, steps=STEPS, **really_at(subject.variant, scale))
    assert not torch.allclose(called, subject.stock, rtol=0.01)
    assert close(latents, called, start=float(subject.stock.abs().max()))


@every_variant
def test_at_scale_0_a_step_is_one_with_the_unconditional_half(subject, name):
    """An independent evaluation: the pipeline without guidance, called with the negative words."""
    row = subject.variant
    if row.guidance is None:
        pytest.skip("its scale is an input of the network, and there are no halves")
    if row.evaluations_at(0.0) == row.evaluations:
        pytest.skip("its prediction at scale 0 is not the unconditional half alone; see the replay")
    if name == "flux-controlnet-true-cfg":
        pytest.skip("its ControlNet is told the words of the call in both halves; see the replay")
    words = {"prompt": NEGATIVE} if row.prompted else {"class_labels": [1000]}
    alone = {**words, **row.at_scale(1.0), **picture_of(row, "u")}
    latents, stats, _ = subject.latents(Plain(base=Guidance(0.0)))
    called = row.latents(subject.pipe, steps=STEPS, **alone)
    assert stats.evaluations == stats.steps * row.evaluations_at(0.0)
    assert not torch.allclose(called, subject.stock, rtol=0.01)
    assert close(latents, called, start=float(subject.stock.abs().max()))


def two_items(row):
    """Arguments of a call for each of two unlike items, and of one call for both."""
    words = ("a cat", "bad"), ("two red dogs on a hill", "an ugly drawing")
    calls = []
    for seed, (prompt, negative) in enumerate(words):
        call = row.call(steps=STEPS, seed=seed + 5)
        if "prompt" in call:
            call["prompt"] = prompt
        if "negative_prompt" in call:
            call["negative_prompt"] = negative
        if "class_labels" in call:
            call["class_labels"] = [207 + seed]
        call.update({name: calls[0][name] for name in row.shared if calls})
        calls.append(call)
    return calls, together(*calls)


def again(generator):
    """Another generator that will draw the same."""
    if isinstance(generator, list):
        return [again(one) for one in generator]
    return torch.Generator().set_state(generator.get_state())


def drawn(row, pipe, call):
    with torch.no_grad():
        called = pipe(**{**call, "generator": again(call["generator"])})
    return torch.as_tensor(getattr(called, row.output))


@every_variant
def test_items_of_a_batch_are_drawn_as_each_would_be_alone(subject):
    """Two unlike ones, under a method that takes each half by itself and both.

    One step is reflected: each makes more of what rounding leaves, which is another in a batch.
    """
    row, pipe = subject.variant, subject.pipe
    alone, both = two_items(row)
    stock = [drawn(row, pipe, call) for call in alone]
    batch = drawn(row, pipe, both)
    assert len(batch) == 2
    assert not torch.allclose(batch[0], batch[1], rtol=0.01)
    method = W2SD(strong=Guidance(0.0), weak=Guidance(1.0), window=Window(steps=(1,)))
    with attach(pipe, method) as run:
        found = drawn(row, pipe, both)
        evaluations = run.stats.evaluations
        expected = [drawn(row, pipe, call) for call in alone]
    assert run.stats.evaluations == evaluations  # of a branch, however many items there are
    start = float(getattr(pipe.scheduler, "init_noise_sigma", 1.0))
    for index in range(2):
        assert close(batch[index], stock[index][0], start)
        assert close(found[index], expected[index][0], start)
        assert not torch.allclose(found[index], stock[index][0], rtol=0.01)


# ---- other words ---------------------------------------------------------------------------------

POSITIVE, NEGATIVE_ALONE = {"prompt": "a cat"}, {"negative_prompt": "ugly"}
BOTH = {"prompt": "a cat", "negative_prompt": "ugly"}


def words_of(*quick):
    every = POSITIVE, NEGATIVE_ALONE, BOTH
    marked = [pytest.param(w, marks=[] if w in quick else [pytest.mark.slow]) for w in every]
    return pytest.mark.parametrize("words", marked, ids=repr)


prompted_variants = pytest.mark.parametrize("name", [row.name for row in ROWS if row.prompted])


def takes(subject, words):
    return words.keys() <= inspect.signature(subject.pipe.__call__).parameters.keys()


def edit(words):
    return Prompt(words.get("prompt"), negative=words.get("negative_prompt"))


@prompted_variants
@words_of(NEGATIVE_ALONE, BOTH)
@pytest.mark.parametrize("called", ["with a negative prompt", "without"])
def test_a_prompt_is_what_the_pipeline_does_when_called_with_it(subject, words, called):
    row, pipe = subject.variant, subject.pipe
    if not takes(subject, words):
        pytest.skip("it takes no negative prompt")
    call = row.call(steps=STEPS)
    if called == "without":
        call.pop("negative_prompt", None)
    with attach(pipe, Plain(base=edit(words))):
        found = drawn(row, pipe, call)
    expected = drawn(row, pipe, {**call, **words})
    assert torch.equal(found, expected)
    if "prompt" in words:
        assert not torch.allclose(found, drawn(row, pipe, call), rtol=0.01)


@prompted_variants
@words_of(BOTH)
def test_a_prompt_pair_agrees_with_the_replay(subject, name, words):
    row, pipe = subject.variant, subject.pipe
    if replay.FAMILIES[name].residuals:
        pytest.skip("the replay's ControlNet has no words of its own")
    if not takes(subject, words):
        pytest.skip("it takes no negative prompt")
    if "prompt" not in words and row.guidance is None:
        pytest.skip("without guidance negative words say nothing")
    found, _, _ = subject.latents(W2SD(weak=edit(words)))
    expected = replay.replay(pipe, name, row.call(steps=STEPS), weak=replay.Role(prompt=words))
    assert not torch.allclose(found, subject.stock, rtol=0.01)
    assert close(found, expected, start=float(getattr(pipe.scheduler, "init_noise_sigma", 1.0)))
    compare(subject.before, fingerprint(pipe))


@pytest.mark.parametrize(
    "name",
    [pytest.param(row.name, marks=() if row.name in FIRST else pytest.mark.slow) for row in ROWS],
)
def test_equal_models_move_x_by_half_as_much_with_twice_the_steps(subject):
    """Strong = weak: what is left is the discretisation, of first order in the step.

    At a wrong level, or with a network told the wrong time, it would not go away.
    """
    sizes = []
    for steps in (10, 20):
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
