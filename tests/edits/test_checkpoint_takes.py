"""A checkpoint that cannot take what the pipeline gives its own network is refused."""

from __future__ import annotations

import pytest
import tiny
import torch
from edits import hosts
from restored import compare, fingerprint

from w2sdiff import W2SD, Checkpoint, NoControl, Plain, UnsupportedError, attach
from w2sdiff.edits.given_to import check_takes
from w2sdiff.testing import VARIANTS
from w2sdiff.testing.parts import add_ip_adapter, randomise, unet

STEPS = 3


def drawn(variant, pipe, method):
    with attach(pipe, method):
        return variant.latents(pipe, steps=STEPS)


def refused(variant, pipe, other, says):
    stock, before = variant.latents(pipe, steps=STEPS), fingerprint(pipe)
    with pytest.raises(UnsupportedError, match=says) as error:
        drawn(variant, pipe, W2SD(weak=Checkpoint(other)))
    assert "\n" not in str(error.value)
    compare(before, fingerprint(pipe))
    assert torch.equal(variant.latents(pipe, steps=STEPS), stock)


def small_unet(seed=5, **settings):
    return unet(seed, cross_attention_dim=32, attention_head_dim=2, **settings)


# --- pictures -------------------------------------------------------------------------------------


def test_a_picture_that_it_would_not_see():
    """diffusers passes over image embeddings for which a UNet has no projection."""
    refused(hosts.IP, hosts.IP.build(), tiny.build_denoiser("sd"), "no IP-Adapter to see it")


def test_a_picture_that_it_would_miss():
    other = hosts.IP.build(1).unet
    refused(VARIANTS["sd"], tiny.build("sd"), other, "the pipeline shows it no picture")


def test_two_pictures_for_one_adapter():
    other = hosts.IP.build(1).unet
    refused(hosts.IP_TWO, hosts.IP_TWO.build(), other, "2 pictures, and .* has 1 IP-Adapter")


def test_one_that_has_the_adapter_too_sees_the_picture():
    pipe, other = hosts.IP.build(), add_ip_adapter(tiny.build("sd", seed=1), seed=0).unet
    found = drawn(hosts.IP, pipe, Plain(Checkpoint(other)))
    pipe.__dict__["unet"] = other
    assert torch.equal(found, hosts.IP.latents(pipe, steps=STEPS))


def test_an_adapter_that_is_unloaded_between_two_calls():
    pipe, other = hosts.IP.build(), tiny.build_denoiser("sd")
    with attach(pipe, W2SD(weak=Checkpoint(other))):
        with pytest.raises(UnsupportedError, match="no IP-Adapter"):
            hosts.IP.latents(pipe, steps=STEPS)
        pipe.unload_ip_adapter()
        assert VARIANTS["sd"].latents(pipe, steps=STEPS).isfinite().all()


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_a_transformer_s_picture(family):
    own = other = tiny.build_denoiser(family)
    shown = {"ip_adapter_image_embeds": [torch.zeros(1, 1, 12)]}
    with pytest.raises(UnsupportedError, match="no IP-Adapter to see it"):
        check_takes(other, own, {"joint_attention_kwargs": shown}, "it")
    check_takes(other, own, {"joint_attention_kwargs": {"scale": 1.0}}, "it")
    check_takes(other, own, {"joint_attention_kwargs": None}, "it")


def test_a_video_network_that_was_not_made_for_a_picture():
    other = VARIANTS["wan-i2v"].build().transformer  # as of Wan 2.2, which is shown none
    own = type(other).from_config(
        {**other.config, "image_dim": 4, "added_kv_proj_dim": 24, "_use_default_values": []}
    )
    given = {"encoder_hidden_states_image": torch.zeros(1, 1, 4)}
    check_takes(own, own, given, "it")
    with pytest.raises(UnsupportedError, match="image-to-video"):
        check_takes(other, own, given, "it")


# --- control --------------------------------------------------------------------------------------


def test_residuals_of_another_shape():
    other = small_unet(block_out_channels=(8, 32))
    says = r"block_out_channels is \[8, 16\] .* is \[8, 32\].*NoControl"
    refused(hosts.SD_CONTROL, hosts.SD_CONTROL.build(), other, says)


def test_without_control_it_may_have_another_shape():
    pipe, other = hosts.SD_CONTROL.build(), small_unet(block_out_channels=(8, 32))
    method = W2SD(weak=Checkpoint(other) | NoControl())
    assert drawn(hosts.SD_CONTROL, pipe, method).isfinite().all()


def test_a_network_of_the_same_shape_is_controlled():
    pipe, other = hosts.SD_CONTROL.build(), tiny.build_denoiser("sd")
    found = drawn(hosts.SD_CONTROL, pipe, Plain(Checkpoint(other)))
    pipe.__dict__["unet"] = other
    assert torch.equal(found, hosts.SD_CONTROL.latents(pipe, steps=STEPS))


# --- scales and sizes -----------------------------------------------------------------------------


def test_a_scale_that_it_cannot_be_told():
    """A latent consistency model against the network it was distilled from."""
    refused(hosts.LCM, hosts.LCM.build(), small_unet(), "not made to be told one")


def test_guidance_distillation_against_none():
    from diffusers import FluxTransformer2DModel

    pipe = tiny.build("flux")
    config = {**pipe.transformer.config, "guidance_embeds": False}
    other = randomise(FluxTransformer2DModel.from_config(config), 3)
    assert pipe.transformer.config.guidance_embeds
    refused(VARIANTS["flux"], pipe, other, "guidance distillation")


def test_sizes_and_pooled_words_that_it_would_not_read():
    from diffusers import UNet2DConditionModel

    pipe = tiny.build("sdxl")
    plain = {"addition_embed_type": None, "projection_class_embeddings_input_dim": None}
    other = randomise(UNet2DConditionModel.from_config({**pipe.unet.config, **plain}), 3)
    refused(VARIANTS["sdxl"], pipe, other, "its addition_embed_type is None")
