"""From a picture to what a network reads. The preprocessing is part of the score.

PIL and torch only: what torchvision does depends on its version (antialias for tensors is off
before 0.17 and on from there), and here both are named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from w2sdiff.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image
    from torch import Tensor

__all__ = ["OPENAI_MEAN", "OPENAI_STD", "normalise", "resize_crop", "resize_pad", "rgb"]

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def rgb(image: Image) -> Image:
    """Return the picture upright, in 8-bit RGB; what is transparent is laid on white.

    Upright as its EXIF orientation says. Sixteen bits become eight by rounding, where PIL would
    clip them.

    Raises:
        InputError: pixels of floating-point numbers, whose range nobody knows.

    Example:
        >>> from PIL import Image
        >>> rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0))
        (255, 255, 255)
    """
    from PIL import Image as PILImage
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise InputError("expected a picture of 8 or 16 bits, got one of floating-point numbers")
    if image.mode.startswith("I"):
        return _eight_bits(image).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = PILImage.new("RGBA", image.size, "white")
        return PILImage.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def resize_crop(
    image: Image, size: int, *, crop: Literal["even", "down"] = "even", pil_filter: str = "bicubic"
) -> Tensor:
    """Return the middle square of the picture as CLIP sees it, float32 [3, size, size] in 0..1.

    The shortest side becomes `size`, in 8 bits, by PIL; then the centre is cut out.

    Args:
        image: any size and mode.
        size: side in pixels.
        crop: where the crop begins if the middle falls between two pixels: "even" rounds half to
            even (torchvision, so OpenAI's CLIP and open_clip), "down" rounds down (transformers).
        pil_filter: a PIL resampling filter by name.
    """
    from PIL.Image import Resampling

    picture = rgb(image)
    width, height = picture.size
    short = min(width, height)
    if short != size:
        width, height = (int(size * side / short) for side in (width, height))
        picture = picture.resize((width, height), Resampling[pil_filter.upper()])
    left, top = (
        (side - size) // 2 if crop == "down" else round((side - size) / 2)
        for side in (width, height)
    )
    return _as_tensor(picture.crop((left, top, left + size, top + size)))


def resize_pad(image: Image, size: int, *, antialias: bool) -> Tensor:
    """Return the whole picture on black as HPSv2 sees it, float32 [3, size, size], about 0..1.

    The longest side becomes `size`, bicubic on the float tensor, and the rest is filled with 0
    before normalising. Bicubic overshoots: values below 0 and above 1 are passed on, as the
    published code does.

    Args:
        image: any size and mode.
        size: side in pixels.
        antialias: False is what the published scores were made with, True what the published code
            does with torchvision 0.17 or newer.
    """
    from torch.nn import functional

    pixels = _as_tensor(rgb(image))
    scale = size / max(pixels.shape[1:])
    if scale != 1:
        sides = [round(side * scale) for side in pixels.shape[1:]]
        pixels = functional.interpolate(
            pixels[None],
            size=[max(1, side) for side in sides],
            mode="bicubic",
            align_corners=False,
            antialias=antialias,
        )[0]
    down, across = (size - side for side in pixels.shape[1:])
    return functional.pad(pixels, (across // 2, across - across // 2, down // 2, down - down // 2))


def normalise(
    pixels: Tensor, mean: Sequence[float] = OPENAI_MEAN, std: Sequence[float] = OPENAI_STD
) -> Tensor:
    """Return (pixels - mean) / std, channel by channel, of [..., 3, height, width]."""
    import torch

    shift, scale = (torch.tensor(v, dtype=pixels.dtype)[:, None, None] for v in (mean, std))
    return (pixels - shift) / scale


def _eight_bits(image: Image) -> Image:
    """Sixteen bits of grey to eight; PIL's 32-bit mode is how it also reads such files."""
    import numpy as np
    from PIL import Image as PILImage

    values = np.asarray(image).astype(np.int64)
    return PILImage.fromarray(np.clip((values + 128) // 257, 0, 255).astype(np.uint8))


def _as_tensor(image: Image) -> Tensor:
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.permute(2, 0, 1).float() / 255
