"""What is special about single families: scales that change on the way, other batches, other steps.

What holds for all of them (plain is plain, counts, a guidance edit is the guidance scale) is the
contract suite's; here is what a row of the table does not say.
"""

from __future__ import annotations

import pytest
import torch

from w2sdiff import (
    W2SD,
    Checkpoint,
    Guidance,
    Plain,
    Prompt,
    UnsupportedError,
    Window,
    ZigZag,
    attach,
)
from w2sdiff.edits.base import Context
from w2sdiff.levels import Levels
from w2sdiff.testing import VARIANTS, variants
from w2sdiff.testing.replay import Role, replay

variants()  # fills the table
STEPS = 4


def at(scale):
    """The scale in every role, and nothing reflected: a run at that scale."""
    edit = Guidance(scale)
    return W2SD(strong=edit, weak=edit, base=edit, window=Window(stop=0.0))


def driven(name, pipe, method, **changes):
    """(latents, statistics) of a call under a method."""
    with attach(pipe, method) as run:
        found = VARIANTS[name].latents(pipe, **changes)
        return found, run.stats


def is_the_scale(name, pipe, scale, **changes):
    """A guidance edit is the same as calling the pipeline with that scale, and not nothing."""
    variant = VARIANTS[name]
    found, _ = driven(name, pipe, at(scale), **changes)
    really = variant.latents(pipe, **changes, **variant.at_scale(scale))
    size = max(1.0, float(really.abs().max()))
    assert float((found - really).abs().max()) <= 1e-5 * size
    assert not torch.allclose(found, variant.latents(pipe, **changes), rtol=0.01)


def agrees(name, pipe, method, /, *, changes=None, **roles):
    """The driver and the replay draw the same latents."""
    variant, changes = VARIANTS[name], changes or {}
    found, _ = driven(name, pipe, method, **changes)
    replayed = replay(pipe, name, variant.call(steps=STEPS, **changes), **roles)
    size = max(1.0, float(replayed.abs().max()))
    assert float((found - replayed).abs().max()) <= 1e-5 * size
    assert not torch.allclose(found, variant.latents(pipe, **changes), rtol=0.01)


# --- pairs of other kinds, for every family -------------------------------------------------------

NEW = (
    *("animatediff", "animatediff-xl", "cogvideox", "cogvideox-dpm", "hidream", "hunyuan-dit"),
    *("ltx", "pixart-alpha", "qwen-image", "sana", "wan-2.1", "wan-2.2", "wan-i2v", "z-image"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*NEW, "dit"} - {"wan-2.2"}))
def test_a_checkpoint_pair(name):
    other = VARIANTS[name].network(VARIANTS[name].build(1))
    agrees(name, VARIANTS[name].build(), W2SD(weak=Checkpoint(other)), weak=Role(module=other))


# --- CogVideoX ------------------------------------------------------------------------------------


def test_the_dynamic_scale_is_known_before_the_loop_sets_it():
    name = "cogvideox-dynamic"
    pipe, set_by_the_loop, foreseen = VARIANTS[name].build(), [], []

    def note(pipe, i, t, kwargs):
        set_by_the_loop.append(pipe.guidance_scale)
        return kwargs

    class Spy(Guidance):
        def halves(self, c, u, context):
            foreseen.append(context.guidance_scale)
            return super().halves(c, u, context)

    spy = W2SD(base=Spy(3.0), window=Window(stop=0.0))
    driven(name, pipe, spy, callback_on_step_end=note)
    assert foreseen == set_by_the_loop
    assert len({round(scale, 3) for scale in foreseen}) == STEPS


@pytest.mark.parametrize("s", [1.0, 1.001, 1.3])
def test_a_scale_close_to_one_is_not_divided_by(s):
    """Dynamic guidance comes down to 1; in half precision a huge u' would be infinite."""
    context = Context(pipe=None, denoisers=(), tap=lambda _: None, guidance_scale=s)
    draw = torch.Generator().manual_seed(0)
    c, u = (torch.randn(2, 100, generator=draw).half() for _ in range(2))
    wanted = u.double() + 5.0 * (c.double() - u.double())
    c2, u2 = (half.double() for half in Guidance(5.0).halves(c, u, context))
    assert torch.allclose(u2 + s * (c2 - u2), wanted, atol=0.05)


