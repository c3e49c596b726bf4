"""One CLIP for all scorers that need one: pictures and prompts to unit vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from w2sdiff.errors import InputError
from w2sdiff.scorers.clip_files import ClipFiles
from w2sdiff.scorers.preprocess import normalise, resize_crop
from w2sdiff.scorers.text import Tokeniser, clip_tokeniser
from w2sdiff.scorers.weights import load_state

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

__all__ = ["BATCH", "Clip", "load_clip"]

BATCH = 32  # pictures in the network at once
T = TypeVar("T")


@dataclass(frozen=True)
class Clip:
    """A loaded CLIP.

    Attributes:
        files: what it was loaded from.
        model: of open_clip or transformers, in float32, on its device.
        words: its tokeniser.
        device: where it computes.
    """

    files: ClipFiles
    model: Any
    words: Tokeniser
    device: str

    def image_features(
        self, images: Sequence[Image], prepare: Callable[[Image], Tensor] | None = None
    ) -> Tensor:
        """Unit vectors of pictures, float32 [n, d] on the CPU.

        Args:
            images: of any size and mode.
            prepare: one picture to what the network reads, [3, size, size]; what CLIP does by
                default.
        """
        import torch

        own = prepare or self.prepare

        def features(part: Sequence[Image]) -> Tensor:
            pixels = torch.stack([own(image) for image in part]).to(self.device)
            if self.files.library == "open_clip":
                return self._unit(self.model.encode_image(pixels))
            return self._unit(self.model.get_image_features(pixel_values=pixels))

        return _in_batches(images, features)

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors of prompts, float32 [n, d] on the CPU; equal prompts are read once."""

        def features(part: Sequence[str]) -> Tensor:
            ids = self.words.encode(part).to(self.device)
            if self.files.library == "open_clip":
                return self._unit(self.model.encode_text(ids))
            return self._unit(self.model.get_text_features(input_ids=ids))

        different = list(dict.fromkeys(prompts))
        rows = {prompt: row for row, prompt in enumerate(different)}
        return _in_batches(different, features)[[rows[prompt] for prompt in prompts]]

    def cosines(
        self,
        images: Sequence[Image],
        prompts: Sequence[str],
        prepare: Callable[[Image], Tensor] | None = None,
    ) -> Tensor:
        """The cosine of each picture and its prompt, float64 [n].

        In float64, as each is one sum of products: sixteen bits, in which some published code
        computes it, leave 4,096 values between 0 and 1 and so false ties.
        """
        seen, read = self.image_features(images, prepare), self.text_features(prompts)
        cosines: Tensor = (seen.double() * read.double()).sum(-1)
        return cosines

    def prepare(self, image: Image) -> Tensor:
        """What CLIP does with a picture: shortest side, centre crop, mean and deviation."""
        files = self.files
        pixels = resize_crop(image, files.image_size, pil_filter=files.interpolation)
        return normalise(pixels, files.mean, files.std)

    @property
    def logit_scale(self) -> float:
        """The learned factor of the cosine, about 100."""
        return float(self.model.logit_scale.detach().exp())

    @staticmethod
    def _unit(features: Any) -> Tensor:
        # transformers 5 wraps the features in an output object, 4 gives the tensor.
        vectors: Tensor = getattr(features, "pooler_output", features).float()
        unit: Tensor = vectors / vectors.norm(dim=-1, keepdim=True)
        return unit


def load_clip(files: ClipFiles, device: str = "cpu") -> Clip:
    """Load a CLIP, in float32.

    Raises:
        InputError: the weights are not those of the configuration.
    """
    build = _open_clip if files.library == "open_clip" else _transformers
    model = build(files).float().eval().to(device)
    return Clip(files, model, clip_tokeniser(files.context, files.tokenizer), device)


def _open_clip(files: ClipFiles) -> Any:
    import copy

    import open_clip

    config = copy.deepcopy(files.config)
    custom = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    if {"multimodal_cfg", "decoder_cfg"} & set(config):
        raise InputError(f"{files.weights.parent.name} is more than a CLIP: it writes captions")
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_pretrained"] = False  # its weights are in the file
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    return _filled(model, load_state(files.weights, sha256=files.sha256), files)


def _transformers(files: ClipFiles) -> Any:
    from transformers import CLIPConfig, CLIPModel

    model = CLIPModel(CLIPConfig.from_dict(files.config))
    state = load_state(files.weights, sha256=files.sha256)
    # Written by older versions; the positions are 0, 1, 2, ... in all of them.
    state = {name: t for name, t in state.items() if not name.endswith("position_ids")}
    return _filled(model, state, files)


def _filled(model: Any, state: dict[str, Tensor], files: ClipFiles) -> Any:
    """The model with these weights, all of them and no others."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"{files.weights.name} does not fit its configuration: {str(error).splitlines()[1]}"
        ) from error
    return model


def _in_batches(items: Sequence[T], features: Callable[[Sequence[T]], Tensor]) -> Tensor:
    """The features of all items, as many at once as the memory takes."""
    import torch

    parts, start, size = [], 0, BATCH
    with torch.inference_mode():
        while start < len(items):
            try:
                parts.append(features(items[start : start + size]).cpu())
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size //= 2
                torch.cuda.empty_cache()
                continue
            start += size
    return torch.cat(parts) if parts else torch.zeros(0, 1)
