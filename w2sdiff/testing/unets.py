"""What Stable Diffusion 1 and XL have in common: the same kinds of pipelines around a UNet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from w2sdiff.testing.parts import (
    add_ip_adapter,
    controlnet,
    half_mask,
    image_embeddings,
    picture,
)
from w2sdiff.testing.variants import NEGATIVE, PROMPT, Variant

__all__ = ["called", "unet_variants"]

Make = Callable[[int], Any]


def unet_variants(prefix: str, family: str, stem: str, parts: Callable[..., Any]) -> list[Variant]:
    """The rows of one of the two families.

    Args:
        prefix: of the variants' names: "sd", "sdxl".
        family: its name in `w2sdiff list families`.
        stem: of the classes' names: "StableDiffusion", "StableDiffusionXL".
        parts: (seed, settings of the UNet) -> what the classes are made of.
    """

    def of(kind: str, **network: Any) -> Make:
        def make(seed: int) -> Any:
            import diffusers

            made = parts(seed, **network)
            if "ControlNet" in kind:
                made["controlnet"] = controlnet(made["unet"], seed + 1)
            return getattr(diffusers, f"{stem}{kind}Pipeline")(**made)

        return make

    def with_adapter(seed: int) -> Any:
        return add_ip_adapter(of("")(seed), seed)

    def rows() -> Iterator[tuple[str, Make, Make, dict[str, Any]]]:
        yield "", of(""), called, {}
        yield "-img2img", of("Img2Img"), _img2img, {}
        yield "-inpaint", of("Inpaint"), _inpaint, {}
        yield "-inpaint-9", of("Inpaint", in_channels=9), _inpaint, {}
        yield "-controlnet", of("ControlNet"), _control, {}
        yield "-controlnet-img2img", of("ControlNetImg2Img"), _control_img2img, {}
        yield "-ip-adapter", with_adapter, _with_image, {"shared": ("ip_adapter_image_embeds",)}
        yield "-pag", of("PAG"), _pag, {"evaluations": 3, "unguided": 2, "unconditional": 3}

    return [
        Variant(f"{prefix}{name}", family, make, call, denoiser="unet", **more)
        for name, make, call, more in rows()
    ]


def called(seed: int) -> dict[str, Any]:
    """Arguments of a text-to-image call."""
    del seed
    return {
        "prompt": PROMPT,
        "height": 16,
        "width": 16,
        "output_type": "latent",
        "guidance_scale": 5.0,
        "negative_prompt": NEGATIVE,
    }


def _img2img(seed: int) -> dict[str, Any]:
    sized = called(seed)
    del sized["height"], sized["width"]
    return {**sized, "image": picture(seed), "strength": 0.75}


def _inpaint(seed: int) -> dict[str, Any]:
    return {**called(seed), "image": picture(seed), "mask_image": half_mask(), "strength": 0.99}


# Random residuals at full strength would leave nothing for the words and the latents to say.
_CONTROL = {"controlnet_conditioning_scale": 0.1}


def _control(seed: int) -> dict[str, Any]:
    return {**called(seed), **_CONTROL, "image": picture(seed)}


def _control_img2img(seed: int) -> dict[str, Any]:
    return {**_img2img(seed), **_CONTROL, "control_image": picture(seed + 1)}


def _with_image(seed: int) -> dict[str, Any]:
    return {**called(seed), "ip_adapter_image_embeds": image_embeddings(seed)}


def _pag(seed: int) -> dict[str, Any]:
    return {**called(seed), "pag_scale": 2.0}
