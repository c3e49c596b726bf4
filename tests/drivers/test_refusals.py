"""What cannot work says so in one line, before anything is drawn, and leaves the pipeline alone."""

from __future__ import annotations

import importlib.util
import sys
import textwrap

import pytest
import tiny
import torch

from w2sdiff import (
    W2SD,
    Checkpoint,
    Guidance,
    InputError,
    Lora,
    Plain,
    Prompt,
    UnsupportedError,
    W2SDiffError,
    ZigZag,
    attach,
)


def refused(pipe, family, method, error, says, *, columns=None, **changes):
    stock = tiny.latents(pipe, family, steps=2, **changes)
    with pytest.raises(error, match=says) as caught, attach(pipe, method, columns=columns):
        tiny.latents(pipe, family, steps=2, **changes)
    assert isinstance(caught.value, W2SDiffError)
    assert "\n" not in str(caught.value)
    assert torch.equal(tiny.latents(pipe, family, steps=2, **changes), stock)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "pixart"])
def test_guidance_with_guidance_off(family):
    says = r"guidance.*(off|on)"
    refused(tiny.build(family), family, ZigZag(), UnsupportedError, says, guidance_scale=1.0)


def test_true_guidance_off_falls_back_on_the_embedded_one_or_says_so():
    """With guidance_embeds, FLUX has an embedded scale to rewrite; a distilled one without has
    nothing.
    """
    pipe = tiny.build("flux")
    pipe.transformer.register_to_config(guidance_embeds=False)
    pipe.transformer.time_text_embed = _without_guidance(pipe.transformer)
    refused(pipe, "flux", W2SD(weak=Guidance(2.0)), UnsupportedError, "true_cfg_scale")


def _without_guidance(transformer):
    from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings

    module = CombinedTimestepTextProjEmbeddings(transformer.inner_dim, pooled_projection_dim=32)
    return tiny.randomise(module, 0)


def test_lora_that_is_not_loaded(tmp_path):
    pipe = tiny.build("sdxl")
    refused(pipe, "sdxl", W2SD(weak=Lora("dpo", -1.5)), UnsupportedError, "'dpo'.*none")
    tiny.add_lora(pipe, "sdxl", tmp_path)
    refused(pipe, "sdxl", W2SD(weak=Lora("styel", -1.5)), UnsupportedError, "'styel'.*style")


def test_fused_lora(tmp_path):
    pipe = tiny.build("sdxl")
    tiny.add_lora(pipe, "sdxl", tmp_path)
    pipe.fuse_lora()
    refused(pipe, "sdxl", W2SD(weak=Lora("style", -1.5)), UnsupportedError, "fused")
    pipe.unfuse_lora()
    with attach(pipe, W2SD(weak=Lora("style", -1.5))):
        tiny.latents(pipe, "sdxl", steps=2)


def test_two_edits_of_a_kind():
    with pytest.raises(InputError, match="guidance"):
        Guidance(1.0) | Guidance(2.0)


def test_checkpoint_of_another_architecture(tmp_path):
    other = tiny.build_denoiser("sd")  # narrower words than SDXL's
    other.save_pretrained(tmp_path / "other")
    for source in (other, tmp_path / "other"):
        method = W2SD(weak=Checkpoint(source))
        refused(tiny.build("sdxl"), "sdxl", method, UnsupportedError, "cross_attention_dim")


def test_checkpoint_of_another_kind():
    method = W2SD(weak=Checkpoint(tiny.build_denoiser("sd3")))
    refused(tiny.build("sdxl"), "sdxl", method, W2SDiffError, r"(?i)pipeline")


def test_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        Checkpoint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"safetensors.*empty"):
        Checkpoint(tmp_path / "empty")


def test_column_that_is_not_there():
    method = W2SD(strong=Prompt("@refined"))
    refused(tiny.build("sdxl"), "sdxl", method, InputError, "refined")
    refused(
        tiny.build("sdxl"),
        "sdxl",
        method,
        InputError,
        "2 values for 1",
        columns={"refined": ["a", "b"]},
    )


def test_not_a_method():
    pipe = tiny.build("sd")
    for nonsense in ("w2sd", None, Guidance(1.0), W2SD):
        with pytest.raises(InputError, match="method"), attach(pipe, nonsense):
            pass


def test_not_a_pipeline():
    for nonsense in (None, "stable-diffusion", tiny.build("sd").unet):
        with pytest.raises(W2SDiffError, match="pipeline"), attach(nonsense, Plain()):
            pass


