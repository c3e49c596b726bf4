"""ControlScale, NoControl and IPAdapterScale against the pipeline called with those scales."""

from __future__ import annotations

import pytest
import tiny
import torch
from edits import hosts
from edits.hosts import CONTROLLED, IP_TWO, SCALE, SD_CONTROL
from noise_models import close

from w2sdiff import (
    W2SD,
    ControlScale,
    EmbeddedGuidance,
    InputError,
    IPAdapterScale,
    NoControl,
    Plain,
    Prompt,
    UnsupportedError,
    attach,
)
from w2sdiff.edits import parse_edits
from w2sdiff.testing.parts import private_randomness

STEPS = 3
controlled = pytest.mark.parametrize("variant", CONTROLLED, ids=lambda variant: variant.name)


def drawn(variant, pipe, method, **changes):
    with attach(pipe, method) as run:
        latents = plain(variant, pipe, **changes)
    return latents, run.stats


def plain(variant, pipe, **changes):
    # SD3's encodes the picture with a draw from the global generator (diffusers 0.42).
    with private_randomness(0):
        return variant.latents(pipe, steps=STEPS, **changes)


def counted(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@controlled
def test_control_scale_is_a_call_with_that_scale(variant):
    pipe = variant.build()
    scale = [0.2, 0.9] if "two" in variant.name else 0.2
    found, stats = drawn(variant, pipe, Plain(ControlScale(scale)))
    assert torch.equal(found, plain(variant, pipe, **{SCALE: scale}))
    assert not torch.allclose(found, plain(variant, pipe), rtol=1e-3)
    assert stats.evaluations == stats.steps * variant.evaluations


@controlled
def test_no_control_is_scale_zero_without_a_call_of_the_controlnet(variant):
    pipe = variant.build()
    expected = plain(variant, pipe, **{SCALE: 0.0})
    calls = counted(pipe.controlnet)
    found, stats = drawn(variant, pipe, Plain(NoControl()))
    assert not calls
    close(found, expected, scheduler=pipe.scheduler)
    assert stats.evaluations == stats.steps * variant.evaluations
    plain(variant, pipe)
    assert len(calls) == stats.steps


def test_one_scale_is_for_all_controlnets():
    (variant,) = (one for one in CONTROLLED if "two" in one.name)
    pipe = variant.build()
    found, _ = drawn(variant, pipe, Plain(ControlScale(0.4)))
    assert torch.equal(found, plain(variant, pipe, **{SCALE: [0.4, 0.4]}))
    with pytest.raises(UnsupportedError, match="3 scales are given for 2 ControlNets"):
        drawn(variant, pipe, Plain(ControlScale([1, 2, 3])))


def test_control_ends_where_the_call_says_whatever_the_scale():
    pipe = SD_CONTROL.build()
    ends = {"control_guidance_end": 0.4}
    found, _ = drawn(SD_CONTROL, pipe, Plain(ControlScale(1.5)), **ends)
    assert torch.equal(found, plain(SD_CONTROL, pipe, **ends, **{SCALE: 1.5}))
    assert not torch.equal(found, plain(SD_CONTROL, pipe, **{SCALE: 1.5}))


def test_every_role_has_its_own_control():
    """What the ControlNet is told, by role; what a role does not say is as called."""
    pipe, told = SD_CONTROL.build(), []
    pipe.controlnet.register_forward_pre_hook(
        lambda _, __, kwargs: told.append(kwargs["conditioning_scale"]), with_kwargs=True
    )
    method = W2SD(strong=ControlScale(1.2), weak=ControlScale(0.1))
    drawn(SD_CONTROL, pipe, method)
    assert told == [1.2, 0.1, 0.8] * (STEPS - 1) + [0.8]
    told.clear()
    # Words are bound to loop variables as well: neither takes the other's away.
    drawn(SD_CONTROL, pipe, W2SD(strong=Prompt("a cat"), weak=NoControl(), base=ControlScale(0.5)))
    assert told == [0.8, 0.5] * (STEPS - 1) + [0.5]


def test_stale_residuals_would_differ():
    """The ControlNet speaks about the latents that it is used with, in the weak role too."""
    pipe, shown = SD_CONTROL.build(), {"control": [], "network": []}

    def note(name):
        return lambda _, args, __: shown[name].append(args[0].clone())

    pipe.controlnet.register_forward_pre_hook(note("control"), with_kwargs=True)
    pipe.unet.register_forward_pre_hook(note("network"), with_kwargs=True)
    drawn(SD_CONTROL, pipe, W2SD(weak=ControlScale(0.4)))
    assert all(map(torch.equal, shown["control"], shown["network"]))
    assert not torch.equal(shown["control"][0], shown["control"][1])


@pytest.mark.parametrize("edit", [ControlScale(0.5), NoControl()], ids=lambda edit: edit.kind)
def test_control_edits_need_a_controlnet(edit):
    with (
        pytest.raises(UnsupportedError, match="StableDiffusionPipeline"),
        attach(pipe := tiny.build("sd"), Plain(edit)),
    ):
        tiny.latents(pipe, "sd")


def test_every_ip_adapter_has_its_own_scale():
    pipe = IP_TWO.build()
    found, _ = drawn(IP_TWO, pipe, Plain(IPAdapterScale([0.1, 1.3])))
    same, _ = drawn(IP_TWO, pipe, Plain(IPAdapterScale(0.6)))
    pipe.set_ip_adapter_scale([0.1, 1.3])
    assert torch.equal(found, plain(IP_TWO, pipe))
    pipe.set_ip_adapter_scale([0.6, 0.6])
    assert torch.equal(same, plain(IP_TWO, pipe))
    with pytest.raises(UnsupportedError, match="3 scales are given for 2 IP-Adapters"):
        drawn(IP_TWO, pipe, Plain(IPAdapterScale([1, 2, 3])))


def test_scales_per_block_are_there_again():
    """InstantStyle: another scale in every block, which diffusers keeps in each layer."""
    pipe = hosts.IP.build()
    pipe.set_ip_adapter_scale({"up": {"block_0": [0.0, 1.0]}, "mid": 0.3})
    stock = plain(hosts.IP, pipe)
    found, _ = drawn(hosts.IP, pipe, W2SD(weak=IPAdapterScale(0.0)))
    assert not torch.equal(found, stock)
    assert torch.equal(plain(hosts.IP, pipe), stock)


def test_ip_adapter_scale_needs_an_ip_adapter():
    pipe = tiny.build("sd")
    with (
        pytest.raises(UnsupportedError, match=r"load_ip_adapter"),
        attach(pipe, Plain(IPAdapterScale(0.5))),
    ):
        tiny.latents(pipe, "sd")


# --- embedded guidance ----------------------------------------------------------------------------


def test_embedded_guidance_beside_true_guidance():
    """With both, Guidance is the mix and EmbeddedGuidance the input."""
    pipe = tiny.build("flux-true-cfg")
    with attach(pipe, Plain(EmbeddedGuidance(1.5))):
        found = tiny.latents(pipe, "flux-true-cfg", steps=STEPS)
    expected = tiny.latents(pipe, "flux-true-cfg", steps=STEPS, guidance_scale=1.5)
    assert torch.equal(found, expected)


def test_embedded_guidance_of_a_latent_consistency_model():
    pipe = hosts.LCM.build()
    found, _ = drawn(hosts.LCM, pipe, Plain(EmbeddedGuidance(2.5)), guidance_scale=8.0)
    assert torch.equal(found, plain(hosts.LCM, pipe, guidance_scale=2.5))


def test_embedded_guidance_is_told_to_the_controlnet_too():
    (variant,) = (one for one in CONTROLLED if one.name == "flux-controlnet")
    pipe = variant.build()
    found, _ = drawn(variant, pipe, Plain(EmbeddedGuidance(1.5)))
    assert torch.equal(found, plain(variant, pipe, guidance_scale=1.5))


def test_embedded_guidance_needs_a_network_that_is_told():
    pipe = tiny.build("sd")
    with (
        pytest.raises(UnsupportedError, match="Use Guidance"),
        attach(pipe, Plain(EmbeddedGuidance(2.0))),
    ):
        tiny.latents(pipe, "sd")


@pytest.mark.parametrize(
    ("network", "config", "factor"),
    [
        ("FluxTransformer2DModel", {}, 1.0),
        ("HunyuanVideoTransformer3DModel", {}, 1000.0),
        ("HunyuanImageTransformer2DModel", {}, 1000.0),
        ("SanaTransformer2DModel", {"guidance_embeds_scale": 0.1}, 0.1),
    ],
)
def test_what_pipelines_multiply_the_scale_by(network, config, factor):
    """The factors are those in diffusers' own pipelines: read there, where the scale is made."""
    from types import SimpleNamespace

    from w2sdiff.edits.base import Context

    module = type(network, (), {"config": config})()
    context = Context(SimpleNamespace(transformer=module), ["transformer"], lambda _: None)
    called = torch.full((2,), 6.0 * factor)
    (told,) = EmbeddedGuidance(1.5).inputs({"guidance": called}, context).values()
    torch.testing.assert_close(told, torch.full((2,), 1.5 * factor))


# --- their values ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("control-scale=0.5+0", ControlScale([0.5, 0.0])),
        ("ip-adapter-scale=0.3+1", IPAdapterScale((0.3, 1))),
        ("no-control=1", NoControl()),
        ("embedded-guidance=1.5", EmbeddedGuidance(1.5)),
    ],
)
def test_grammar(text, edit):
    assert list(parse_edits(text)) == [edit]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("control-scale=much", "number"),
        ("control-scale=0.5+", "number"),
        ("control-scale:x=1", "control-scale=X"),
        ("no-control=0", "no-control=1"),
        ("no-control", "no-control=1"),
        ("ip-adapter-scale=nan", "finite"),
        ("ip-adapter-scale:a=1", "ip-adapter-scale=X"),
        ("embedded-guidance=inf", "finite"),
        ("embedded-guidance:a=1", "embedded-guidance=W"),
    ],
)
def test_errors_are_one_line_that_helps(text, says):
    with pytest.raises(InputError, match=says) as error:
        parse_edits(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.5, 7.3, 70.0])
def test_scale_of_a_latent_consistency_model_is_embedded_as_diffusers_does(scale, dtype):
    pipe = hosts.LCM.build()
    width = pipe.unet.config.time_cond_proj_dim
    called = pipe.get_guidance_scale_embedding(torch.tensor([scale - 1] * 2), embedding_dim=width)
    seen = []

    def note(_module, _args, kwargs):
        seen.append(kwargs["timestep_cond"])

    pipe.to(dtype)
    pipe.unet.register_forward_pre_hook(note, with_kwargs=True)
    with attach(pipe, Plain(EmbeddedGuidance(scale))):
        hosts.LCM.latents(pipe, steps=1, prompt=["a cat", "a dog"])
    assert torch.equal(seen[0], called.to(dtype))
