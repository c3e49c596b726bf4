"""How pictures are made, apart from the prompt and the seed."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2sdiff.edits import CompressedKV
from w2sdiff.errors import InputError
from w2sdiff.generate.image_prompts import ImagePrompt
from w2sdiff.jobs import file_sha256
from w2sdiff.registry import unknown

__all__ = ["DTYPES", "OFFLOADS", "SCHEDULERS", "LoraFile", "Settings"]

DTYPES = ("float32", "float16", "bfloat16")
OFFLOADS = ("none", "model", "sequential", "group")
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpm++2m": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "flow-euler": "FlowMatchEulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "lcm": "LCMScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
MAX_SIDE = 16384
TILES_FROM = 2048  # pixels per side from which the VAE decodes in tiles, unless told otherwise
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d+)?")


@dataclass(frozen=True)
class LoraFile:
    """A LoRA to load: its name, its file, and its weight where no edit says otherwise."""

    name: str
    file: Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be a LoRA."""
        if not re.fullmatch(r"[A-Za-z_][\w-]*", self.name):
            raise InputError(
                f"a LoRA's name is made of letters, digits, _ and -, got {self.name!r}"
            )
        if not self.file.is_file():
            raise InputError(f"the LoRA file {self.file} does not exist")
        if self.file.suffix != ".safetensors":
            raise InputError(
                f"expected a .safetensors file for the LoRA {self.name!r}, got {self.file}"
            )
        _finite(f"weight of the LoRA {self.name!r}", self.weight)

    @classmethod
    def parse(cls, name: str, text: str) -> LoraFile:
        """From a name and ``FILE`` or ``FILE@WEIGHT``.

        Raises:
            InputError: this cannot be a LoRA.
        """
        path, at, weight = text.rpartition("@")
        try:
            return cls(name, Path(path), float(weight)) if at else cls(name, Path(text))
        except InputError:
            raise
        except ValueError:  # an @ that belongs to the file's name
            return cls(name, Path(text))


