"""Published PixArt weights into a diffusers folder and back, compressed layers included.

PixArt-Σ's repository trains and stores one `.pth`; diffusers wants a folder with config.json and
safetensors, and has no place for the compression (`attn.sr.*`, `attn.norm.*`). Here the transformer
goes into the folder, what compresses it into `kv_adapter.safetensors` beside it, and the two
published tensors that diffusers computes or does without into `published.safetensors`, so that the
way back loses nothing: same names, same types, same bits.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2sdiff.attention.adapter import FILE, adapter_compression, save_adapter
from w2sdiff.attention.checkpoint import ABOUT, read_weights
from w2sdiff.attention.compression import KVCompression
from w2sdiff.attention.hosts.base import SLOT
from w2sdiff.attention.names import QK_NORM, UNPLACED, depth_of, to_diffusers, to_published
from w2sdiff.attention.patch import Patch
from w2sdiff.errors import InputError, UnsupportedError

__all__ = ["Converted", "from_published", "transformer_folder", "write_published"]

EXTRAS = "published.safetensors"
HEAD_WIDTH = 72  # of every published model
SCALES = (0.5, 1, 2, 4)  # published interpolation of positions, at 256, 512, 1024 and 2K pixels
_SHOWN = 3  # names per complaint


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
    _check_depth(state, name)
    sizes = _sizes_of(state, name)
    if like is None:
        config = _config_of(sizes, state, name, heads=heads, size=size, about=weights.about)
    else:
        config = _config_like(Path(like), sizes, state, name, heads=heads, size=size)
    compression = _compression_of(state, name, ratio)
    whose = "a PixArt of its sizes" if like is None else f"the config of {like}"
    _compare(state, _expected(config, compression), name, whose)

    parts = to_diffusers(state)
    ours = {key: value for key, value in parts.items() if f".{SLOT}." not in key}
    network = _network(config)
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
    return Converted(folder, config["num_layers"], _width(config), compression)


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
    config = _config_in(folder)
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


# ---- what a file is


def _check_depth(state: Mapping[str, Tensor], name: str) -> None:
    depth = depth_of(state)
    there = {int(key.split(".")[1]) for key in state if key.startswith("blocks.")}
    missing = sorted(set(range(depth)) - there)
    if missing:
        listed = ", ".join(map(str, missing[:_SHOWN]))
        raise InputError(
            f"{name} has blocks up to {depth - 1}, but no block {listed}: it is not a whole model."
        )
    norms = [key for key in state if QK_NORM.match(key)]
    if norms:
        raise UnsupportedError(
            f"{name} normalises queries and keys over all heads ({norms[0]}, ...), which diffusers'"
            " PixArt has no place for. Train or take a model without qk_norm."
        )


def _sizes_of(state: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """What the shapes of the weights say, under the names of diffusers' config; and the width."""
    needed = ("x_embedder.proj.weight", "final_layer.linear.weight", "y_embedder.y_proj.fc1.weight")
    absent = [key for key in needed if key not in state]
    if absent or depth_of(state) == 0:
        what = ", ".join(absent) or "blocks.0.*"
        raise InputError(
            f"{name} is no PixArt checkpoint: it has no {what}; its {len(state)} tensors begin "
            f"with {', '.join(list(state)[:_SHOWN])}."
        )
    patches, last, caption = (state[key] for key in needed)
    if patches.dim() != 4 or last.dim() != 2 or caption.dim() != 2:
        raise InputError(
            f"{name} is no PixArt checkpoint: {needed[0]} is {list(patches.shape)}, "
            f"{needed[1]} {list(last.shape)}, {needed[2]} {list(caption.shape)}."
        )
    width, channels, patch = patches.shape[:3]
    return {
        "num_layers": depth_of(state),
        "cross_attention_dim": width,
        "in_channels": channels,
        "out_channels": last.shape[0] // patch**2,
        "patch_size": patch,
        "caption_channels": caption.shape[1],
        "use_additional_conditions": "csize_embedder.mlp.0.weight" in state,
    }


