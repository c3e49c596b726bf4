"""The config of a PixArt transformer in diffusers: of weights, or of a folder they have to fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2sdiff.attention.inferred import (
    position_table,
    positions_of,
    published_heads,
    same_positions,
)
from w2sdiff.errors import InputError, UnsupportedError

__all__ = [
    "config_in",
    "config_like",
    "config_of",
    "network_of",
    "positions_in",
    "transformer_folder",
    "width_of",
]


def transformer_folder(folder: str | Path) -> Path:
    """The transformer's folder, where a pipeline's may be given.

    Raises:
        InputError: neither.
    """
    folder = Path(folder)
    inner = folder / "transformer" if (folder / "model_index.json").is_file() else folder
    if not (inner / "config.json").is_file():
        raise InputError(f"Expected the folder of a diffusers transformer or pipeline: {folder}.")
    return inner


def config_of(
    sizes: dict[str, Any],
    state: Mapping[str, Tensor],
    name: str,
    *,
    heads: int | None,
    size: int | None,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The config that these weights have in diffusers.

    Args:
        sizes: what the shapes of the weights say.
        state: the weights.
        name: of their file, for messages.
        heads: attention heads; None: as published.
        size: pixels per side of the training; None: what the position embedding says, or 1024.
        about: what our own files say beside the weights.

    Raises:
        InputError: heads, size or positions that these weights do not have.
    """
    said = dict(about.get("config", {}))
    width, patch = sizes["cross_attention_dim"], sizes["patch_size"]
    heads = heads or said.get("num_attention_heads") or published_heads(width, name)
    if width % heads:
        raise InputError(f"A width of {width} does not go into {heads} heads.")
    sample, scale = positions_of(state.get("pos_embed"), name, width, patch, size, said)
    own = {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "sample_size": sample,
        "interpolation_scale": scale,
    }
    return _complete({**said, **sizes, **own})


def config_like(
    like: Path,
    sizes: dict[str, Any],
    state: Mapping[str, Tensor],
    name: str,
    *,
    heads: int | None,
    size: int | None,
) -> dict[str, Any]:
    """The config in a folder, if these weights fit it.

    Args:
        like: a transformer's folder, or a pipeline's, whose VAE then says what a pixel is.
        sizes: what the shapes of the weights say.
        state: the weights.
        name: of their file, for messages.
        heads: attention heads the folder should have; None: any.
        size: pixels per side it should be for; None: any.

    Raises:
        InputError: no such folder, or something that does not fit, by its name.
    """
    config = config_in(transformer_folder(like))
    latents = None if size is None else size // _pixels_per_latent(like)
    micro = network_of(config).use_additional_conditions
    facts = {
        "a depth": (sizes["num_layers"], config["num_layers"]),
        "a width": (sizes["cross_attention_dim"], width_of(config)),
        "a patch size": (sizes["patch_size"], config["patch_size"]),
        "a number of latent channels": (sizes["in_channels"], config["in_channels"]),
        "a number of output channels": (
            sizes["out_channels"],
            config["out_channels"] or config["in_channels"],
        ),
        "a caption width": (sizes["caption_channels"], config["caption_channels"]),
    }
    for what, (own, expected) in facts.items():
        if own != expected:
            raise InputError(f"{name} has {what} of {own}; {like} has {expected}.")
    if sizes["use_additional_conditions"] != micro:
        having, lacking = (like, name) if micro else (name, like)
        raise InputError(
            f"{having} has micro-conditioning (csize_embedder, ar_embedder), {lacking} has none."
        )
    asked = {"heads": (heads, config["num_attention_heads"])}
    asked["latents per side"] = (latents, config["sample_size"])
    for what, (given, expected) in asked.items():
        if given is not None and given != expected:
            raise InputError(f"You said {given} {what}; {like} has {expected}.")
    if "pos_embed" in state:
        _check_positions(state["pos_embed"], config, name, like)
    return config


def config_in(folder: Path) -> dict[str, Any]:
    """The config in a transformer's folder, every value written out.

    Raises:
        UnsupportedError: of another transformer.
    """
    data = json.loads((folder / "config.json").read_text("utf-8"))
    if data.get("_class_name") != "PixArtTransformer2DModel":
        raise UnsupportedError(
            f"{folder} holds a {data.get('_class_name')}; published names are those of "
            "PixArtTransformer2DModel."
        )
    return _complete(data)


def network_of(config: Mapping[str, Any]) -> Any:
    """A network with this config, without memory for its weights."""
    from diffusers import PixArtTransformer2DModel

    with torch.device("meta"):
        return PixArtTransformer2DModel.from_config(dict(config))


def width_of(config: Mapping[str, Any]) -> int:
    """C, heads times channels per head."""
    return int(config["num_attention_heads"] * config["attention_head_dim"])


def positions_in(config: Mapping[str, Any]) -> Tensor:
    """The position embedding [tokens, width] that diffusers computes from a config."""
    return position_table(
        width_of(config), config["sample_size"] // config["patch_size"], _scale(config)
    )


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the values that are left to their defaults, and nothing else."""
    network = network_of(config)
    return {key: value for key, value in network.config.items() if not key.startswith("_")}


def _scale(config: Mapping[str, Any]) -> float:
    scale = config["interpolation_scale"]
    return float(max(config["sample_size"] // 64, 1) if scale is None else scale)


def _check_positions(stored: Tensor, config: Mapping[str, Any], name: str, like: Path) -> None:
    """Refuse a stored position embedding that is not the one of a config."""
    expected = positions_in(config)
    if (
        stored.dim() == 3
        and stored.shape[1:] == expected.shape
        and same_positions(stored[0], expected)
    ):
        return
    raise InputError(
        f"{name}: pos_embed {list(stored.shape)} is not that of {like}, {list(expected.shape)} at "
        f"an interpolation of {_scale(config):g}. If it is left from another training, take it out "
        "of the file: diffusers computes its own."
    )


def _pixels_per_latent(folder: Path) -> int:
    """Of a pipeline's VAE; of a transformer's folder, as published."""
    file = folder / "vae" / "config.json"
    if not file.is_file():
        return 8
    blocks: list[int] = json.loads(file.read_text("utf-8"))["block_out_channels"]
    return int(2 ** (len(blocks) - 1))