@dataclass(frozen=True)
class Settings:
    """How pictures are made, apart from the prompt and the seed.

    Attributes:
        steps: number of denoising steps, at least 1.
        guidance: the pipeline's guidance scale.
        true_cfg: scale of the true classifier-free guidance of pipelines that have both kinds.
        negative: the negative prompt.
        size: width and height in pixels, multiples of 8; None for the pipeline's own.
        scheduler: a name of `SCHEDULERS`; None for the model's own.
        image: the picture to start from.
        image_strength: how much of it is redrawn, in (0, 1]; None for the pipeline's default.
        control_image: the picture that a ControlNet looks at.
        loras: LoRAs that are loaded.
        image_prompts: IP-Adapters that are loaded, each with its picture.
        device: "cpu", "cuda", "cuda:1", "mps"; "auto" is resolved by `on_device`.
        dtype: one of `DTYPES`, or "auto".
        offload: what is kept off the device while it is not needed, one of `OFFLOADS`.
        compile: whether the denoiser is compiled.
        attention_backend: the denoiser's attention backend, as diffusers names it.
        kv_compress: compresses keys and values of the denoiser in every role that has no
            compression of its own; None: nothing is compressed.
        vae_tiling: whether the VAE decodes in overlapping tiles; None: from `TILES_FROM` pixels per
            side.

    Raises:
        InputError: a value is out of range; says which.
    """

    steps: int
    guidance: float
    true_cfg: float | None = None
    negative: str | None = None
    size: tuple[int, int] | None = None
    scheduler: str | None = None
    image: Path | None = None
    image_strength: float | None = None
    control_image: Path | None = None
    loras: tuple[LoraFile, ...] = ()
    image_prompts: tuple[ImagePrompt, ...] = ()
    device: str = "auto"
    dtype: str = "auto"
    offload: str = "none"
    compile: bool = False
    attention_backend: str | None = None
    kv_compress: CompressedKV | None = None
    vae_tiling: bool | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        if self.steps < 1:
            raise InputError(f"expected at least 1 step, got {self.steps}")
        _finite("guidance", self.guidance)
        if self.true_cfg is not None:
            _finite("true CFG scale", self.true_cfg)
        for side in self.size or ():
            if side % 8 or not 8 <= side <= MAX_SIDE:
                width, height = self.size or (0, 0)
                raise InputError(
                    f"expected a size in multiples of 8 up to {MAX_SIDE}, got {width}x{height}"
                )
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise unknown("scheduler", self.scheduler, sorted(SCHEDULERS))
        for image in (self.image, self.control_image):
            if image is not None and not image.is_file():
                raise InputError(f"the image {image} does not exist")
        if self.image_strength is not None:
            _finite("image strength", self.image_strength)
            if not 0 < self.image_strength <= 1:
                raise InputError(f"expected an image strength in (0, 1], got {self.image_strength}")
            if self.image is None:
                raise InputError("an image strength means something only with an image")
        names = [lora.name for lora in self.loras]
        if len(set(names)) < len(names):
            raise InputError(f"two LoRAs have one name: {', '.join(names)}")
        if self.device != "auto" and not _DEVICE.fullmatch(self.device):
            raise InputError(f"expected a device such as cpu, cuda or cuda:1, got {self.device!r}")
        if self.dtype not in ("auto", *DTYPES):
            raise unknown("dtype", self.dtype, list(DTYPES))
        if self.offload not in OFFLOADS:
            raise unknown("offload", self.offload, list(OFFLOADS))

    def on_device(self, *, small: bool) -> Settings:
        """The same with "auto" resolved for this machine.

        Args:
            small: the model is small enough for float32 anywhere.

        Raises:
            InputError: the device is not there, or cannot do what was asked.
        """
        import torch

        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        kind, _, number = device.partition(":")
        count = {"cuda": torch.cuda.device_count, "mps": torch.mps.device_count}.get(kind)
        if kind == "xpu":
            count = torch.xpu.device_count
        if count is not None and count() <= int(number or 0):
            raise InputError(
                f"the device {device!r} is not there; this machine has {count()} of them"
            )
        if kind == "cpu" and self.offload != "none":
            raise InputError(
                "offloading moves weights from an accelerator to the CPU; device is cpu"
            )
        dtype = self.dtype
        if dtype == "auto":
            dtype = (
                "float32" if small or kind == "cpu" else "float16" if kind == "mps" else "bfloat16"
            )
        return dataclasses.replace(self, device=device, dtype=dtype)

    @property
    def tiled(self) -> bool:
        """Whether the VAE decodes in tiles."""
        if self.vae_tiling is None:
            return max(self.size or (0,)) >= TILES_FROM
        return self.vae_tiling

    def loading(self) -> tuple[Any, ...]:
        """What of this decides the pipeline that is loaded; the rest is said at every call."""
        image = self.image is not None
        machine = (self.device, self.dtype, self.offload, self.compile, self.attention_backend)
        adapters = tuple((prompt.file, prompt.scale) for prompt in self.image_prompts)
        return (self.scheduler, image, self.loras, adapters, *machine, self.tiled)

    def decides(self) -> dict[str, Any]:
        """What of this decides the pixels, as JSON: files by their hash, devices by their kind.

        Offloading is not in it: it moves weights and changes no number. Compression and tiling are,
        where there are any.
        """
        data = self.to_json()
        del data["offload"]
        data.pop("vae_tiling", None)
        data |= {"vae_tiling": True} if self.tiled else {}
        if self.kv_compress is not None:
            del data["kv_compress"]["edit"]
            data["kv_compress"].pop("adapter", None)
        data["device"] = self.device.partition(":")[0]
        data["image"] = file_sha256(self.image) if self.image else None
        if self.control_image is not None:
            data["control_image"] = file_sha256(self.control_image)
        if self.image_prompts:
            data["image_prompts"] = [prompt.decides() for prompt in self.image_prompts]
        data["loras"] = {
            lora.name: {"sha256": file_sha256(lora.file), "weight": lora.weight}
            for lora in self.loras
        }
        return data

    def to_json(self) -> dict[str, Any]:
        """Plain data from which `from_json` makes the same settings again."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data["size"] = list(self.size) if self.size else None
        data["image"] = str(self.image) if self.image else None
        data["loras"] = [[x.name, str(x.file), x.weight] for x in self.loras]
        data["control_image"] = str(self.control_image) if self.control_image else None
        data["image_prompts"] = [prompt.to_json() for prompt in self.image_prompts] or None
        # Left out where they are not used: a picture then has the key it had before they existed.
        for name in ("control_image", "image_prompts", "kv_compress", "vae_tiling"):
            if data[name] is None:
                del data[name]
        if self.kv_compress is not None:
            data["kv_compress"] = self.kv_compress.to_json()
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Settings:
        """The inverse of `to_json`.

        Raises:
            InputError: the data is not that of settings.
        """
        try:
            values = dict(data)
            values["size"] = tuple(values["size"]) if values["size"] else None
            values["image"] = Path(values["image"]) if values["image"] else None
            if "control_image" in values:
                values["control_image"] = Path(values["control_image"])
            prompts = values.get("image_prompts", ())
            values["image_prompts"] = tuple(ImagePrompt.from_json(prompt) for prompt in prompts)
            values["loras"] = tuple(LoraFile(n, Path(f), w) for n, f, w in values["loras"])
            if "kv_compress" in values:
                values["kv_compress"] = CompressedKV.from_json(values["kv_compress"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise InputError(f"these are no settings of this version: {error}") from error


def _finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise InputError(f"expected a finite number for the {name}, got {value}")
