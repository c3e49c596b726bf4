"""`Recorded`: it changes nothing, and what it says is what happened."""

from __future__ import annotations

import pytest
import tiny
import torch
from noise_models import Scaled, close

from w2sdiff import W2SD, AutoGuidance, Guidance, Lora, Plain, UnsupportedError, Window, attach
from w2sdiff.core2 import NoiseModel
from w2sdiff.core2.record import Recorded
from w2sdiff.edits import LearnedGuidance
from w2sdiff.methods import Core2
from w2sdiff.testing.replay import remix

STEPS = 4
METHODS = {
    "plain": Plain(),
    "plain at another scale": Plain(Guidance(2.0)),
    "w2sd": W2SD(weak=Guidance(1.5)),
    "w2sd in a window": W2SD(strong=Guidance(1.0), weak=Guidance(0.0), window=Window(0.0, 0.5)),
    "autoguidance": AutoGuidance(strong=Guidance(3.0), weak=Guidance(0.0), scale=1.5),
}


@pytest.fixture(
    params=[
        *("sd", "flux-true-cfg", "pixart"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("sdxl", "sd3")),
    ]
)
def family(request):
    return request.param


def recorded(pipe, family, method, steps=None, **changes):
    """Latents, the recorded steps, and the statistics."""
    recording = Recorded(method, steps)
    with attach(pipe, recording) as run:
        found = tiny.latents(pipe, family, steps=STEPS, **changes)
    [takes] = recording.take()
    assert not recording.take()
    return found, takes, run.stats


@pytest.mark.parametrize("name", METHODS)
def test_pictures_stay_what_they_are_bit_for_bit(family, name):
    method, pipe = METHODS[name], tiny.build(family)
    with attach(pipe, method) as run:
        expected = tiny.latents(pipe, family, steps=STEPS)
        cost = run.stats.evaluations
    found, takes, stats = recorded(pipe, family, method)
    assert torch.equal(found, expected)
    assert len(takes) == STEPS
    assert stats.evaluations == cost + (0 if name == "plain" else STEPS)


def received(pipe):
    """(model_output, sample) of every step of the pipeline's own scheduler."""
    import inspect

    got, own = [], pipe.scheduler.step

    def step(model_output, timestep, sample, *args, **kwargs):
        got.append((model_output.clone(), sample.clone()))
        return own(model_output, timestep, sample, *args, **kwargs)

    step.__signature__ = inspect.signature(own)
    pipe.scheduler.step = step
    return got


def test_of_plain_guidance_the_target_is_what_the_scheduler_receives(family):
    pipe, halves = tiny.build(family), []
    got = received(pipe)
    _, takes, _ = recorded(pipe, family, Plain())
    del pipe.scheduler.step
    scale = {"sd3": 4.0, "flux-true-cfg": 4.0}.get(family, 5.0)

    def mix(c, u, _i, _n):
        halves.append((c, u))
        return u + scale * (c - u)

    remix(pipe, family, tiny.call_kwargs(family, steps=STEPS), mix)
    for take, (output, sample), (c, u) in zip(takes, got, halves, strict=True):
        assert torch.equal(take.target, output[:, : take.c.shape[1]] if output.ndim > 3 else output)
        assert take.guidance_scale == scale
        close(take.c, c, scheduler=pipe.scheduler)
        close(take.target, u + scale * (c - u), scheduler=pipe.scheduler)
        # The network's input: Karras-type latents are brought to unit variance.
        shown = sample * (take.given.x.abs().max() / sample.abs().max())
        close(take.given.x, shown, scheduler=pipe.scheduler)


def test_guidance_rescale_is_in_the_target():
    pipe = tiny.build("sd")
    got = received(pipe)
    _, takes, _ = recorded(pipe, "sd", Plain(), guidance_rescale=0.7)
    for take, (output, _) in zip(takes, got, strict=True):
        assert torch.equal(take.target, output)


class Remembers(NoiseModel):
    """What was recorded, step by step."""

    def __init__(self, takes):
        super().__init__()
        self.takes = takes
        self.largest = 0.0

    def forward(self, c, given):
        take = self.takes[given.step]
        self.largest = max(self.largest, float((c - take.c).abs().max()))
        return take.target.to(c.dtype)


FIRST_ORDER = ["sd", "sdxl", "flux-true-cfg", pytest.param("sd3", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "plain"])
@pytest.mark.parametrize("family", FIRST_ORDER)
def test_a_model_of_the_effective_prediction_draws_what_the_method_draws(family, name):
    """With first-order schedulers: DDIM, Euler, and Euler on straight paths."""
    pipe = tiny.build(family)
    expected, takes, _ = recorded(pipe, family, METHODS[name])
    model = Remembers(takes)
    with attach(pipe, Core2(model, slow_until=0)) as run:
        found = tiny.latents(pipe, family, steps=STEPS)
    assert run.stats.evaluations == STEPS
    close(found, expected, scheduler=pipe.scheduler)
    size = max(float(take.c.abs().max()) for take in takes)
    assert model.largest <= 1e-4 * max(1.0, size), "it was not at the same latents on the way"
    assert not torch.allclose(found, tiny.latents(pipe, family, steps=STEPS), rtol=0.01)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_the_same_for_every_kind_of_prediction(scheduler, prediction):
    import diffusers

    pipe = tiny.build("sd")
    more = {"clip_sample": False} if scheduler == "DDIMScheduler" else {}
    pipe.scheduler = getattr(diffusers, scheduler)(
        **tiny.SD_NOISE, prediction_type=prediction, **more
    )
    expected, takes, _ = recorded(pipe, "sd", W2SD(weak=Guidance(1.0)))
    with attach(pipe, Core2(Remembers(takes), slow_until=0)):
        found = tiny.latents(pipe, "sd", steps=STEPS)
    # What is stepped with is found by a division by the step's own coefficient, of which the
    # smallest, near the end, loses that many digits more.
    close(found, expected, scheduler=pipe.scheduler, by=1e-4)
    assert {take.prediction for take in takes} == {
        {"v_prediction": "v"}.get(prediction, prediction)
    }


