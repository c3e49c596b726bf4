"""Weights of the published noise model; no file runs code. `save_noise_model` writes them back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2sdiff.core2.noise_model import FORMAT, parse_header
from w2sdiff.core2.published import SD35, SDXL, PublishedConfig, PublishedNoiseModel
from w2sdiff.errors import InputError
from w2sdiff.jobs.files import reason
from w2sdiff.pickles import first_line, load_pickle, some, tensors_of

__all__ = ["load_published"]


def load_published(
    path: str | Path, *, config: PublishedConfig | None = None, reference: bool = False
) -> PublishedNoiseModel:
    """Read a published checkpoint (`.pth`), or what `save_noise_model` wrote.

    The file is told by its content, not by its name. Tensors stay as they are stored, in type and,
    where the format allows, on disk until they are used. Weights that lie under "state_dict", or
    whose names begin with "module.", are unwrapped.

    Args:
        path: the file.
        config: sizes of the model; None: what the file says or, where it says nothing, the
            published host that its keys tell.
        reference: see `PublishedNoiseModel`.

    Raises:
        InputError: there is no such file; it is damaged, or contains code, which is not run; or it
            holds other weights, and the message says which are missing, unexpected or misshapen.
    """
    path = Path(path).expanduser()
    state, metadata = _read(path)
    state = tensors_of(state, path.name)
    host = "the stated configuration"
    if config is None and FORMAT in metadata:
        config, host = _config(metadata, path.name), "its own configuration"
    if config is None:
        # Only SDXL brings the pooled embeddings to the width of the text.
        sdxl = "pool_prompt_linear.linear.weight" in state
        config, host = (SDXL, "SDXL") if sdxl else (SD35, "Stable Diffusion 3.5")
    with torch.device("meta"):
        model = PublishedNoiseModel(config, reference=reference)
    _compare(state, model.state_dict(), f"{path.name} does not fit the noise model of {host}")
    model.load_state_dict(state, assign=True)
    dtypes = {tensor.dtype for tensor in state.values()}
    if len(dtypes) > 1:  # a layer multiplies only tensors of one type
        widest = torch.float32 if torch.float64 not in dtypes else torch.float64
        model.to(widest)
    return model.eval()


def _read(path: Path) -> tuple[Any, Mapping[str, str]]:
    """What the file holds, and what it says of itself."""
    if not path.is_file():
        raise InputError(f"expected the file of a noise model, and there is none at {path}")
    try:
        with path.open("rb") as file:
            start = file.read(9)
        # Safetensors begin with the length of their header in eight bytes, which may look like
        # anything, and with the header, a JSON object.
        if not start.endswith(b"{") and start.startswith((b"PK", b"\x80")):
            return load_pickle(path), {}
        return _safetensors(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error


def _safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return state, file.metadata() or {}
    except SafetensorError as error:
        raise InputError(
            f"{path.name} is damaged, cut off or no checkpoint: {first_line(error)}"
        ) from error


def _config(metadata: Mapping[str, str], name: str) -> PublishedConfig:
    header = parse_header(metadata[FORMAT], name)
    if header.get("form") != PublishedNoiseModel.form:
        raise InputError(
            f"{name} holds a noise model of the form {header.get('form')!r}, "
            f"expected {PublishedNoiseModel.form!r}"
        )
    return PublishedConfig.from_json(header.get("config", {}))


def _compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], intro: str) -> None:
    shapes = [
        f"{key} {list(found[key].shape)}, expected {list(tensor.shape)}"
        for key, tensor in expected.items()
        if key in found and found[key].shape != tensor.shape
    ]
    complaints = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "of another shape": shapes,
    }
    texts = [f"{len(c)} {kind} ({some(c)})" for kind, c in complaints.items() if c]
    if texts:
        raise InputError(f"{intro}: of {len(expected)} tensors, {'; '.join(texts)}")
