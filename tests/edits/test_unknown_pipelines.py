"""Prompt and Checkpoint on pipelines whose guidance is not known: nothing needs to be told."""

from __future__ import annotations

import pytest
import torch
from edits.hosts import SD_CONTROL
from noise_models import close

from w2sdiff import AutoGuidance, Checkpoint, Guidance, Plain, Prompt, UnsupportedError, attach
from w2sdiff.drivers import families
from w2sdiff.testing import VARIANTS, Variant, variants
from w2sdiff.testing.variants import PROMPT

variants()  # fills the table
STEPS = 3
OTHER = "two green triangles"


def _perturbed(seed):
    """Perturbed-attention guidance: batches of three branches."""
    from diffusers import StableDiffusionPAGPipeline

    parts = VARIANTS["sd"].build(seed).components
    return StableDiffusionPAGPipeline(
        **parts, requires_safety_checker=False, pag_applied_layers=["mid"]
    )


HOSTS = [
    VARIANTS["sd"],
    VARIANTS["sdxl"],
    VARIANTS["sd3"],
    VARIANTS["flux-true-cfg"],
    VARIANTS["pixart"],
    SD_CONTROL,
    Variant("sd-pag", "", _perturbed, VARIANTS["sd"].arguments, denoiser="unet", evaluations=3),
]
SLOW = ("sdxl", "pixart")  # as sd, as sd3
HOSTS_BY_SPEED = [
    pytest.param(host, marks=pytest.mark.slow if host.name in SLOW else (), id=host.name)
    for host in HOSTS
]
every = pytest.mark.parametrize("variant", HOSTS_BY_SPEED)


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", {})


@every
def test_another_prompt(variant):
    pipe = variant.build()
    assert families.family_of(pipe) is None
    with attach(pipe, Plain(Prompt(OTHER, negative=PROMPT))):
        found = variant.latents(pipe, steps=STEPS)
    expected = variant.latents(pipe, steps=STEPS, prompt=OTHER, negative_prompt=PROMPT)
    assert torch.equal(found, expected)
    assert not torch.allclose(found, variant.latents(pipe, steps=STEPS), rtol=1e-3)


@every
def test_another_checkpoint(variant):
    pipe, other = variant.build(), variant.build(1)
    network = variant.network(other)
    with attach(pipe, Plain(Checkpoint(network))) as run:
        found = variant.latents(pipe, steps=STEPS)
    assert run.stats.evaluations == STEPS * variant.evaluations
    own = variant.network(pipe)
    setattr(pipe, variant.denoiser, network)
    assert torch.equal(found, variant.latents(pipe, steps=STEPS))
    setattr(pipe, variant.denoiser, own)


@every
def test_both_at_once_by_one_role_of_two(variant):
    """At scale 0 AutoGuidance is its weak model, whatever the strong one has said."""
    pipe, other = variant.build(), variant.network(variant.build(1))
    weak = Prompt(OTHER) | Checkpoint(other)
    with attach(pipe, AutoGuidance(weak=weak, scale=0.0)):
        found = variant.latents(pipe, steps=STEPS)
    with attach(pipe, Plain(weak)):
        close(found, variant.latents(pipe, steps=STEPS), scheduler=pipe.scheduler)


@every
def test_guidance_says_what_it_would_have_to_know(variant):
    attached = attach(variant.build(), Plain(Guidance(2.0)))
    with pytest.raises(UnsupportedError, match="family=Family"), attached:
        pass
