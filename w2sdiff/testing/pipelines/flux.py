"""FLUX.1, by its embedded guidance and with true guidance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from w2sdiff.testing.parts import (
    clip_encoder,
    clip_tokenizer,
    half_mask,
    picture,
    randomise,
    t5_encoder,
    t5_tokenizer,
    vae,
)
from w2sdiff.testing.variants import NEGATIVE, PROMPT, Variant, add

_SHAPE: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 4, 8),
}


def _network(seed: int, **settings: Any) -> Any:
    from diffusers import FluxTransformer2DModel

    common: dict[str, Any] = {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True}
    return randomise(FluxTransformer2DModel(**_SHAPE | common | settings), seed)


def _parts(seed: int, **network: Any) -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return {
        "vae": vae(seed, flow=True),
        "text_encoder": clip_encoder(seed),
        "text_encoder_2": t5_encoder(seed),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": t5_tokenizer(),
        "transformer": _network(seed, **network),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
    }


def _of(kind: str, **network: Any) -> Callable[[int], Any]:
    def make(seed: int) -> Any:
        import diffusers

        parts = _parts(seed, **network)
        if kind == "ControlNet":
            model = diffusers.FluxControlNetModel(
                **_SHAPE, num_layers=1, num_single_layers=1, guidance_embeds=True
            )
            parts["controlnet"] = randomise(model, seed + 1)
        return getattr(diffusers, f"Flux{kind}Pipeline")(**parts)

    return make


def _call(seed: int) -> dict[str, Any]:
    del seed
    return {
        "prompt": PROMPT,
        "height": 16,
        "width": 16,
        "output_type": "latent",
        "guidance_scale": 3.5,
        "max_sequence_length": 48,
    }


def _img2img(seed: int) -> dict[str, Any]:
    return {**_call(seed), "image": picture(seed), "strength": 0.75}


def _inpaint(seed: int) -> dict[str, Any]:
    return {**_img2img(seed), "mask_image": half_mask()}


def _fill(seed: int) -> dict[str, Any]:
    return {**_inpaint(seed), "strength": 1.0}


def _kontext(seed: int) -> dict[str, Any]:
    """The picture's tokens follow the latents'; not resized to one of the trained sizes."""
    return {**_call(seed), "image": picture(seed), "max_area": 256, "_auto_resize": False}


def _control(seed: int) -> dict[str, Any]:
    return {**_call(seed), "control_image": picture(seed), "controlnet_conditioning_scale": 0.8}


def _embedded(name: str, make: Callable[[int], Any], call: Callable[[int], Any]) -> Variant:
    return Variant(name, "FLUX.1", make, call, guidance=None, evaluations=1)


def _two(name: str, make: Callable[[int], Any], call: Callable[[int], Any]) -> Variant:
    """The same with guidance by negative words, in a second call."""

    def guided(seed: int) -> dict[str, Any]:
        return {**call(seed), "true_cfg_scale": 4.0, "negative_prompt": NEGATIVE}

    return Variant(name, "FLUX.1", make, guided, guidance="true_cfg_scale", calls=2)


add(
    _embedded("flux", _of(""), _call),
    _two("flux-true-cfg", _of(""), _call),
    _embedded("flux-img2img", _of("Img2Img"), _img2img),
    _embedded("flux-inpaint", _of("Inpaint"), _inpaint),
    # latents, the masked picture, and the mask's 2 x 2 pixels per latent, all packed by 2 x 2
    _embedded("flux-fill", _of("Fill", in_channels=48, out_channels=16), _fill),
    _embedded("flux-kontext", _of("Kontext"), _kontext),
    _two("flux-kontext-true-cfg", _of("Kontext"), _kontext),
    _embedded("flux-controlnet", _of("ControlNet"), _control),
    _two("flux-img2img-true-cfg", _of("Img2Img"), _img2img),
    _two("flux-inpaint-true-cfg", _of("Inpaint"), _inpaint),
    _two("flux-controlnet-true-cfg", _of("ControlNet"), _control),
)
