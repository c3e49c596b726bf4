"""Tiny pipelines with what edits change: ControlNets, IP-Adapters, experts, an embedded scale."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from w2sdiff.testing import VARIANTS, variants
from w2sdiff.testing.parts import randomise, unet, vae
from w2sdiff.testing.variants import Variant

variants()  # fills the table


def picture(seed: int) -> Tensor:
    """A picture to control with: [1, 3, 16, 16] in [0, 1]."""
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed + 5))


# --- ControlNets ----------------------------------------------------------------------------------


def _unet_controlnet(network: Any, seed: int) -> Any:
    from diffusers import ControlNetModel

    # The VAE of the tiny pipelines halves once, so the picture is halved once.
    made = ControlNetModel.from_unet(network, conditioning_embedding_out_channels=(4, 8))
    made.controlnet_cond_embedding.blocks[1].stride = (2, 2)
    return randomise(made, seed + 7, gain=0.3)


def _control(name: str, cls: str, nets: int = 1) -> Any:
    def make(seed: int) -> Any:
        import diffusers

        pipe = VARIANTS[name].build(seed)
        controls = [_unet_controlnet(pipe.unet, seed + i) for i in range(nets)]
        parts = {**pipe.components, "controlnet": controls[0] if nets == 1 else controls}
        more = {"requires_safety_checker": False} if name == "sd" else {"add_watermarker": False}
        return getattr(diffusers, cls)(**parts, **more)

    return make


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


def _flux_control(seed: int) -> Any:
    from diffusers import FluxControlNetModel, FluxControlNetPipeline

    pipe = VARIANTS["flux"].build(seed)
    control = FluxControlNetModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    control = randomise(control, seed + 7, gain=0.3)
    return FluxControlNetPipeline(**pipe.components, controlnet=control)


def _with_picture(name: str, argument: str, **more: Any) -> Any:
    return lambda seed: {**VARIANTS[name].arguments(seed), argument: picture(seed), **more}


SCALE = "controlnet_conditioning_scale"
_IMG2IMG = {"image": picture(3), "strength": 0.8}
SD_CONTROL = Variant(
    "sd-controlnet",
    "Stable Diffusion",
    _control("sd", "StableDiffusionControlNetPipeline"),
    _with_picture("sd", "image", **{SCALE: 0.8}),
    denoiser="unet",
)
CONTROLLED = [
    SD_CONTROL,
    Variant(
        "sdxl-controlnet-two",
        "Stable Diffusion XL",
        _control("sdxl", "StableDiffusionXLControlNetPipeline", nets=2),
        lambda seed: {
            **VARIANTS["sdxl"].arguments(seed),
            "image": [picture(seed), picture(seed + 1)],
            SCALE: [0.8, 0.5],
            "control_guidance_end": [1.0, 0.5],
        },
        denoiser="unet",
    ),
    Variant(
        "sdxl-img2img-controlnet",
        "Stable Diffusion XL",
        _control("sdxl", "StableDiffusionXLControlNetImg2ImgPipeline"),
        _with_picture("sdxl", "control_image", **_IMG2IMG, **{SCALE: 0.8}),
        denoiser="unet",
    ),
    Variant(
        "sd-controlnet-guess",
        "Stable Diffusion",
        _control("sd", "StableDiffusionControlNetPipeline"),
        _with_picture("sd", "image", guess_mode=True, **{SCALE: 0.8}),
        denoiser="unet",
    ),
    Variant(
        "sd3-controlnet",
        "Stable Diffusion 3",
        _sd3_control,
        _with_picture("sd3", "control_image", **{SCALE: 0.8}),
    ),
    Variant(
        "flux-controlnet",
        "FLUX.1",
        _flux_control,
        _with_picture("flux", "control_image", **{SCALE: 0.8}),
        guidance=None,
        evaluations=1,
    ),
]


# --- IP-Adapters ----------------------------------------------------------------------------------


def ip_adapter(network: Any, seed: int, width: int = 12) -> dict[str, dict[str, Tensor]]:
    """Random weights of an IP-Adapter for a UNet, as its file holds them."""
    generator = torch.Generator().manual_seed(seed + 11)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * shape[-1] ** -0.5

    text = network.config.cross_attention_dim
    layers = list(network.attn_processors)
    keys = {}
    for number, name in enumerate(layers):
        if name.endswith("attn2.processor"):
            attention = network.get_submodule(name.removesuffix(".processor"))
            for half in ("to_k_ip", "to_v_ip"):
                keys[f"{number}.{half}.weight"] = draw(attention.inner_dim, text)
    projection = {
        "proj.weight": draw(4 * text, width),
        "proj.bias": 0.1 * draw(1, 4 * text)[0],
        "norm.weight": 1 + 0.1 * draw(1, text)[0],
        "norm.bias": 0.1 * draw(1, text)[0],
    }
    return {"image_proj": projection, "ip_adapter": keys}


def _ip(count: int) -> Any:
    def make(seed: int) -> Any:
        pipe = VARIANTS["sd"].build(seed)
        weights = [ip_adapter(pipe.unet, seed + i) for i in range(count)]
        pipe.unet._load_ip_adapter_weights(weights, low_cpu_mem_usage=False)
        pipe.set_ip_adapter_scale([0.9, 0.4][:count])
        return pipe

    return make


def _ip_arguments(count: int) -> Any:
    def arguments(seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed + 13)
        embeds = [torch.randn(2, 1, 12, generator=generator) for _ in range(count)]
        return {**VARIANTS["sd"].arguments(seed), "ip_adapter_image_embeds": embeds}

    return arguments


IP, IP_TWO = (
    Variant(f"sd-ip-{count}", "Stable Diffusion", _ip(count), _ip_arguments(count), denoiser="unet")
    for count in (1, 2)
)


# --- mixture of experts ---------------------------------------------------------------------------


def _hidream(seed: int) -> Any:
    """HiDream-I1 without its four text encoders, which the call brings the embeddings of."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        HiDreamImagePipeline,
        HiDreamImageTransformer2DModel,
    )

    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[32, 16],
        text_emb_dim=64,
        num_routed_experts=8,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1),
        force_inference_output=True,
    )
    randomise(transformer, seed)
    nothing = dict.fromkeys(
        [f"{part}{i}" for part in ("text_encoder", "tokenizer") for i in ("", "_2", "_3", "_4")]
    )
    pipe = HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(seed, flow=True),
        transformer=transformer,
        **nothing,
    )
    pipe.default_sample_size = 8  # it brings every size to about this area
    return pipe


def _hidream_call(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed + 17)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    words = {
        f"{sign}{name}": draw(*shape)
        for sign in ("", "negative_")
        for name, shape in {
            "prompt_embeds_t5": (1, 6, 32),
            "prompt_embeds_llama3": (2, 1, 6, 16),
            "pooled_prompt_embeds": (1, 64),
        }.items()
    }
    more = {"height": 16, "width": 16, "output_type": "latent", "guidance_scale": 4.0}
    return {**words, **more}


HIDREAM = Variant("hidream-embeds", "HiDream-I1", _hidream, _hidream_call)


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
