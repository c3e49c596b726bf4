"""Pipelines with what edits change, beside the rows of `w2sdiff.testing`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch

from w2sdiff.testing import VARIANTS
from w2sdiff.testing.parts import (
    add_ip_adapter,
    controlnet,
    image_embeddings,
    picture,
    randomise,
    unet,
)
from w2sdiff.testing.variants import Variant

SCALE = "controlnet_conditioning_scale"
HIDREAM = VARIANTS["hidream"]  # 2 of 8 experts, as in the paper


# --- ControlNets ----------------------------------------------------------------------------------


def _louder(name: str, **more: Any) -> Variant:
    """A row of the table, its ControlNet at a scale that is worth halving."""
    row = VARIANTS[name]
    return replace(row, arguments=lambda seed: {**row.arguments(seed), SCALE: 0.8, **more})


def _two_controls(seed: int) -> Any:
    from diffusers import StableDiffusionXLControlNetPipeline

    parts = VARIANTS["sdxl"].build(seed).components
    parts["controlnet"] = [controlnet(parts["unet"], seed + i) for i in (1, 2)]
    return StableDiffusionXLControlNetPipeline(**parts, add_watermarker=False)


def _sd3_control(seed: int) -> Any:
    from diffusers import SD3ControlNetModel, StableDiffusion3ControlNetPipeline

    pipe = VARIANTS["sd3"].build(seed)
    control = SD3ControlNetModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=16,
    )
    control = randomise(control, seed + 7, gain=0.3)
    return StableDiffusion3ControlNetPipeline(**pipe.components, controlnet=control)


SD_CONTROL = _louder("sd-controlnet")
CONTROLLED = [
    SD_CONTROL,
    Variant(
        "sdxl-controlnet-two",
        "Stable Diffusion XL",
        _two_controls,
        lambda seed: {
            **VARIANTS["sdxl"].arguments(seed),
            "image": [picture(seed), picture(seed + 1)],
            SCALE: [0.8, 0.5],
            "control_guidance_end": [1.0, 0.5],
        },
        denoiser="unet",
    ),
    _louder("sdxl-controlnet-img2img"),
    replace(_louder("sd-controlnet", guess_mode=True), name="sd-controlnet-guess"),
    Variant(
        "sd3-controlnet",
        "Stable Diffusion 3",
        _sd3_control,
        lambda seed: {
            **VARIANTS["sd3"].arguments(seed),
            "control_image": picture(seed),
            SCALE: 0.8,
        },
    ),
    VARIANTS["flux-controlnet"],
]


# --- IP-Adapters ----------------------------------------------------------------------------------


def _adapted(count: int) -> Variant:
    def make(seed: int) -> Any:
        pipe = add_ip_adapter(VARIANTS["sd"].build(seed), seed, count)
        pipe.set_ip_adapter_scale([0.9, 0.4][:count])
        return pipe

    row = VARIANTS["sd-ip-adapter"]
    return replace(
        row,
        make=make,
        arguments=lambda seed: {
            **VARIANTS["sd"].arguments(seed),
            "ip_adapter_image_embeds": image_embeddings(seed, count),
        },
    )


IP, IP_TWO = _adapted(1), _adapted(2)


# --- a latent consistency model, whose UNet is told its guidance scale ----------------------------


def _lcm(seed: int) -> Any:
    from diffusers import LCMScheduler, StableDiffusionPipeline

    network = unet(seed, cross_attention_dim=32, attention_head_dim=2, time_cond_proj_dim=16)
    parts = VARIANTS["sd"].build(seed).components
    scheduler = LCMScheduler.from_config(parts["scheduler"].config)
    return StableDiffusionPipeline(
        **{**parts, "unet": network, "scheduler": scheduler}, requires_safety_checker=False
    )


LCM = Variant(
    "lcm",
    "Stable Diffusion",
    _lcm,
    VARIANTS["sd"].arguments,
    denoiser="unet",
    guidance=None,
    evaluations=1,
)


# --- LoRA where diffusers has no loader -----------------------------------------------------------


def peft_folder(network: Any, folder: Any, seed: int = 0, rank: int = 2, alpha: int = 3) -> Any:
    """A LoRA of a transformer's attention as PEFT saves it: the weights, and their alpha beside."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed + 19)
    state = {}
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Linear) and name.endswith(("to_q", "to_v")):
            down = torch.randn(rank, layer.in_features, generator=generator)
            up = torch.randn(layer.out_features, rank, generator=generator)
            key = f"base_model.model.{name}"
            state[f"{key}.lora_A.weight"] = 0.5 * down * layer.in_features**-0.5
            state[f"{key}.lora_B.weight"] = up * rank**-0.5
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "adapter_model.safetensors")
    settings = json.dumps({"peft_type": "LORA", "lora_alpha": alpha, "r": rank})
    (folder / "adapter_config.json").write_text(settings, "utf-8")
    return folder
