"""`Plain` and an empty window go through the driver, and leave no trace in the latents: bit for
bit.

That `Plain` is the stock pipeline is tested for every variant in `tests/families`; here is what one
does with a call beyond that. Each test also counts what the driver answered, so that a driver that
does nothing fails.
"""

from __future__ import annotations

import pytest
import tiny
import torch

from w2sdiff import W2SD, Guidance, Plain, Prompt, Window, attach

STEPS = 4
METHODS = {
    "plain": Plain(),
    "empty window": W2SD(weak=Guidance(1.0), window=Window(0.0, 0.0)),
}


def networks_called_per_step(family):
    return 2 if family == "flux-true-cfg" else 1


def branches_per_step(family):
    return 1 if family == "flux" else 2


@pytest.fixture(params=tiny.FAMILIES)
def family(request):
    return request.param


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def both_ways(family, method, **changes):
    """Latents of the stock pipeline, of the same call inside `attach`, and the statistics."""
    pipe = tiny.build(family)
    stock = tiny.latents(pipe, family, steps=STEPS, **changes)
    with attach(pipe, method) as run:
        driven = tiny.latents(pipe, family, steps=STEPS, **changes)
        stats = run.stats
    assert torch.equal(tiny.latents(pipe, family, steps=STEPS, **changes), stock), "after"
    return stock, driven, stats


def test_an_empty_window_leaves_the_latents_bit_identical(family):
    stock, driven, stats = both_ways(family, METHODS["empty window"])
    assert torch.equal(driven, stock)
    assert stats.calls == STEPS * networks_called_per_step(family)
    assert stats.evaluations == STEPS * branches_per_step(family)
    assert stats.seconds > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"num_images_per_prompt": 2},
        {"prompt": ["a cat", "a red dog"], "negative_prompt": ["bad", "worse"]},
    ],
    ids=["two images per prompt", "a batch of prompts"],
)
def test_batches(family, changes):
    if family == "flux":
        changes.pop("negative_prompt", None)
    stock, driven, stats = both_ways(family, Plain(), **changes)
    assert len(stock) == 2
    assert not torch.equal(stock[0], stock[1])
    assert torch.equal(driven, stock)
    assert stats.calls == STEPS * networks_called_per_step(family)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_guidance_rescale(family, method):
    stock, driven, stats = both_ways(family, method, guidance_rescale=0.7)
    assert not torch.equal(stock, both_ways(family, method)[0]), "rescaling does nothing here"
    assert torch.equal(driven, stock)
    assert stats.calls == STEPS


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "pixart"])
def test_guidance_off(family, method):
    stock, driven, stats = both_ways(family, method, guidance_scale=1.0)
    assert torch.equal(driven, stock)
    assert (stats.calls, stats.evaluations) == (STEPS, STEPS)


class Diary:
    """A callback that writes down what it is shown, in whichever form the pipeline offers."""

    def __init__(self, family):
        self.family = family
        self.entries = []

    def arguments(self):
        if self.family == "pixart":  # only the legacy form exists there
            return {"callback": self.legacy, "callback_steps": 1}
        return {"callback_on_step_end": self}

    def __call__(self, _pipe, i, t, kwargs):
        self.legacy(i, t, kwargs["latents"])
        return kwargs

    def legacy(self, i, t, latents):
        self.entries.append((i, float(t), latents.clone()))


def test_callbacks_see_the_same_in_the_same_order(family, method):
    pipe = tiny.build(family)
    stock, driven = Diary(family), Diary(family)
    a = tiny.latents(pipe, family, steps=STEPS, **stock.arguments())
    with attach(pipe, method) as run:
        b = tiny.latents(pipe, family, steps=STEPS, **driven.arguments())
    assert torch.equal(a, b)
    assert run.stats.calls == STEPS * networks_called_per_step(family)
    assert [entry[:2] for entry in driven.entries] == [entry[:2] for entry in stock.entries]
    assert len(stock.entries) == STEPS
    for (_, _, x), (_, _, y) in zip(stock.entries, driven.entries, strict=True):
        assert torch.equal(x, y)