def _config_of(
    sizes: dict[str, Any],
    state: Mapping[str, Tensor],
    name: str,
    *,
    heads: int | None,
    size: int | None,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The config that these weights have in diffusers."""
    said = dict(about.get("config", {}))
    width, patch = sizes["cross_attention_dim"], sizes["patch_size"]
    heads = heads or said.get("num_attention_heads") or _published_heads(width, name)
    if width % heads:
        raise InputError(f"A width of {width} does not go into {heads} heads.")
    sample, scale = _positions(state.get("pos_embed"), name, width, patch, size, said)
    own = {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "sample_size": sample,
        "interpolation_scale": scale,
    }
    return _complete({**said, **sizes, **own})


def _config_like(
    like: Path,
    sizes: dict[str, Any],
    state: Mapping[str, Tensor],
    name: str,
    *,
    heads: int | None,
    size: int | None,
) -> dict[str, Any]:
    """The config in a folder, if these weights fit it."""
    config = _config_in(transformer_folder(like))
    latents = None if size is None else size // _pixels_per_latent(like)
    micro = _network(config).use_additional_conditions
    facts = {
        "a depth": (sizes["num_layers"], config["num_layers"]),
        "a width": (sizes["cross_attention_dim"], _width(config)),
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


def _check_positions(stored: Tensor, config: Mapping[str, Any], name: str, like: Path) -> None:
    """Refuse a stored position embedding that is not the one of a config."""
    expected = _table(config)
    if stored.dim() == 3 and stored.shape[1:] == expected.shape and _same(stored[0], expected):
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


def _published_heads(width: int, name: str) -> int:
    if width % HEAD_WIDTH:
        raise InputError(
            f"{name} is {width} wide, which is no number of heads of {HEAD_WIDTH} channels as "
            "published; say how many heads it has (heads=)."
        )
    return width // HEAD_WIDTH


def _positions(
    stored: Tensor | None,
    name: str,
    width: int,
    patch: int,
    size: int | None,
    said: Mapping[str, Any],
) -> tuple[int, float]:
    """Latents per side of the training, and the interpolation of positions."""
    if stored is None:
        sample = size // 8 if size else said.get("sample_size", 128)
        return sample, said.get("interpolation_scale") or max(sample / 64, 0.5)
    side = math.isqrt(stored.shape[1]) if stored.dim() == 3 else 0
    if stored.dim() != 3 or side**2 != stored.shape[1] or stored.shape[2] != width:
        raise InputError(
            f"{name}: pos_embed is {list(stored.shape)}, expected [1, tokens of a square, {width}]."
        )
    if size is not None and size // 8 != side * patch:
        raise InputError(
            f"{name} was trained at {8 * side * patch} pixels: its pos_embed has {side} x {side} "
            f"tokens; you said {size}."
        )
    scales = [*SCALES, *filter(None, [said.get("interpolation_scale")])]
    for scale in scales:
        if _same(stored[0], _sincos(width, side, scale)):
            return side * patch, scale
    raise InputError(
        f"{name}: pos_embed is not the published one at any interpolation of positions "
        f"({', '.join(map(str, SCALES))}). If it is interpolated otherwise, name a folder whose "
        "config says so (like=)."
    )


def _same(stored: Tensor, table: Tensor) -> bool:
    # Stored in half precision it still is far nearer than another scale's.
    return torch.allclose(stored.double(), table.double(), atol=2e-3)


def _table(config: Mapping[str, Any]) -> Tensor:
    """The position embedding [tokens, width] that diffusers computes from a config."""
    return _sincos(_width(config), config["sample_size"] // config["patch_size"], _scale(config))


def _scale(config: Mapping[str, Any]) -> float:
    scale = config["interpolation_scale"]
    return float(max(config["sample_size"] // 64, 1) if scale is None else scale)


def _sincos(width: int, side: int, scale: float) -> Tensor:
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    table: Tensor = get_2d_sincos_pos_embed(
        width, side, base_size=side, interpolation_scale=scale, output_type="pt"
    )
    return table


def _compression_of(
    state: Mapping[str, Tensor], name: str, wanted: int | tuple[int, int] | None
) -> KVCompression | None:
    """What the compressed blocks do, by the sizes of their kernels."""
    ratios: dict[int, tuple[int, int]] = {}
    for key, value in state.items():
        if key.startswith("blocks.") and key.endswith(".attn.sr.weight"):
            if value.dim() != 4 or value.shape[1] != 1:
                raise InputError(
                    f"{name}: {key} is {list(value.shape)}, expected a depthwise kernel "
                    "[channels, 1, R, R]."
                )
            ratios[int(key.split(".")[1])] = (value.shape[2], value.shape[3])
    pair = (wanted, wanted) if isinstance(wanted, int) else wanted
    if pair is not None:
        if not ratios and pair != (1, 1):
            raise InputError(f"{name} has no compressed blocks (blocks.N.attn.sr.*).")
        for index, own in ratios.items():
            if own != pair:
                raise InputError(
                    f"{name}: blocks.{index}.attn.sr.weight compresses {own[0]} x {own[1]}, "
                    f"expected a ratio of {pair[0]} x {pair[1]}."
                )
    if not ratios:
        return None
    common = Counter(ratios.values()).most_common(1)[0][0]
    others = {index: own for index, own in ratios.items() if own != common}
    return KVCompression("conv", common, sorted(ratios), others)


# ---- comparing


def _network(config: Mapping[str, Any]) -> Any:
    from diffusers import PixArtTransformer2DModel

    with torch.device("meta"):
        return PixArtTransformer2DModel.from_config(dict(config))


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the values that are left to their defaults, and nothing else."""
    network = _network(config)
    return {key: value for key, value in network.config.items() if not key.startswith("_")}


def _config_in(folder: Path) -> dict[str, Any]:
    data = json.loads((folder / "config.json").read_text("utf-8"))
    if data.get("_class_name") != "PixArtTransformer2DModel":
        raise UnsupportedError(
            f"{folder} holds a {data.get('_class_name')}; published names are those of "
            "PixArtTransformer2DModel."
        )
    return _complete(data)


def _width(config: Mapping[str, Any]) -> int:
    return int(config["num_attention_heads"] * config["attention_head_dim"])


def _expected(
    config: Mapping[str, Any], compression: KVCompression | None
) -> dict[str, tuple[int, ...]]:
    """Published names and shapes of a network with this config."""
    network = _network(config)
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
        f"{len(keys)} {kind} ({', '.join(keys[:_SHOWN])}{', ...' if len(keys) > _SHOWN else ''})"
        for kind, keys in complaints.items()
        if keys
    ]
    if texts:
        raise InputError(
            f"{name} does not fit {whose}: of {len(expected)} tensors, {'; '.join(texts)}."
        )


# ---- files


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
    return {"pos_embed": _table(config)[None].to(dtype)}
