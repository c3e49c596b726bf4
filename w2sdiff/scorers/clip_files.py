"""Which files a CLIP is made of, before any of them is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from w2sdiff.errors import InputError
from w2sdiff.jobs import digest, file_sha256
from w2sdiff.scorers.preprocess import OPENAI_MEAN, OPENAI_STD
from w2sdiff.scorers.text import TOKENIZER_FILES
from w2sdiff.scorers.weights import find_weights

__all__ = ["OPEN_CLIP_CONFIG", "OPEN_CLIP_WEIGHTS", "ClipFiles", "find_clip", "from_open_clip"]

OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


@dataclass(frozen=True)
class ClipFiles:
    """A CLIP on disk.

    Attributes:
        library: which library's network reads the weights.
        config: of the network, as that library writes it.
        weights: the file.
        sha256: of the weights, where it must be stated (a pickle).
        tokenizer: the folder of its tokenizer; None stands for CLIP's own byte pairs.
        preprocess: "mean", "std" and "interpolation" where they are not OpenAI's.
    """

    library: Literal["open_clip", "transformers"]
    config: dict[str, Any]
    weights: Path
    sha256: str | None = None
    tokenizer: Path | None = None
    preprocess: dict[str, Any] = field(default_factory=dict)

    @property
    def context(self) -> int:
        """How many tokens it reads."""
        if self.library == "open_clip":
            return int(self.config["text_cfg"].get("context_length", 77))
        return int(self.config.get("text_config", {}).get("max_position_embeddings", 77))

    @property
    def image_size(self) -> int:
        """Side of the pictures it reads, in pixels."""
        vision = self.config.get(
            "vision_cfg" if self.library == "open_clip" else "vision_config", {}
        )
        size = vision.get("image_size", 224)
        return int(size[0] if isinstance(size, Sequence) else size)

    @property
    def mean(self) -> tuple[float, ...]:
        """Subtracted from the channels."""
        return tuple(self.preprocess.get("mean") or OPENAI_MEAN)

    @property
    def std(self) -> tuple[float, ...]:
        """The channels are divided by it."""
        return tuple(self.preprocess.get("std") or OPENAI_STD)

    @property
    def interpolation(self) -> str:
        """PIL filter of the resize."""
        return str(self.preprocess.get("interpolation") or "bicubic")

    def identity(self) -> dict[str, Any]:
        """Everything here that decides a feature, by content: no path."""
        files = {self.weights.name: file_sha256(self.weights), "config": digest(self.config)}
        if self.tokenizer:
            present = (self.tokenizer / name for name in TOKENIZER_FILES)
            files |= {file.name: file_sha256(file) for file in present if file.is_file()}
        return files

    def describe(self) -> str:
        """The preprocessing of CLIP in words."""
        return (
            f"8-bit RGB on white, shortest side to {self.image_size} {self.interpolation} (PIL), "
            f"centre crop, mean {list(self.mean)}, std {list(self.std)}"
        )


def find_clip(
    model: str, *, pretrained: str | None = None, download: bool = False, sha256: str | None = None
) -> ClipFiles:
    """Find a CLIP by what the user calls it.

    Args:
        model: "shapes-clip"; a folder in the layout of transformers (config.json) or of open_clip
            (open_clip_config.json); a hub id in that of transformers; or a model name of
            open_clip, with `pretrained`.
        pretrained: which weights of that model: a tag of open_clip, which also says whether they
            need QuickGELU. A file alone cannot say so, and the wrong one is silently wrong.
        download: whether to fetch what is not here.
        sha256: of the weights, where they are a pickle.

    Raises:
        InputError: it is not here, or is no CLIP.
    """
    if model == "shapes-clip":
        from w2sdiff.shapes import judge_path

        return from_open_clip(judge_path(model))
    if pretrained is not None:
        return _by_tag(model, pretrained, download)
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if _is_open_clip_name(model):
            raise InputError(
                f"{model} is an open_clip architecture: say which weights, as in "
                f"model={model},pretrained=openai"
            )
        folder = find_weights(model, download=download)
    if (folder / OPEN_CLIP_CONFIG).is_file() and not (folder / "config.json").is_file():
        return from_open_clip(folder, sha256=sha256)
    return _from_transformers(folder)


def from_open_clip(folder: Path, *, sha256: str | None = None) -> ClipFiles:
    """The CLIP of a folder with open_clip_config.json and open_clip_model.safetensors."""
    parts = _read(folder / OPEN_CLIP_CONFIG)
    config = parts["model_cfg"]
    own = bool(config["text_cfg"].get("hf_tokenizer_name"))
    return ClipFiles(
        "open_clip",
        config,
        find_weights(str(folder), OPEN_CLIP_WEIGHTS, sha256=sha256),
        tokenizer=folder if own else None,
        preprocess=_checked(parts.get("preprocess_cfg", {}), folder.name),
    )


def _from_transformers(folder: Path) -> ClipFiles:
    config = _read(folder / "config.json")
    if config.get("model_type") != "clip":
        raise InputError(
            f"expected a CLIP in {folder.name}, got model_type {config.get('model_type')!r}"
        )
    own = any((folder / name).is_file() for name in TOKENIZER_FILES[:2])
    preprocess: dict[str, Any] = {}
    if (folder / "preprocessor_config.json").is_file():
        stated = _read(folder / "preprocessor_config.json")
        preprocess = {"mean": stated.get("image_mean"), "std": stated.get("image_std")}
    weights = find_weights(str(folder), "model.safetensors")
    return ClipFiles(
        "transformers",
        config,
        weights,
        tokenizer=folder if own else None,
        preprocess=preprocess,
    )


def _by_tag(model: str, tag: str, download: bool) -> ClipFiles:
    import open_clip

    config, known = open_clip.get_model_config(model), open_clip.get_pretrained_cfg(model, tag)
    if config is None:
        raise InputError(f"open_clip has no model {model!r}; see open_clip.list_models()")
    if not known or not known.get("hf_hub"):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model))
        raise InputError(f"open_clip has no weights {tag!r} of {model} on the hub; it has: {tags}")
    if config["text_cfg"].get("hf_tokenizer_name") or config["text_cfg"].get("hf_model_name"):
        raise InputError(f"{model} has a tokenizer of its own: name its folder instead")
    config = config | {"quick_gelu": bool(known.get("quick_gelu", config.get("quick_gelu")))}
    weights = find_weights(known["hf_hub"].rstrip("/"), OPEN_CLIP_WEIGHTS, download=download)
    return ClipFiles("open_clip", config, weights, preprocess=_checked(known, f"{model} {tag}"))


def _checked(preprocess: dict[str, Any], name: str) -> dict[str, Any]:
    mode = preprocess.get("resize_mode") or "shortest"
    if mode != "shortest":
        raise InputError(f"{name} resizes its pictures by {mode!r}; only 'shortest' is known here")
    return {k: preprocess[k] for k in ("mean", "std", "interpolation") if k in preprocess}


def _is_open_clip_name(model: str) -> bool:
    if "/" in model:
        return False
    import open_clip

    return model in open_clip.list_models()


def _read(file: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {file.name} of {file.parent.name}: {error}") from error
    return data