def test_dpm_keeps_the_history_of_its_real_steps():
    """Its `step` takes the last step's x0 beside the latents and returns this one's."""
    pipe = VARIANTS["cogvideox-dpm"].build()
    agrees("cogvideox-dpm", pipe, W2SD(weak=Guidance(1.5)), weak=Role(guidance=1.5))


# --- Wan ------------------------------------------------------------------------------------------


def wan22(**changes):
    """Which transformer was called, in order, under a method; at the timesteps 999, 899, 749, 499.

    The boundary is at 875.
    """
    pipe, spoke = VARIANTS["wan-2.2"].build(), []
    for name in ("transformer", "transformer_2"):
        getattr(pipe, name).register_forward_hook(lambda *_, name=name: spoke.append(name))
    method = W2SD(strong=Guidance(1.0), weak=Guidance(1.0), base=Guidance(1.0), **changes)
    driven("wan-2.2", pipe, method)
    return spoke


def test_wan_22_asks_the_transformer_of_the_timestep_it_tells():
    first, second = "transformer", "transformer_2"
    assert wan22() == [first] * 3 * 2 + [second] * (3 + 1)
    # Told the timestep of the level its latents are at, the weak model is the other transformer.
    told_next = [first] * 3 + [first, second, first] + [second] * (3 + 1)
    assert wan22(weak_time="next") == told_next


def test_wan_22_has_two_scales():
    pipe = VARIANTS["wan-2.2"].build()
    agrees("wan-2.2", pipe, W2SD(weak=Guidance(1.5)), weak=Role(guidance=1.5))


def test_wan_22_without_guidance_below_the_boundary():
    """At scale 1 the unconditional half does not count, so that nothing can be made of it."""
    pipe = VARIANTS["wan-2.2"].build()
    changes = {"guidance_scale_2": 1.0}
    found, stats = driven("wan-2.2", pipe, W2SD(weak=Guidance(1.0)), **changes)
    assert stats.evaluations == 2 * (STEPS + STEPS - 1) + (STEPS - 1)
    stock = VARIANTS["wan-2.2"].latents(pipe, **changes)
    assert not torch.equal(found, stock)
    with pytest.raises(UnsupportedError, match="guidance_scale_2"):
        driven("wan-2.2", pipe, W2SD(weak=Guidance(2.0)), **changes)
    assert torch.equal(VARIANTS["wan-2.2"].latents(pipe, **changes), stock)


def test_wan_22_has_two_checkpoints(tmp_path):
    """A pipeline's folder brings one network for each side of the boundary, one network is both."""
    variant, other, loaded = VARIANTS["wan-2.2"], VARIANTS["wan-2.2"].build(seed=1), {}
    for name in ("transformer", "transformer_2"):
        network = getattr(other, name)
        network.save_pretrained(tmp_path / name)
        loaded[name] = type(network).from_pretrained(tmp_path / name)  # rounds as what is read
    (tmp_path / "model_index.json").write_text("{}")
    for source, second in (tmp_path, "transformer_2"), (tmp_path / "transformer", "transformer"):
        pipe, expected = variant.build(), variant.build()
        stock = variant.latents(pipe)
        expected.transformer, expected.transformer_2 = loaded["transformer"], loaded[second]
        everywhere = Checkpoint(source)
        found, _ = driven("wan-2.2", pipe, Plain(everywhere))
        assert torch.equal(found, variant.latents(expected))
        assert not torch.allclose(found, stock, rtol=0.01)
        _, stats = driven("wan-2.2", pipe, W2SD(weak=everywhere))
        assert stats.evaluations == 2 * (STEPS + 2 * (STEPS - 1))
        assert torch.equal(variant.latents(pipe), stock)


def test_image_to_video_at_scale_zero():
    """The network sees more channels than it predicts; what stands for c is like the latents."""
    pipe = VARIANTS["wan-i2v"].build()
    method = ZigZag(strong=Guidance(5.5), weak=Guidance(0.0))
    roles = {"strong": Role(guidance=5.5), "weak": Role(guidance=0.0)}
    agrees("wan-i2v", pipe, method, **roles)


# --- Z-Image --------------------------------------------------------------------------------------


