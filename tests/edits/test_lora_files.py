"""LoRAs for networks that diffusers loads none into: read by PEFT, switched as all others."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch
from edits.hosts import peft_folder
from noise_models import close
from restored import compare, fingerprint, lora_state

from w2sdiff import W2SD, InputError, Lora, Plain, UnsupportedError, attach, load_lora
from w2sdiff.testing.replay import Role, replay

STEPS = 3


@pytest.fixture
def pipe():
    return tiny.build("pixart")


def latents(pipe, method=None):
    if method is None:
        return tiny.latents(pipe, "pixart", steps=STEPS)
    with attach(pipe, method):
        return tiny.latents(pipe, "pixart", steps=STEPS)


def merged(folder, weight, alpha, rank=2):
    """The tiny pipeline with W + weight alpha/r B A written into its weights, in plain torch."""
    from safetensors.torch import load_file

    pipe = tiny.build("pixart")
    file = folder / "adapter_model.safetensors"
    state = load_file(file if file.exists() else folder)
    downs = [key for key in state if key.endswith("lora_A.weight")]
    for key in downs:
        name = key.removeprefix("base_model.model.").removeprefix("transformer.")
        layer = pipe.transformer.get_submodule(name.removesuffix(".lora_A.weight"))
        with torch.no_grad():
            layer.weight += weight * alpha / rank * state[key.replace("_A", "_B")] @ state[key]
    return pipe


def test_loaded_from_the_folder_that_peft_writes(pipe, tmp_path):
    folder = peft_folder(pipe.transformer, tmp_path / "style", alpha=3)
    load_lora(pipe, folder, "style", 0.5)
    close(latents(pipe), latents(merged(folder, 0.5, 3)), scheduler=pipe.scheduler)


def test_loaded_from_a_file_as_diffusers_writes_it(pipe, tmp_path):
    """Without an alpha it is the rank."""
    file = tiny.lora_file(pipe, "pixart", tmp_path)
    load_lora(pipe, file, "style")
    close(latents(pipe), latents(merged(file, 1.0, 2)), scheduler=pipe.scheduler)


def test_an_alpha_for_every_layer(pipe, tmp_path):
    from safetensors.torch import load_file, save_file

    file = tiny.lora_file(pipe, "pixart", tmp_path)
    state = load_file(file)
    layers = {key.split(".lora_")[0] for key in state}
    alphas = {f"{layer}.alpha": torch.tensor(4.0) for layer in layers}
    save_file({**state, **alphas}, tmp_path / "alpha.safetensors")
    load_lora(pipe, tmp_path / "alpha.safetensors", "style", 0.25)
    close(latents(pipe), latents(merged(file, 0.25, 4)), scheduler=pipe.scheduler)


def test_it_is_switched_between_roles_and_put_back(pipe, tmp_path):
    folder = peft_folder(pipe.transformer, tmp_path / "style", alpha=3)
    load_lora(pipe, folder, "style", 0.5)
    stock, before = latents(pipe), fingerprint(pipe)
    found = latents(pipe, Plain(Lora("style", -1.5)))
    close(found, latents(merged(folder, -1.5, 3)), scheduler=pipe.scheduler)
    compare(before, fingerprint(pipe))
    assert torch.equal(latents(pipe), stock)


def test_a_second_one_beside_the_first(pipe, tmp_path):
    folders = [peft_folder(pipe.transformer, tmp_path / str(i), seed=i) for i in (0, 1)]
    load_lora(pipe, folders[0], "one", 0.5)
    first = {name: lora_state(module) for name, module in pipe.transformer.named_modules()}
    load_lora(pipe, folders[1], "two", 0.25)
    assert set(pipe.transformer.peft_config) == {"one", "two"}
    for name, module in pipe.transformer.named_modules():
        if state := first.get(name):
            assert module.scaling["one"] == state[0]["one"]
            assert module.active_adapters == ["one", "two"]
    without = latents(pipe, Plain(Lora("two", 0.0)))
    close(without, latents(merged(folders[0], 0.5, 3)), scheduler=pipe.scheduler)


def test_weights_are_not_trained_and_of_the_networks_dtype(tmp_path):
    pipe = tiny.build("pixart", dtype=torch.bfloat16)
    load_lora(pipe, peft_folder(pipe.transformer, tmp_path), "style")
    for name, parameter in pipe.transformer.named_parameters():
        assert not parameter.requires_grad
        assert parameter.dtype == torch.bfloat16, name
    assert not any(module.training for module in pipe.transformer.modules())


def test_what_is_no_lora_of_this_network_is_refused(pipe, tmp_path):
    from safetensors.torch import save_file

    folder = peft_folder(pipe.transformer, tmp_path / "style")
    before = fingerprint(pipe)
    other = tiny.lora_file(tiny.build("sd"), "sd", tmp_path)
    with pytest.raises(InputError, match="does not fit PixArtTransformer2DModel: it has no layer"):
        load_lora(pipe, other, "style")
    narrow = {
        "proj_out.lora_A.weight": torch.zeros(2, 5),
        "proj_out.lora_B.weight": torch.zeros(32, 2),
    }
    for name, state, says in [
        ("narrow", narrow, "'proj_out' maps 5 to 32, the network's 32 to 32"),
        ("half", {"proj_out.lora_A.weight": torch.zeros(2, 32)}, "half a pair"),
        ("kohya", {"lora_unet_x.lora_down.weight": torch.zeros(1)}, "lora_down"),
        ("empty", {}, "no LoRA weights"),
    ]:
        save_file(state, tmp_path / f"{name}.safetensors")
        with pytest.raises(InputError, match=says):
            load_lora(pipe, tmp_path / f"{name}.safetensors", "style")
    (tmp_path / "text.safetensors").write_text("no tensors", "utf-8")
    with pytest.raises(InputError, match="Cannot read the LoRA"):
        load_lora(pipe, tmp_path / "text.safetensors", "style")
    with pytest.raises(InputError, match="No LoRA at"):
        load_lora(pipe, tmp_path / "nowhere.safetensors", "style")
    compare(before, fingerprint(pipe))
    load_lora(pipe, folder, "style")
    with pytest.raises(InputError, match="loaded already"):
        load_lora(pipe, folder, "style")


def test_the_error_says_how_to_load_one(pipe):
    with pytest.raises(UnsupportedError, match=r"w2sdiff\.load_lora"):
        latents(pipe, Plain(Lora("style", 1.0)))


# --- three roles ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family", ["sdxl", *(pytest.param(f, marks=pytest.mark.slow) for f in ("sd", "sd3", "flux"))]
)
def test_three_roles_of_three_weights(family, tmp_path):
    """The published script: 1.5 strong in reflection, -1.5 weak, 0.8 in the real step."""
    pipe = tiny.build(family)
    tiny.add_lora(pipe, family, tmp_path)
    weights = {"strong": 1.5, "weak": -1.5, "base": 0.8}
    method = W2SD(**{role: Lora("style", weight) for role, weight in weights.items()})
    with attach(pipe, method):
        found = tiny.latents(pipe, family, steps=STEPS)
    roles = {role: Role(lora=("style", weight)) for role, weight in weights.items()}
    expected = replay(pipe, family, tiny.call_kwargs(family, steps=STEPS), **roles)
    close(found, expected, scheduler=pipe.scheduler)
    for role in weights:  # each of them is heard
        with attach(pipe, dataclasses.replace(method, **{role: Lora("style", 0.1)})):
            assert not torch.allclose(tiny.latents(pipe, family, steps=STEPS), found, rtol=1e-3)
