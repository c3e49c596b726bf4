"""Published PixArt weights into a diffusers folder and back, compressed layers included.

PixArt-Σ's repository trains and stores one `.pth`; diffusers wants a folder with config.json and
safetensors, and has no place for the compression (`attn.sr.*`, `attn.norm.*`). Here the transformer
goes into the folder, what compresses it into `kv_adapter.safetensors` beside it, and the two
published tensors that diffusers computes or does without into `published.safetensors`, so that the
way back loses nothing: same names, same types, same bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2sdiff.attention.adapter import FILE, adapter_compression, save_adapter
from w2sdiff.attention.checkpoint import ABOUT, read_weights
from w2sdiff.attention.compression import KVCompression
from w2sdiff.attention.configs import (
    config_in,
    config_like,
    config_of,
    network_of,
    positions_in,
    transformer_folder,
    width_of,
)
from w2sdiff.attention.hosts.base import SLOT
from w2sdiff.attention.inferred import SHOWN, check_depth, compression_of, sizes_of
from w2sdiff.attention.names import UNPLACED, to_diffusers, to_published
from w2sdiff.attention.patch import Patch
from w2sdiff.errors import InputError, UnsupportedError

__all__ = ["Converted", "from_published", "write_published"]

EXTRAS = "published.safetensors"


@dataclass(frozen=True)
class Converted:
    """What came out of a published file.

    Attributes:
        folder: the transformer's folder.
        layers: number of blocks.
        width: C.
        compression: what `kv_adapter.safetensors` in the folder is for; None without one.
    """

    folder: Path
    layers: int
    width: int
    compression: KVCompression | None


def from_published(
    path: str | Path,
    folder: str | Path,
    *,
    heads: int | None = None,
    size: int | None = None,
    ema: bool = False,
    like: str | Path | None = None,
    ratio: int | tuple[int, int] | None = None,
) -> Converted:
    """Write a published PixArt-α or PixArt-Σ checkpoint as a diffusers transformer folder.

    Depth, width, patches and channels are read from the weights; the training resolution and the
    interpolation of positions from the stored position embedding. What weights do not tell, or tell
    in an unknown way, is taken from a folder of the same network, if one is named (`like`).

    Args:
        path: the `.pth`; no code in it is run.
        folder: of the transformer, made if it is not there.
        heads: attention heads, which weights do not tell; None: heads of 72 channels, as published.
        size: pixels per side of the training; None: what the position embedding says, or 1024.
            Eight pixels are one latent, unless `like` is a pipeline, whose VAE says how many.
        ema: take the running average of the weights.
        like: a transformer's folder, or a pipeline's, whose config is taken: heads, size, positions
            at any interpolation, micro-conditioning. The checkpoint must fit it.
        ratio: the compression ratio the checkpoint must have.

    Raises:
        InputError: no such file, damaged, with code in it, or not these weights; another depth,
            width, position embedding or ratio than asked for. The message has the names.
        UnsupportedError: it normalises queries and keys, which diffusers' PixArt cannot.
    """
    path, folder = Path(path), Path(folder)
    weights = read_weights(path, ema=ema)
    state, name = weights.state, path.name
    check_depth(state, name)
    sizes = sizes_of(state, name)
    if like is None:
        config = config_of(sizes, state, name, heads=heads, size=size, about=weights.about)
    else:
        config = config_like(Path(like), sizes, state, name, heads=heads, size=size)
    compression = compression_of(state, name, ratio)
    whose = "a PixArt of its sizes" if like is None else f"the config of {like}"
    _compare(state, _expected(config, compression), name, whose)

    parts = to_diffusers(state)
    ours = {key: value for key, value in parts.items() if f".{SLOT}." not in key}
    network = network_of(config)
    network.load_state_dict(ours, assign=True)
    network.save_pretrained(folder, safe_serialization=True)
    for file in (folder / FILE, folder / EXTRAS):
        file.unlink(missing_ok=True)
    if compression is not None:
        patch = Patch(network, compression)
        for layer, compressor in patch.compressors.items():
            own = {key: parts[f"{layer}.{SLOT}.{key}"] for key in compressor.state_dict()}
            compressor.load_state_dict(own, assign=True)
        save_adapter(patch, folder)
    _save_extras({key: state[key] for key in UNPLACED if key in state}, folder / EXTRAS)
    return Converted(folder, config["num_layers"], width_of(config), compression)


def write_published(folder: str | Path, path: str | Path) -> Path:
    """The inverse of `from_published`: a `.pth` with the published names, under "state_dict".

    Of a folder that never was one, the position embedding is computed; the embedding of the empty
    caption, of which diffusers knows nothing, is left out, and the published code keeps its own.

    Args:
        folder: of a PixArt transformer, or of a pipeline around one.
        path: the file to write. Beside the weights it has, as JSON under "w2sdiff", the config,
            so that heads and positions are known when it is read again.

    Raises:
        InputError: no transformer there, or weights that are not those of its config.
        UnsupportedError: another network than PixArt, or a compression without weights: the
            published code states that in its own config.

    Example:
        >>> import tempfile
        >>> from diffusers import PixArtTransformer2DModel
        >>> network = PixArtTransformer2DModel(num_layers=2, num_attention_heads=2,
        ...     attention_head_dim=8, cross_attention_dim=16, caption_channels=8, sample_size=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     network.save_pretrained(folder)
        ...     file = write_published(folder, Path(folder) / "published.pth")
        ...     again = from_published(file, Path(folder) / "again")
        >>> again.layers, again.width
        (2, 16)
    """
    folder, path = transformer_folder(folder), Path(path)
    config = config_in(folder)
    state = _read_folder(folder)
    compression = None
    if (folder / FILE).is_file():
        from safetensors.torch import load_file

        compression = adapter_compression(folder)
        if compression.kind != "conv":
            raise UnsupportedError(
                f"{folder / FILE} is of the kind {compression.kind}; published files hold conv."
            )
        state |= load_file(folder / FILE)
    published = to_published(state, config["num_layers"])
    published |= _extras(folder, config, next(iter(state.values())).dtype)
    _compare(published, _expected(config, compression), folder.name, "its config")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": published, ABOUT: json.dumps({"config": config})}, path)
    return path


def _expected(
    config: Mapping[str, Any], compression: KVCompression | None
) -> dict[str, tuple[int, ...]]:
    """Published names and shapes of a network with this config."""
    network = network_of(config)
    state: dict[str, Tensor] = dict(network.state_dict())
    if compression is not None:
        with torch.device("meta"):
            patch = Patch(network, compression)
        for layer, compressor in patch.compressors.items():
            own = compressor.state_dict()
            state |= {f"{layer}.{SLOT}.{key}": value.to("meta") for key, value in own.items()}
    published = to_published(state, config["num_layers"])
    return {key: tuple(value.shape) for key, value in published.items()}


def _compare(
    found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], name: str, whose: str
) -> None:
    shapes = [
        f"{key} {list(found[key].shape)}, expected {list(shape)}"
        for key, shape in expected.items()
        if key in found and tuple(found[key].shape) != shape
    ]
    complaints = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected and key not in UNPLACED],
        "of another shape": shapes,
    }
    texts = [
        f"{len(keys)} {kind} ({', '.join(keys[:SHOWN])}{', ...' if len(keys) > SHOWN else ''})"
        for kind, keys in complaints.items()
        if keys
    ]
    if texts:
        raise InputError(
            f"{name} does not fit {whose}: of {len(expected)} tensors, {'; '.join(texts)}."
        )


def _read_folder(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    files = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
    plain = [file for file in files if len(file.name.split(".")) == 2]
    if not plain:
        there = ", ".join(file.name for file in files) or "none"
        raise InputError(f"{folder} has no plain safetensors weights (there are: {there}).")
    state: dict[str, Tensor] = {}
    for file in plain:
        state |= load_file(file)
    return state


def _save_extras(tensors: dict[str, Tensor], file: Path) -> None:
    if not tensors:
        return
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in tensors.items()}, file)


def _extras(folder: Path, config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if (folder / EXTRAS).is_file():
        extras: dict[str, Tensor] = load_file(folder / EXTRAS)
        return extras
    return {"pos_embed": positions_in(config)[None].to(dtype)}
