"""Each role really runs as it says: forward hooks look at the network's own inputs and weights."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import tiny
import torch

from w2sdiff import (
    W2SD,
    AutoGuidance,
    Checkpoint,
    Guidance,
    Lora,
    Plain,
    Prompt,
    Window,
    ZigZag,
    attach,
)
from w2sdiff.edits import Edits

STEPS = 6
SCALE = 5.5
LORA_PAIR = W2SD(
    strong=Guidance(1.0) | Lora("style", 0.8),
    weak=Guidance(1.0) | Lora("style", -1.5),
    base=Lora("style", 0.8),
)


@dataclass(frozen=True)
class Seen:
    """One call of a denoiser, as the network itself sees it."""

    module: torch.nn.Module
    x: torch.Tensor
    time: float
    words: torch.Tensor
    lora: float | None

    @property
    def batch(self):
        return len(self.x)


class Probe:
    """Forward hooks on UNets; they run inside the module, behind whatever a driver does to its
    calls.
    """

    def __init__(self, *unets):
        self.calls = []
        for unet in unets:
            unet.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, module, args, kwargs):
        sample, t = (*args, *(kwargs[k] for k in ("sample", "timestep")[len(args) :]))[:2]
        words = kwargs["encoder_hidden_states"]
        self.calls.append(Seen(module, sample.clone(), float(t), words.clone(), scaling(module)))

    @property
    def evaluations(self):
        return sum(call.batch for call in self.calls)


def scaling(unet, name="style"):
    """The weight of the adapter, read from the layers: the ratio to alpha / r that all of them
    share.
    """
    found = {
        layer.scaling[name] for layer in unet.modules() if name in getattr(layer, "scaling", {})
    }
    assert len(found) <= 1, f"layers disagree: {found}"
    return round(found.pop(), 9) if found else None


@pytest.fixture
def pipe(tmp_path):
    pipe = tiny.build("sdxl")
    tiny.add_lora(pipe, "sdxl", tmp_path)
    return pipe


def run(pipe, method, steps=STEPS, scale=SCALE, **changes):
    with attach(pipe, method) as run:
        tiny.latents(pipe, "sdxl", steps=steps, guidance_scale=scale, **changes)
    return run.stats


def words(pipe, prompt=tiny.PROMPT, negative=tiny.NEGATIVE):
    """(conditional, unconditional) embeddings as the pipeline makes them."""
    with torch.no_grad():
        c, u, *_ = pipe.encode_prompt(prompt, negative_prompt=negative)
    return c, u


def counted(probe, stats, method):
    assert stats.calls == len(probe.calls)
    assert stats.evaluations == probe.evaluations == method.cost(STEPS, SCALE)


def test_lora_pair(pipe):
    probe = Probe(pipe.unet)
    stats = run(pipe, LORA_PAIR)
    reflected = [(1, 0.8), (1, -1.5), (2, 0.8)]
    assert [(c.batch, c.lora) for c in probe.calls] == reflected * (STEPS - 1) + [(2, 0.8)]
    counted(probe, stats, LORA_PAIR)
    assert stats.evaluations == 2 * (STEPS - 1) + 2 * STEPS
    assert LORA_PAIR.cost(50, SCALE) == 198
    c, u = words(pipe)
    for strong, weak, base in zip(*[iter(probe.calls)] * 3, strict=False):
        assert torch.equal(strong.words, c)
        assert torch.equal(weak.words, c)
        assert torch.equal(base.words, torch.cat([u, c]))
        assert strong.time == weak.time == base.time
        assert not torch.equal(strong.x, weak.x)


def test_guidance_pair_computes_one_half_of_the_unconditional_model(pipe):
    probe, method = Probe(pipe.unet), ZigZag(strong=Guidance(SCALE), weak=Guidance(0.0))
    stats = run(pipe, method)
    assert [c.batch for c in probe.calls] == [2, 1, 2] * (STEPS - 1) + [2]
    counted(probe, stats, method)
    assert method.cost(50, SCALE) == 247
    _, u = words(pipe)
    assert all(torch.equal(c.words, u) for c in probe.calls if c.batch == 1)


def test_base_role_not_given_is_the_pipeline_as_called(pipe):
    pipe.set_adapters("style", 0.3)
    probe = Probe(pipe.unet)
    run(pipe, W2SD(weak=Lora("style", -1.5)))
    assert [c.lora for c in probe.calls] == [0.3, -1.5, 0.3] * (STEPS - 1) + [0.3]


def test_a_weight_changed_between_two_calls_of_one_attach_is_kept(pipe):
    probe = Probe(pipe.unet)
    with attach(pipe, W2SD(weak=Lora("style", -1.5))):
        tiny.latents(pipe, "sdxl", steps=2)
        pipe.set_adapters("style", 0.25)
        tiny.latents(pipe, "sdxl", steps=2)
    assert [c.lora for c in probe.calls] == [1.0, -1.5, 1.0, 1.0, 0.25, -1.5, 0.25, 0.25]
    assert scaling(pipe.unet) == 0.25


def test_checkpoint_in_memory(pipe):
    other = tiny.build_denoiser("sdxl")
    probe, method = Probe(pipe.unet, other), W2SD(weak=Checkpoint(other))
    stats = run(pipe, method)
    ran_other = [c.module is other for c in probe.calls]
    assert ran_other == [False, True, False] * (STEPS - 1) + [False]
    counted(probe, stats, method)


def test_checkpoint_on_disk(pipe, tmp_path):
    other = tiny.build_denoiser("sdxl")
    other.save_pretrained(tmp_path / "weak")
    with attach(pipe, W2SD(weak=Checkpoint(other))):
        expected = tiny.latents(pipe, "sdxl")
    components = dict(pipe.components)
    with attach(pipe, W2SD(weak=Checkpoint(tmp_path / "weak"))):
        assert torch.equal(tiny.latents(pipe, "sdxl"), expected)
    with attach(pipe, W2SD(weak=Checkpoint(str(tmp_path / "weak")))):
        assert torch.equal(tiny.latents(pipe, "sdxl"), expected)
    assert pipe.components == components


def test_checkpoint_takes_the_dtype_of_the_pipelines_network(tmp_path):
    pipe, other = tiny.build("sdxl", dtype=torch.bfloat16), tiny.build_denoiser("sdxl")
    other.save_pretrained(tmp_path / "weak")
    probe = []
    for weak in (Checkpoint(other), Checkpoint(tmp_path / "weak")):
        with attach(pipe, W2SD(weak=weak)):
            probe.append(tiny.latents(pipe, "sdxl"))
    assert probe[0].dtype == torch.bfloat16
    assert torch.equal(*probe)


def test_prompt_pair(pipe):
    probe, method = Probe(pipe.unet), W2SD(strong=Prompt("a cat, in the rain"))
    stats = run(pipe, method)
    c, u = words(pipe)
    refined, _ = words(pipe, "a cat, in the rain")
    assert not torch.equal(c, refined)
    for i, call in enumerate(probe.calls):
        strong = i % 3 == 0 and i < 3 * (STEPS - 1)
        assert torch.equal(call.words, torch.cat([u, refined if strong else c])), i
    counted(probe, stats, method)


def test_negative_prompt_pair(pipe):
    probe = Probe(pipe.unet)
    run(pipe, W2SD(weak=Prompt(negative="sharp, detailed")), steps=2)
    c, u = words(pipe)
    other, _ = words(pipe, "sharp, detailed")
    expected = [torch.cat(pair) for pair in ((u, c), (other, c), (u, c), (u, c))]
    assert all(torch.equal(call.words, e) for call, e in zip(probe.calls, expected, strict=True))


def test_prompt_per_item_from_a_template_and_from_a_column(pipe):
    prompts, refined = ["a cat", "a dog"], ["a cat at night", "a dog at night"]
    for prompt, columns in (
        (Prompt("{prompt} at night"), None),
        (Prompt("@refined"), {"refined": refined}),
    ):
        probe = Probe(pipe.unet)
        with attach(pipe, W2SD(strong=prompt | Guidance(1.0)), columns=columns):
            tiny.latents(pipe, "sdxl", steps=2, prompt=prompts, negative_prompt=["", ""])
        assert torch.equal(probe.calls[0].words, words(pipe, refined, ["", ""])[0])
        assert torch.equal(probe.calls[1].words[2:], words(pipe, prompts, ["", ""])[0])


def test_prompt_embeddings(pipe):
    with torch.no_grad():
        c, _, pooled, _ = pipe.encode_prompt("a cat", negative_prompt="")
    given = Prompt(embeddings={"prompt_embeds": c, "pooled_prompt_embeds": pooled})
    results = []
    for prompt in (given, Prompt("a cat")):
        with attach(pipe, W2SD(strong=prompt)):
            results.append(tiny.latents(pipe, "sdxl"))
    torch.testing.assert_close(*results, rtol=0, atol=1e-5)


def test_combination(pipe):
    other = tiny.build_denoiser("sdxl")
    probe = Probe(pipe.unet, other)
    method = W2SD(
        strong=Lora("style", 1.5) | Guidance(1.0) | Prompt("a cat"),
        weak=Checkpoint(other) | Guidance(0.0),
        base=Lora("style", 0.8) | Guidance(3.0),
    )
    stats = run(pipe, method)
    assert [(c.module is other, c.batch, c.lora) for c in probe.calls[:3]] == [
        (False, 1, 1.5),
        (True, 1, None),
        (False, 2, 0.8),
    ]
    assert torch.equal(probe.calls[0].words, words(pipe, "a cat")[0])
    assert torch.equal(probe.calls[1].words, words(pipe)[1])
    counted(probe, stats, method)


@pytest.mark.parametrize(
    "method",
    [
        Plain(),
        Plain(Guidance(1.0)),
        W2SD(weak=Guidance(1.0), times=2),
        W2SD(weak=Guidance(1.0), window=Window(0.3, 0.7)),
        W2SD(weak=Guidance(1.0), window=Window(steps=(0, 4))),
        AutoGuidance(weak=Lora("style", -1.5)),
        AutoGuidance(strong=Guidance(1.0), weak=Guidance(1.0) | Lora("style", -1.0), base=Edits()),
        AutoGuidance(weak=Lora("style", -1.5), window=Window(0.0, 0.5)),
        AutoGuidance(weak=Lora("style", -1.5), scale=1.0),
    ],
    ids=repr,
)
@pytest.mark.parametrize("scale", [SCALE, 1.0], ids=["guided", "not guided"])
def test_counted_evaluations_equal_the_announced_cost(pipe, method, scale):
    probe = Probe(pipe.unet)
    stats = run(pipe, method, scale=scale)
    assert stats.evaluations == probe.evaluations == method.cost(STEPS, scale)


@pytest.mark.parametrize("branches", [(1.0, 2), (0.0, 2), (2.0, 4)], ids=str)
def test_flux_with_true_guidance_skips_the_network_call_it_does_not_need(branches):
    """Two calls per guided request; a weak role at scale 1 or 0 asks for one of them."""
    scale, calls = branches
    pipe, seen = tiny.build("flux-true-cfg"), []
    pipe.transformer.register_forward_pre_hook(lambda *_: seen.append(1))
    method = W2SD(weak=Guidance(scale))
    with attach(pipe, method) as run:
        tiny.latents(pipe, "flux-true-cfg", steps=2)
    weak = calls // 2
    assert len(seen) == run.stats.calls == run.stats.evaluations == 2 + weak + 2 + 2
    assert method.cost(2, 4.0) == len(seen)


def test_flux_embedded_guidance_is_an_input():
    pipe, seen = tiny.build("flux"), []
    pipe.transformer.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(float(kwargs["guidance"][0])), with_kwargs=True
    )
    with attach(pipe, ZigZag(strong=Guidance(5.0), weak=Guidance(1.5))):
        tiny.latents(pipe, "flux", steps=2)
    assert seen == [5.0, 1.5, 3.5, 3.5]


def test_a_note_says_when_strong_and_base_differ_in_weights(pipe):
    assert not run(pipe, LORA_PAIR, steps=2).notes
    notes = run(pipe, W2SD(strong=Lora("style", 0.8), weak=Lora("style", -1.5)), steps=2).notes
    assert any("base" in note and "strong" in note for note in notes)


class TestReflection:
    @pytest.mark.parametrize(
        "family",
        [
            "sdxl",
            "sd3",
            "flux-true-cfg",
            pytest.param("sd", marks=pytest.mark.slow),
            pytest.param("pixart", marks=pytest.mark.slow),
        ],
    )
    def test_with_equal_models_the_residual_halves_when_the_steps_double(self, family):
        """Down and up again differ by the change of the network over one step: first order in h."""
        pipe = tiny.build(family)
        sizes = []
        for steps in (10, 20, 40):
            with attach(pipe, W2SD()) as run:
                tiny.latents(pipe, family, steps=steps)
            reflected = run.stats.reflection
            assert len(reflected) == steps
            assert all(reflected[:-1])
            assert reflected[-1] == 0.0
            sizes.append(sum(reflected) / (steps - 1))
        for coarse, fine in pairwise(sizes):
            assert 0.35 < fine / coarse < 0.65, sizes

    def test_size_is_the_change_of_the_latents_relative_to_the_step(self, pipe):
        """Measured at the network's inputs: DDIM shows it the latents as they are."""
        from diffusers import DDIMScheduler

        pipe.scheduler = DDIMScheduler(**tiny.SD_NOISE, clip_sample=False, set_alpha_to_one=False)
        probe = Probe(pipe.unet)
        stats = run(pipe, W2SD(weak=Guidance(1.0)), steps=3)
        shown = [c.x[:1] for c in probe.calls]
        for i in (0, 1):
            x, _, reflected, after = shown[3 * i : 3 * i + 4]
            expected = (reflected - x).abs().mean() / (after - x).abs().mean()
            assert stats.reflection[i] == pytest.approx(float(expected), rel=1e-5)


def test_a_step_that_ends_with_other_words_leaves_the_call_its_own():
    """The last request of AutoGuidance is the weak one's; the next strong one is as called."""
    pipe = tiny.build("sd")
    seen = []

    def look(_pipe, _i, _t, kwargs):
        seen.append(kwargs["prompt_embeds"].clone())
        return {}

    words = {"callback_on_step_end": look, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with attach(pipe, AutoGuidance(weak=Prompt("something else"), scale=1.5)):
        two = tiny.latents(pipe, "sd", **words)
    with attach(pipe, AutoGuidance(weak=Prompt("something else"), scale=1.5, base=Edits())):
        three = tiny.latents(pipe, "sd", **words)  # ends with the base, which has no words
    torch.testing.assert_close(two, three, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(one, seen[0]) for one in seen)
