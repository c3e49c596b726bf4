"""`ImagePrompt`: an IP-Adapter and the picture it looks at."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2sdiff.errors import InputError
from w2sdiff.jobs import digest, file_sha256

__all__ = ["ImagePrompt", "load_image_prompts", "takes_image_prompts"]

ENCODER = "image_encoder"
"""The folder beside an adapter's file that has its image encoder, as on the hub."""


@dataclass(frozen=True)
class ImagePrompt:
    """An IP-Adapter to load, its scale where no edit says otherwise, and its picture.

    Its image encoder is the folder ``image_encoder`` beside its file, or the model's own.

    Attributes:
        file: the adapter's .safetensors file.
        image: the picture that it looks at.
        scale: how strongly, any finite number.

    Raises:
        InputError: a file is not there, or is none of these.
    """

    file: Path
    image: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be an adapter with its picture."""
        if not self.file.is_file():
            raise InputError(f"the IP-Adapter file {self.file} does not exist")
        if self.file.suffix != ".safetensors":
            raise InputError(f"expected a .safetensors file for the IP-Adapter, got {self.file}")
        if not self.image.is_file():
            raise InputError(f"the image {self.image} does not exist")
        if not math.isfinite(self.scale):
            raise InputError(f"expected a finite number for an IP-Adapter's scale: {self.scale}")
        if self.encoder is not None:
            if not (self.encoder / "config.json").is_file():
                raise InputError(f"{self.encoder} is no image encoder: it has no config.json")
            if not self._encoder_weights():
                raise InputError(f"{self.encoder} has no safetensors weights")

    @classmethod
    def parse(cls, text: str, image: Path) -> ImagePrompt:
        """From ``FILE`` or ``FILE=SCALE``, and the picture.

        Raises:
            InputError: this cannot be an adapter.
        """
        path, equals, number = text.rpartition("=")
        if not equals or Path(text).is_file():  # or an = that belongs to the file's name
            return cls(Path(text), image)
        try:
            scale = float(number)
        except ValueError:
            raise InputError(f"expected --ip-adapter FILE or FILE=SCALE, got {text!r}") from None
        return cls(Path(path), image, scale)

    @property
    def encoder(self) -> Path | None:
        """The folder of the image encoder that comes with the adapter."""
        folder = self.file.parent / ENCODER
        return folder if folder.is_dir() else None

    def decides(self) -> dict[str, Any]:
        """What of this decides the pixels, as JSON: files by their hash."""
        files = [*self._encoder_weights(), self.encoder / "config.json"] if self.encoder else []
        return {
            "adapter": file_sha256(self.file),
            "encoder": digest({file.name: file_sha256(file) for file in files}) if files else None,
            "image": file_sha256(self.image),
            "scale": self.scale,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain data from which `from_json` makes the same again."""
        return {"file": str(self.file), "image": str(self.image), "scale": self.scale}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ImagePrompt:
        """The inverse of `to_json`."""
        return cls(Path(data["file"]), Path(data["image"]), data["scale"])

    def _encoder_weights(self) -> list[Path]:
        return sorted(self.encoder.glob("*.safetensors")) if self.encoder else []


def takes_image_prompts(cls: type) -> bool:
    """Whether pipelines of this class load IP-Adapters as Stable Diffusion's do.

    FLUX's and Stable Diffusion 3's have loaders of their own, which take other files.
    """
    from diffusers.loaders import IPAdapterMixin

    return issubclass(cls, IPAdapterMixin)


def load_image_prompts(pipe: Any, prompts: Sequence[ImagePrompt]) -> None:
    """Load the adapters by the pipeline's own loader, from these files alone.

    Raises:
        InputError: a file does not fit the pipeline, or there is no image encoder.
    """
    if not prompts:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe.load_ip_adapter(
                [str(prompt.file.parent) for prompt in prompts],
                subfolder=[""] * len(prompts),
                weight_name=[prompt.file.name for prompt in prompts],
                image_encoder_folder=ENCODER,
                local_files_only=True,
            )
        pipe.set_ip_adapter_scale([prompt.scale for prompt in prompts])
    except Exception as error:  # any shape or key error of three libraries
        files = ", ".join(str(prompt.file) for prompt in prompts)
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the IP-Adapter {files} does not fit {type(pipe).__name__}: {first}"
        ) from error