def test_the_conditional_prediction_is_that_at_the_latents_of_the_step_under_base(tmp_path):
    """Of W2SD it is asked for; its network is the one that takes the real step."""
    pipe = tiny.build("sdxl")
    tiny.add_lora(pipe, "sdxl", tmp_path)
    base = Lora("style", -0.7)
    method = W2SD(weak=Guidance(1.0), base=base | Guidance(2.0))
    _, takes, _ = recorded(pipe, "sdxl", method)
    with attach(pipe, Plain(base | Guidance(2.0))):
        first, under = tiny.latents(pipe, "sdxl", steps=STEPS), None
    under = Recorded(Plain(base))
    with attach(pipe, under):
        tiny.latents(pipe, "sdxl", steps=STEPS)
    [of_base] = under.take()
    close(takes[0].c, of_base[0].c, scheduler=pipe.scheduler)
    as_called = recorded(pipe, "sdxl", Plain())[1]
    assert not torch.allclose(takes[0].c, as_called[0].c, rtol=0.01)
    assert first.shape == takes[0].c.shape


def test_a_noise_model_in_the_base_is_no_part_of_the_conditional_prediction():
    """What is distilled then is the noise model; what is seen, the network."""
    pipe = tiny.build("sd")
    plain = recorded(pipe, "sd", Plain())[1]
    takes = recorded(pipe, "sd", Plain(LearnedGuidance(Scaled(0.5))))[1]
    close(takes[0].c, plain[0].c)
    close(takes[0].target, 0.5 * plain[0].c)
    takes = recorded(pipe, "sd", Core2(Scaled(0.5), slow_until=0))[1]
    close(takes[0].c, plain[0].c)
    close(takes[0].target, 0.5 * plain[0].c)


def test_only_the_wanted_steps_are_kept():
    pipe = tiny.build("sd")
    whole = recorded(pipe, "sd", W2SD(weak=Guidance(1.0)))[1]
    some = recorded(pipe, "sd", W2SD(weak=Guidance(1.0)), steps=(0, 3))[1]
    assert [take.given.step for take in some] == [0, 3]
    assert torch.equal(some[1].target, whole[3].target)
    assert torch.equal(some[1].c, whole[3].c)
    assert recorded(pipe, "sd", Plain(), steps=())[1] == []


def test_a_call_that_failed_leaves_nothing_behind():
    pipe, recording = tiny.build("sd"), Recorded(Plain())

    def stop(_pipe, i, _t, kwargs):
        if i == 1:
            raise RuntimeError
        return kwargs

    with attach(pipe, recording):
        with pytest.raises(RuntimeError):
            tiny.latents(pipe, "sd", callback_on_step_end=stop)
        tiny.latents(pipe, "sd", steps=3)
        tiny.latents(pipe, "sd", steps=2)
    assert [len(takes) for takes in recording.take()] == [3, 2]


def test_every_prompt_has_its_own_rows():
    pipe = tiny.build("sd")
    prompts = ["a cat", "a red dog"]
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    both = recorded(pipe, "sd", Plain(), prompt=prompts, negative_prompt=["", ""], latents=noise)
    for i, prompt in enumerate(prompts):
        one = recorded(
            pipe, "sd", Plain(), prompt=prompt, negative_prompt="", latents=noise[i : i + 1]
        )
        for whole, single in zip(both[1], one[1], strict=True):
            close(single.c, whole.c[i : i + 1])
            close(single.target, whole.target[i : i + 1])
            close(single.given.text, whole.given.text[i : i + 1])


@pytest.mark.parametrize(
    ("family", "changes"), [("sd", {"guidance_scale": 1.0}), ("flux", {}), ("pixart", None)]
)
@pytest.mark.parametrize("method", [Plain(), W2SD(strong=Guidance(1.0))], ids=["plain", "w2sd"])
def test_without_guidance_there_is_nothing_to_learn(family, changes, method):
    pipe = tiny.build(family)
    changes = {"guidance_scale": 1.0} if changes is None else changes
    if family == "flux" and method != Plain():
        method = W2SD()
    with (
        attach(pipe, Recorded(method)),
        pytest.raises(UnsupportedError, match="off at this step") as error,
    ):
        tiny.latents(pipe, family, **changes)
    assert "\n" not in str(error.value)
