"""What the package carries: small, stock, shared, and good enough to be worth looking at."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from w2sdiff.core2 import load_noise_model
from w2sdiff.generate import find_model
from w2sdiff.shapes import (
    checkpoint_names,
    checkpoint_path,
    lora_path,
    noise_model_path,
    weak_path,
)
from w2sdiff.shapes.oracle import judge_all
from w2sdiff.shapes.train.card import parameter_counts
from w2sdiff.shapes.train.evaluate import score
from w2sdiff.shapes.train.lora import LORAS, RANK, TARGETS
from w2sdiff.shapes.train.vae import decode, encode
from w2sdiff.shapes.world import batch, evaluation_captions

NAMES = ("shapes-unet", "shapes-dit")
STOCK = {"shapes-unet": "StableDiffusionPipeline", "shapes-dit": "PixArtSigmaPipeline"}

if set(NAMES) - set(checkpoint_names()):
    pytest.skip("the embedded checkpoints are not here", allow_module_level=True)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_all_together_fit_into_20_megabytes_and_a_noise_model_into_3():
    files = [f for name in NAMES for f in checkpoint_path(name).rglob("*") if f.is_file()]
    noise_models = [f for f in files if f.parent.name == "noise_models"]
    assert sum(f.stat().st_size for f in files if f not in noise_models) <= 20 * 2**20
    assert all(f.stat().st_size <= 3e6 for f in noise_models)


@pytest.mark.parametrize("name", NAMES)
def test_noise_models_are_of_the_model_they_come_with(name):
    model = find_model(name)
    for file in (checkpoint_path(name) / "noise_models").glob("*.safetensors"):
        noise_model = load_noise_model(file)
        assert noise_model.host.sha256 == model.sha256
        assert noise_model.host.channels == 8
    assert noise_model_path(name).stem == "guidance"


def test_weights_are_safetensors_only():
    kinds = {f.suffix for n in NAMES for f in checkpoint_path(n).rglob("*") if f.is_file()}
    assert kinds <= {".safetensors", ".json", ".txt", ".md"}


@pytest.mark.parametrize("name", NAMES)
def test_every_part_is_of_a_stock_class(name):
    index = json.loads((checkpoint_path(name) / "model_index.json").read_text())
    assert index["_class_name"] == STOCK[name]
    parts = [v for k, v in index.items() if not k.startswith("_") and isinstance(v, list)]
    assert {library for library, _ in parts} <= {"diffusers", "transformers", None}


def test_both_models_share_one_codec():
    codecs = {
        digest(checkpoint_path(n) / "vae" / "diffusion_pytorch_model.safetensors") for n in NAMES
    }
    assert len(codecs) == 1


@pytest.mark.parametrize("name", NAMES)
def test_weak_and_strong_differ_in_weights_alone(name):
    weak = weak_path(name)
    strong = weak.with_name(weak.name.removesuffix("_weak"))
    strip = {"_name_or_path", "_diffusers_version"}
    configs = [json.loads((folder / "config.json").read_text()) for folder in (weak, strong)]
    one, two = ({k: v for k, v in c.items() if k not in strip} for c in configs)
    assert one == two
    file = "diffusion_pytorch_model.safetensors"
    assert digest(weak / file) != digest(strong / file)


def test_true_pictures_survive_the_codec():
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(checkpoint_path("shapes-unet") / "vae")
    captions, images = batch(seed=9001, n=300)
    latents = torch.cat([encode(vae, images[i : i + 50]) for i in range(0, 300, 50)])
    back = np.concatenate([decode(vae, latents[i : i + 50]) for i in range(0, 300, 50)])
    assert sum(v.obeyed for v in judge_all(back, captions)) >= 0.97 * 300
    assert latents.mean().abs() < 0.1
    assert abs(latents.std() - 1) < 0.1


@pytest.mark.parametrize(("name", "at_least"), [("shapes-unet", 0.65), ("shapes-dit", 0.33)])
def test_strong_pictures_obey_and_weak_ones_obey_less(name, at_least):
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(checkpoint_path(name))
    captions = [c.text for c in evaluation_captions(60, seed=77)]
    obeyed = [sum(score(pipe, captions, guidance_scale=3.0, num_inference_steps=12))]
    part = weak_path(name).name.removesuffix("_weak")
    pipe.register_modules(**{part: type(getattr(pipe, part)).from_pretrained(weak_path(name))})
    obeyed.append(sum(score(pipe, captions, guidance_scale=3.0, num_inference_steps=12)))
    strong, weak = obeyed
    assert strong >= at_least * len(captions)
    assert 2 <= weak < strong - 5


@pytest.mark.parametrize("lora", LORAS)
def test_loras_load_into_the_stock_pipeline_whole(lora):
    from diffusers import DiffusionPipeline
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import load_file

    pipe = DiffusionPipeline.from_pretrained(checkpoint_path("shapes-unet"))
    pipe.load_lora_weights(lora_path("shapes-unet", lora), adapter_name=lora)
    loaded = get_peft_model_state_dict(pipe.unet, adapter_name=lora)
    shipped = load_file(lora_path("shapes-unet", lora))
    assert {f"unet.{key}" for key in loaded} == set(shipped)
    assert all(
        torch.equal(loaded[key.removeprefix("unet.")].half(), shipped[key]) for key in shipped
    )


def test_the_lora_of_the_transformer_draws_small_objects():
    """Less of the picture is drawn on with it, and more with the opposite of it."""
    from diffusers import DiffusionPipeline
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer
    from safetensors.torch import load_file

    pipe = DiffusionPipeline.from_pretrained(checkpoint_path("shapes-dit"))
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS)
    inject_adapter_in_model(config, pipe.transformer)
    weights = load_file(lora_path("shapes-dit", "small"))
    named = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    assert not set_peft_model_state_dict(pipe.transformer, named).unexpected_keys
    layers = [m for m in pipe.transformer.modules() if isinstance(m, LoraLayer)]
    assert len(named) == 2 * len(layers)
    captions = [c.text for c in evaluation_captions(8, seed=5)]
    drawn = {}
    for weight in (0.0, 0.8, -0.8):
        for layer in layers:
            layer.set_scale("default", weight)
        images = pipe(
            captions,
            generator=torch.Generator().manual_seed(0),
            num_inference_steps=4,
            guidance_scale=2.0,
            use_resolution_binning=False,
            max_sequence_length=16,
            output_type="np",
        ).images
        drawn[weight] = np.mean(np.abs(images - images[:, :1, :1]).sum(-1) > 0.25)
    assert drawn[0.8] < 0.9 * drawn[0.0] < drawn[0.0] < drawn[-0.8]


@pytest.mark.parametrize("name", NAMES)
def test_cards_state_what_the_folder_holds(name):
    card = (checkpoint_path(name) / "README.md").read_text()
    counts = parameter_counts(checkpoint_path(name))
    assert all(f"| {part} | {n:,} |" in card for part, n in counts.items())
    assert "license: apache-2.0" in card
    assert "python -m w2sdiff.shapes.train" in card


def test_the_compression_that_comes_with_shapes_dit_is_found_small_and_worth_its_training(tmp_path):
    from w2sdiff import CompressedKV
    from w2sdiff.attention import adapter_compression
    from w2sdiff.generate import parse_kv
    from w2sdiff.highres import Rendered, Setup
    from w2sdiff.highres.data import encode

    model = find_model("shapes-dit")
    file = model.adapter
    assert file is not None
    assert file.stat().st_size <= 2e6
    assert parse_kv("model", model) == CompressedKV("conv", 2, "deep", adapter=file)
    compression = adapter_compression(file)
    pipe = Setup(model).build().pipe
    data = encode(Rendered(24, 64, seed=1234), pipe, tmp_path, {})  # it was trained on seed 0
    batch = data.batch(range(24), [False] * 24)
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def error(adapter):
        """Mean squared error of the predicted v, at three noise levels."""
        parts = Setup(model, compression=compression, adapter=adapter).build()
        found = []
        for time in (200, 500, 800):
            squared = parts.pipe.scheduler.alphas_cumprod[time]
            alpha, sigma = squared.sqrt(), (1 - squared).sqrt()
            predicted = parts.transformer.eval()(
                alpha * batch.latents + sigma * noise,
                encoder_hidden_states=batch.states,
                encoder_attention_mask=batch.mask,
                timestep=torch.full((24,), time),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            ).sample[:, :8]
            target = alpha * noise - sigma * batch.latents
            found.append(float((predicted - target).square().mean()))
        return np.mean(found)

    assert error(file) < 0.95 * error(None)