class TestUnknownPipeline:
    """One that weaves but is not in the table: everything works but `Guidance`."""

    @pytest.fixture
    def pipe(self, tmp_path):
        from diffusers import StableDiffusionModelEditingPipeline

        original = tiny.build("sd")
        tiny.add_lora(original, "sd", tmp_path)
        original.set_adapters("style", 0.0)  # there, and without effect until a role switches it on
        parts = original.components
        parts.pop("image_encoder")
        pipe = StableDiffusionModelEditingPipeline(**parts, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def test_it_is_not_in_the_table(self, pipe):
        from w2sdiff.drivers.families import FAMILIES

        assert not {cls.__name__ for cls in type(pipe).__mro__} & set(FAMILIES)

    def test_plain_and_every_other_edit(self, pipe):
        stock = tiny.latents(pipe, "sd")
        with attach(pipe, Plain()) as run:
            assert torch.equal(tiny.latents(pipe, "sd"), stock)
            assert run.stats.calls == 4
        other = Checkpoint(tiny.build_denoiser("sd"))
        for weak in (other, Prompt("a cat"), Lora("style", -1.5)):
            with attach(pipe, W2SD(weak=weak)) as run:
                assert not torch.allclose(tiny.latents(pipe, "sd"), stock, rtol=0.01)
            assert run.stats.calls == 10
        reference = tiny.build("sd")
        with attach(reference, W2SD(weak=Prompt("a cat"))):
            expected = tiny.latents(reference, "sd")
        with attach(pipe, W2SD(weak=Prompt("a cat"))):
            assert torch.equal(tiny.latents(pipe, "sd"), expected)

    def test_guidance_says_how_to_state_the_two_facts(self, pipe):
        refused(pipe, "sd", W2SD(weak=Guidance(1.0)), UnsupportedError, r"(?i)family")

    def test_guidance_works_once_they_are_stated(self, pipe):
        from w2sdiff.drivers.families import Family, from_frame

        reference = tiny.build("sd")
        with attach(reference, W2SD(weak=Guidance(1.0))):
            expected = tiny.latents(reference, "sd")
        with attach(pipe, W2SD(weak=Guidance(1.0)), family=Family("uc", from_frame)):
            assert torch.equal(tiny.latents(pipe, "sd"), expected)


class TestSubclasses:
    def test_a_users_subclass_that_calls_super(self):
        from diffusers import StableDiffusionPipeline

        class Mine(StableDiffusionPipeline):
            def __call__(self, *args, **kwargs):
                kwargs["prompt"] = "always this"
                return super().__call__(*args, **kwargs)

        pipe = Mine(**tiny.build("sd").components, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        stock = tiny.latents(pipe, "sd")
        with attach(pipe, Plain()) as run:
            assert torch.equal(tiny.latents(pipe, "sd"), stock)
            assert run.stats.calls == 4
        with attach(pipe, W2SD(weak=Guidance(1.0))) as run:
            assert not torch.equal(tiny.latents(pipe, "sd"), stock)
        assert type(pipe) is Mine


WOVEN_WRONGLY = {
    "draws noise before the step": """
        for t in self.scheduler.timesteps:
            latents = latents + torch.randn_like(latents)
            m = self.unet(latents, t, encoder_hidden_states=words).sample
            latents = self.scheduler.step(m, t, latents).prev_sample
    """,
    "has two loops": """
        for t in self.scheduler.timesteps:
            m = self.unet(latents, t, encoder_hidden_states=words).sample
            latents = self.scheduler.step(m, t, latents).prev_sample
        for t in self.scheduler.timesteps:
            m = self.unet(latents, t, encoder_hidden_states=words).sample
            latents = self.scheduler.step(m, t, latents).prev_sample
    """,
    "iterates over something else": """
        for word in ["a", "b"]:
            m = self.unet(latents, 10, encoder_hidden_states=words).sample
            latents = self.scheduler.step(m, 10, latents).prev_sample
    """,
    "steps twice": """
        for t in self.scheduler.timesteps:
            m = self.unet(latents, t, encoder_hidden_states=words).sample
            latents = self.scheduler.step(m, t, latents).prev_sample
            latents = self.scheduler.step(m, t, latents).prev_sample
    """,
    "steps with a slice": """
        for t in self.scheduler.timesteps:
            m = self.unet(latents, t, encoder_hidden_states=words).sample
            latents[:, :2] = self.scheduler.step(m[:, :2], t, latents[:, :2]).prev_sample
    """,
    "changes the scheduler before the step": """
        for t in self.scheduler.timesteps:
            self.scheduler._step_index = 0
            m = self.unet(latents, t, encoder_hidden_states=words).sample
            latents = self.scheduler.step(m, t, latents).prev_sample
    """,
    "rebinds the latents before the step": """
        for t in self.scheduler.timesteps:
            latents = latents * 1.01
            m = self.unet(latents, t, encoder_hidden_states=words).sample
            latents = self.scheduler.step(m, t, latents).prev_sample
    """,
    "reads what the step returned beside the latents": """
        guess = latents
        for t in self.scheduler.timesteps:
            m = self.unet(latents, t, encoder_hidden_states=words).sample + guess
            latents, guess = self.scheduler.step(m, t, latents, return_dict=False)
    """,
    "writes into the latents before the step": """
        for t in self.scheduler.timesteps:
            latents[:, :, 0] = 0
            m = self.unet(latents, t, encoder_hidden_states=words).sample
            latents = self.scheduler.step(m, t, latents).prev_sample
    """,
    "steps several schedulers": """
        other_scheduler = self.scheduler
        for t in self.scheduler.timesteps:
            m = self.unet(latents, t, encoder_hidden_states=words).sample
            if t > 500:
                latents = self.scheduler.step(m, t, latents).prev_sample
            else:
                latents = other_scheduler.step(m, t, latents).prev_sample
    """,
    "steps views": """
        for t in self.scheduler.timesteps:
            for view in ["left", "right"]:
                m = self.unet(latents, t, encoder_hidden_states=words).sample
                latents = self.scheduler.step(m, t, latents).prev_sample
    """,
    "scales by the sigma of the step": """
        for i, t in enumerate(self.scheduler.timesteps):
            sigma = self.scheduler.sigmas[i] if hasattr(self.scheduler, "sigmas") else 1.0
            scaled = latents / (sigma**2 + 1) ** 0.5
            m = self.unet(scaled, t, encoder_hidden_states=words).sample
            latents = self.scheduler.step(m, t, latents).prev_sample
    """,
    "counts in the loop before the step": """
        count = 0
        for t in self.scheduler.timesteps:
            count += 1
            m = self.unet(latents, t, encoder_hidden_states=words).sample
            latents = self.scheduler.step(m, t, latents).prev_sample
    """,
}
NO_LOOP = "latents = self.unet(latents, 10, encoder_hidden_states=words).sample"
FINE = """
        for t in self.scheduler.timesteps:
            m = self.unet(latents, t, encoder_hidden_states=words).sample
            latents = self.scheduler.step(m, t, latents).prev_sample
"""


def homemade(body, tmp_path, name):
    """A pipeline from a source file, with `body` as its loop."""
    source = """
        import torch
        from diffusers import DiffusionPipeline

        class Homemade(DiffusionPipeline):
            def __init__(self, unet, scheduler):
                super().__init__()
                self.register_modules(unet=unet, scheduler=scheduler)

            @torch.no_grad()
            def __call__(self, latents, words, num_inference_steps=3):
                self.scheduler.set_timesteps(num_inference_steps)
        """
    text = textwrap.dedent(source).rstrip() + "\n" + textwrap.indent(textwrap.dedent(body), " " * 8)
    file = tmp_path / f"{name}.py"
    file.write_text(text + "\n        return latents\n", encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    parts = tiny.build("sd")
    return module.Homemade(unet=parts.unet, scheduler=parts.scheduler)


INPUT = {"latents": torch.ones(1, 4, 8, 8), "words": torch.ones(1, 7, 32)}


def test_a_homemade_pipeline_that_can_be_woven(tmp_path):
    pipe = homemade(FINE, tmp_path, "homemade_fine")
    stock = pipe(**INPUT)
    with attach(pipe, Plain()) as run:
        assert torch.equal(pipe(**INPUT), stock)
        assert run.stats.calls == run.stats.evaluations == 3
    with attach(pipe, W2SD(weak=Checkpoint(tiny.build_denoiser("sd")))) as run:
        assert not torch.equal(pipe(**INPUT), stock)
        assert run.stats.calls == 3 * 2 + 1


def test_a_pipeline_without_a_loop_of_its_own(tmp_path):
    pipe = homemade(NO_LOOP, tmp_path, "homemade_no_loop")
    pipe(**INPUT)
    with pytest.raises(UnsupportedError, match="loop"), attach(pipe, Plain()):
        pass


@pytest.mark.parametrize("why", WOVEN_WRONGLY)
def test_a_loop_that_would_come_out_wrong_is_refused(why, tmp_path):
    name = f"homemade_{list(WOVEN_WRONGLY).index(why)}"
    pipe = homemade(WOVEN_WRONGLY[why], tmp_path, name)
    stock = pipe(**INPUT) if "noise" not in why else None
    with pytest.raises(UnsupportedError) as error, attach(pipe, W2SD()):
        pipe(**INPUT)
    assert "\n" not in str(error.value)
    if stock is not None:
        assert torch.equal(pipe(**INPUT), stock)