def cut_off_guidance(at):
    """The documented recipe: guidance off after step `at`."""

    def callback(pipe, i, t, kwargs):
        if i == at:
            pipe._guidance_scale = 1.0
            kwargs = {
                name: value.chunk(2)[-1] for name, value in kwargs.items() if name != "latents"
            }
        return kwargs

    return callback


@pytest.mark.parametrize(
    ("family", "inputs"),
    [
        ("sd", ["prompt_embeds"]),
        ("sdxl", ["prompt_embeds", "add_text_embeds", "add_time_ids"]),
        ("sd3", ["prompt_embeds", "pooled_prompt_embeds"]),
    ],
)
def test_a_callback_may_switch_guidance_off_on_the_way(family, inputs):
    stock, driven, stats = both_ways(
        family,
        Plain(),
        callback_on_step_end=cut_off_guidance(at=1),
        callback_on_step_end_tensor_inputs=["latents", *inputs],
    )
    assert not torch.equal(stock, both_ways(family, Plain())[0])
    assert torch.equal(driven, stock)
    assert stats.evaluations == 2 * 2 + 2 * 1


def test_a_callback_may_interrupt(method):
    def interrupt(pipe, i, t, kwargs):
        pipe._interrupt = i == 1
        return kwargs

    stock, driven, stats = both_ways("sdxl", method, callback_on_step_end=interrupt)
    assert torch.equal(driven, stock)
    assert stats.calls == 2


@pytest.mark.parametrize("call", [4, 5])
def test_an_interrupt_between_the_requests_of_a_step_leaves_its_latents(call):
    """Set from elsewhere in the middle of step 1, whose first request is network call 4."""
    pipe = tiny.build("sdxl")
    seen = []

    def interrupt(*_):
        seen.append(True)
        pipe._interrupt = len(seen) == call

    def reflected(**changes):
        with attach(pipe, W2SD(weak=Prompt("a cat"))):
            return tiny.latents(pipe, "sdxl", steps=3, **changes)

    kept = Diary("sdxl")
    reflected(**kept.arguments())
    hook = pipe.unet.register_forward_hook(interrupt)
    found = reflected()
    hook.remove()
    assert len(seen) == call
    assert torch.equal(found, kept.entries[0][2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes(dtype):
    pipe = tiny.build("sdxl", dtype=dtype)
    stock = tiny.latents(pipe, "sdxl", steps=2)
    with attach(pipe, Plain()) as run:
        driven = tiny.latents(pipe, "sdxl", steps=2)
    assert driven.dtype == stock.dtype
    assert torch.equal(driven, stock)
    assert run.stats.calls == 2


def test_each_call_resets_the_statistics():
    pipe = tiny.build("sd")
    with attach(pipe, Plain()) as run:
        tiny.latents(pipe, "sd", steps=5)
        assert run.stats.calls == 5
        tiny.latents(pipe, "sd", steps=3)
        assert (run.stats.calls, run.stats.evaluations) == (3, 6)


def test_a_list_of_generators():
    seeds = lambda: [torch.Generator().manual_seed(s) for s in (3, 4)]  # noqa: E731
    pipe = tiny.build("sdxl")
    call = {"prompt": ["a cat", "a dog"], "negative_prompt": ["", ""]}
    stock = tiny.latents(pipe, "sdxl", generator=seeds(), **call)
    with attach(pipe, Plain()):
        assert torch.equal(tiny.latents(pipe, "sdxl", generator=seeds(), **call), stock)


def test_images_come_out_as_from_the_stock_pipeline():
    """Not only latents: the decoder runs inside the context as well."""
    pipe = tiny.build("sd")
    stock = pipe(**tiny.call_kwargs("sd", output_type="pt")).images
    with attach(pipe, Plain()):
        driven = pipe(**tiny.call_kwargs("sd", output_type="pt")).images
    assert stock.shape == (1, 3, 16, 16)
    assert torch.equal(driven, stock)