def test_truncated_steps_are_unguided():
    pipe = VARIANTS["z-image"].build()
    changes = {"cfg_truncation": 0.2}
    stock = VARIANTS["z-image"].latents(pipe, **changes)
    # diffusers 0.42: the steps are at times 0, 0.1, 0.25 and 0.5; 0.38 has another schedule.
    steps = len(pipe.scheduler.timesteps)
    guided = int(((1000 - pipe.scheduler.timesteps) / 1000 <= 0.2).sum())
    assert 0 < guided < steps
    found, stats = driven("z-image", pipe, Plain(), **changes)
    assert torch.equal(found, stock)
    assert stats.evaluations == 2 * guided + (steps - guided)
    assert not torch.equal(stock, VARIANTS["z-image"].latents(pipe))
    # A guidance edit there has nothing to change, unless it asks for what is there.
    driven("z-image", pipe, W2SD(weak=Guidance(1.0)), **changes)
    with pytest.raises(UnsupportedError, match="off at this step"):
        driven("z-image", pipe, W2SD(weak=Guidance(2.0)), **changes)
    early = W2SD(weak=Guidance(2.0), window=Window(steps=(0,)))
    assert not torch.equal(driven("z-image", pipe, early, **changes)[0], stock)


def test_items_of_a_list_are_kept_apart():
    """A batch of prompts is two runs of one, in the same call."""
    pipe, method = VARIANTS["z-image"].build(), W2SD(weak=Guidance(1.5))
    seeds = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    words = {"prompt": ["a cat", "a red dog"], "negative_prompt": ["bad", "worse"]}
    both, _ = driven("z-image", pipe, method, **words, generator=seeds)
    for index, seed in enumerate((3, 4)):
        alone = {key: value[index] for key, value in words.items()}
        generator = torch.Generator().manual_seed(seed)
        one, _ = driven("z-image", pipe, method, **alone, generator=generator)
        torch.testing.assert_close(both[index], one[0], rtol=1e-4, atol=1e-4)


def test_a_normalised_mix_needs_both_halves_at_scale_zero():
    for name, evaluations in (("z-image", 1), ("z-image-normalised", 2)):
        pipe = VARIANTS[name].build()
        assert driven(name, pipe, at(0.0))[1].evaluations == STEPS * evaluations


# --- Qwen-Image, LTX, DiT, HiDream ----------------------------------------------------------------


def test_qwen_images_norm_needs_both_halves_at_scale_zero():
    pipe = VARIANTS["qwen-image"].build()
    assert driven("qwen-image", pipe, at(0.0))[1].evaluations == 2 * STEPS
    agrees(
        "qwen-image",
        pipe,
        ZigZag(strong=Guidance(5.5), weak=Guidance(0.0)),
        strong=Role(guidance=5.5),
        weak=Role(guidance=0.0),
    )


# What `encode_prompt` returns, by the names of the call's arguments.
_WORDS = ("prompt_embeds", "negative_prompt_embeds")
_POOLED = (*_WORDS, "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
_MASKED = (
    *("prompt_embeds", "prompt_attention_mask"),
    *("negative_prompt_embeds", "negative_prompt_attention_mask"),
)
ENCODED = {
    **dict.fromkeys(("sd", "cogvideox", "wan-2.1"), _WORDS),
    **dict.fromkeys(("sdxl", "sd3"), _POOLED),
    **dict.fromkeys(("pixart", "sana", "ltx"), _MASKED),
}


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("words", [{"prompt": "a cat"}, {"negative_prompt": "ugly"}], ids=repr)
def test_words_of_a_role_replace_half_of_what_a_call_gives_as_embeddings(name, words):
    """PixArt, Sana and CogVideoX take no text beside negative embeddings from a caller."""
    variant = VARIANTS[name]
    pipe, encoded = variant.build(), []
    encode = pipe.encode_prompt

    def keep(*args, **kwargs):
        encoded.append(encode(*args, **kwargs))
        return encoded[-1]

    pipe.encode_prompt = keep
    stock = variant.latents(pipe)
    del pipe.encode_prompt
    embeddings = dict(zip(ENCODED[name], encoded[0], strict=True))
    call = {"prompt": None, "negative_prompt": None, **embeddings}
    assert torch.equal(variant.latents(pipe, **call), stock)
    found, _ = driven(name, pipe, Plain(base=role_of(words)), **call)
    assert torch.equal(found, variant.latents(pipe, **words))
    assert not torch.allclose(found, stock, rtol=0.01)
    assert "check_inputs" not in vars(pipe)


def role_of(words):
    return Prompt(words.get("prompt"), negative=words.get("negative_prompt"))


def test_a_call_is_checked_as_ever_where_a_roles_words_are_beside_embeddings():
    pipe = VARIANTS["pixart"].build()
    embeddings = {"negative_prompt_embeds": torch.zeros(1, 48, 32)}
    with pytest.raises(ValueError, match="divisible by 8"):
        driven("pixart", pipe, Plain(base=Prompt("a cat")), **embeddings, height=17)
    with pytest.raises(ValueError, match="negative_prompt_embeds"):
        driven("pixart", pipe, Plain(), **embeddings)


LONG, SHORT = ["a cat", "a red circle on a hill"], ["a cat", "a dog"]


@pytest.mark.parametrize("words", [LONG, SHORT], ids=["masked", "not masked"])
@pytest.mark.parametrize("called", [LONG, SHORT], ids=["call masked", "call not masked"])
@pytest.mark.parametrize("which", ["prompt", "negative_prompt"])
def test_qwen_images_mask_is_bound_with_the_words(which, called, words):
    """Words of one length have no mask (None), those of several have one."""
    name, other = "qwen-image", {"prompt": "negative_prompt", "negative_prompt": "prompt"}[which]
    pipe, column = VARIANTS[name].build(), [f"{text}!" for text in words]
    call = VARIANTS[name].call(steps=STEPS, **{which: called, other: SHORT})
    del call["generator"]
    role = Prompt("@other") if which == "prompt" else Prompt(negative="@other")
    with attach(pipe, Plain(base=role), columns={"other": column}):
        found = VARIANTS[name].latents(pipe, **call, generator=seeded())
    expected = VARIANTS[name].latents(pipe, **{**call, which: column}, generator=seeded())
    assert torch.equal(found, expected)
    with attach(pipe, W2SD(weak=role), columns={"other": column}):
        found = VARIANTS[name].latents(pipe, **call, generator=seeded())
    replayed = {**call, "generator": seeded()}
    expected = replay(pipe, name, replayed, weak=Role(prompt={which: column}))
    size = max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= 1e-5 * size


def seeded():
    return torch.Generator().manual_seed(0)


def test_negative_words_of_a_role_switch_true_guidance_on_and_its_scale_is_known():
    """FLUX and Qwen-Image guide only if there are negative words: those of the role count."""
    for name in ("flux-true-cfg", "qwen-image"):
        pipe, call = VARIANTS[name].build(), VARIANTS[name].call(steps=STEPS)
        negative = call.pop("negative_prompt")
        del call["generator"]
        with attach(pipe, W2SD(weak=Prompt(negative=negative) | Guidance(0.0))) as run:
            pipe(**call, generator=seeded())
        rescaled = name == "qwen-image"
        assert run.stats.evaluations == STEPS + (STEPS - 1) * (1 + 1 + rescaled)
        with attach(pipe, Plain(base=Prompt(negative=negative) | Guidance(2.0))) as run:
            found = VARIANTS[name].latents(pipe, **call, generator=seeded())
        guided = {**call, "negative_prompt": negative, **VARIANTS[name].at_scale(2.0)}
        expected = VARIANTS[name].latents(pipe, **guided, generator=seeded())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_ltx_rescales():
    is_the_scale("ltx", VARIANTS["ltx"].build(), 2.0, guidance_rescale=0.7)


def test_dit_holds_its_latents_twice():
    pipe = VARIANTS["dit"].build()
    changes = {"class_labels": [207, 3]}
    found, stats = driven("dit", pipe, Plain(), **changes)
    assert torch.equal(found, VARIANTS["dit"].latents(pipe, **changes))
    assert (stats.calls, stats.evaluations) == (STEPS, 2 * STEPS)
    assert stats.start.shape[0] == 4
    agrees("dit", pipe, W2SD(weak=Guidance(1.5)), changes=changes, weak=Role(guidance=1.5))


def test_dit_without_guidance():
    pipe, other = VARIANTS["dit"].build(), VARIANTS["dit"].build(1).transformer
    off = {"guidance_scale": 1.0}
    found, stats = driven("dit", pipe, Plain(), **off)
    assert torch.equal(found, VARIANTS["dit"].latents(pipe, **off))
    assert stats.evaluations == STEPS
    moved, stats = driven("dit", pipe, W2SD(weak=Checkpoint(other)), **off)
    assert stats.evaluations == STEPS + 2 * (STEPS - 1)
    assert not torch.equal(moved, found)


def test_dit_is_refused_with_a_scheduler_that_scales():
    """diffusers steps the scaled latents there (0.42), and draws something else than it should."""
    from diffusers import EulerDiscreteScheduler

    pipe = VARIANTS["dit"].build()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(UnsupportedError, match="EulerDiscreteScheduler"):
        driven("dit", pipe, Plain())


def test_dit_has_no_words():
    with pytest.raises(UnsupportedError, match="DiTPipeline takes no prompt"):
        driven("dit", VARIANTS["dit"].build(), W2SD(weak=Prompt("a cat")))


def test_hidreams_layers_are_no_batch():
    """Llama's states are [layers, 2 B, ...]: two layers here, which is 2 B for one picture."""
    pipe = VARIANTS["hidream"].build()
    assert len(pipe.transformer.config.llama_layers) == 2
    is_the_scale("hidream", pipe, 1.0)
    is_the_scale("hidream", pipe, 1.0, num_images_per_prompt=2)


# --- AnimateDiff ----------------------------------------------------------------------------------


@pytest.fixture
def animatediff():
    return VARIANTS["animatediff"].build()


def test_free_init_starts_over_with_levels_of_its_own(animatediff, monkeypatch):
    """Fast sampling gives every iteration another number of steps."""
    animatediff.enable_free_init(num_iters=2, use_fast_sampling=True)
    stock = VARIANTS["animatediff"].latents(animatediff)
    found, stats = driven("animatediff", animatediff, Plain())
    assert torch.equal(found, stock)
    assert stats.calls == stats.steps == 2 + 4
    lengths, from_scheduler = [], Levels.from_scheduler

    def note(scheduler):
        levels = from_scheduler(scheduler)
        lengths.append(len(levels))
        return levels

    monkeypatch.setattr(Levels, "from_scheduler", note)
    moved, stats = driven("animatediff", animatediff, W2SD(weak=Guidance(1.0)))
    assert lengths == [2, 4]
    assert stats.calls == (2 + 2 * 1) + (4 + 2 * 3)
    assert not torch.equal(moved, stock)


@pytest.mark.slow
def test_free_noise(animatediff):
    """Long videos in overlapping parts: inside the network, out of the driver's sight."""
    animatediff.enable_free_noise(context_length=2, context_stride=1)
    found, _ = driven("animatediff", animatediff, Plain())
    assert torch.equal(found, VARIANTS["animatediff"].latents(animatediff))
    is_the_scale("animatediff", animatediff, 1.0)


# --- steps that return something beside the latents -----------------------------------------------


def test_latent_consistency():
    """`latents, denoised = scheduler.step(...)`: the last real step's x0 is the picture."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    from w2sdiff.testing.parts import unet

    def network(seed):
        return unet(seed, cross_attention_dim=32, attention_head_dim=2, time_cond_proj_dim=8)

    parts = VARIANTS["sd"].build().components
    parts |= {"unet": network(0), "scheduler": LCMScheduler.from_config(parts["scheduler"].config)}
    pipe = LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    call = {key: value for key, value in VARIANTS["sd"].call().items() if key != "negative_prompt"}

    def latents():
        call["generator"] = torch.Generator().manual_seed(0)
        return pipe(**call).images

    stock = latents()
    with attach(pipe, Plain()) as run:
        assert torch.equal(latents(), stock)
    assert run.stats.calls == STEPS
    with attach(pipe, W2SD(weak=Checkpoint(network(1)))) as run:
        assert not torch.allclose(latents(), stock, rtol=0.01)
    assert run.stats.calls == STEPS + 2 * (STEPS - 1)


def test_a_guider_that_remembers_is_refused(monkeypatch):
    from types import SimpleNamespace

    pipe = VARIANTS["sd"].build()
    guider = SimpleNamespace(adaptive_projected_guidance_momentum=-0.5)
    monkeypatch.setitem(pipe.__dict__, "guider", guider)
    with pytest.raises(UnsupportedError, match=r"running average.*pipe\.guider"):
        driven("sd", pipe, Plain())
    guider.adaptive_projected_guidance_momentum = None
    driven("sd", pipe, Plain())
