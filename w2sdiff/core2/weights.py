"""Weights of the published noise model; no file runs code. `save_noise_model` writes them back."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2sdiff.core2.noise_model import FORMAT, parse_header
from w2sdiff.core2.published import SD35, SDXL, PublishedConfig, PublishedNoiseModel
from w2sdiff.errors import InputError
from w2sdiff.jobs.files import reason

__all__ = ["load_published"]

_WRAPPERS = ("state_dict", "model", "module")  # names under which training scripts put the weights
_PREFIXES = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile prepend
_SHOWN = 3  # names per complaint


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
    state = _unwrap(state, path.name)
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
            return _pickle(path, zipped=start.startswith(b"PK")), {}
        return _safetensors(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error


def _pickle(path: Path, *, zipped: bool) -> Any:
    # Only zipped files, the form of torch since 1.6, can be mapped, and only by their path; but a
    # path that ends so makes torch expect safetensors.
    mmap = zipped and path.suffix != ".safetensors"
    try:
        with path.open("rb") as file:
            source = path if mmap else file
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code or "function" in str(error):
            what = f" ({code[1]})" if code else ""
            raise InputError(
                f"{path.name} contains code{what} and is not loaded; expected a dictionary of "
                "tensors: save the model's state_dict()"
            ) from error
        raise InputError(f"{path.name} is damaged or no checkpoint: {_first(error)}") from error
    # Damaged bytes raise whatever the place they are in leads to.
    except Exception as error:
        raise InputError(
            f"{path.name} is damaged, cut off or no checkpoint: {_first(error)}"
        ) from error


def _safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return state, file.metadata() or {}
    except SafetensorError as error:
        raise InputError(
            f"{path.name} is damaged, cut off or no checkpoint: {_first(error)}"
        ) from error


def _first(error: Exception) -> str:
    """The first line of a message; torch goes on for a screen."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _unwrap(state: Any, name: str) -> dict[str, Tensor]:
    while isinstance(state, Mapping):
        inner = next((state[w] for w in _WRAPPERS if isinstance(state.get(w), Mapping)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{name} holds no dictionary of tensors")
    wrong = [
        str(key)
        for key, value in state.items()
        if not isinstance(key, str)
        or not isinstance(value, Tensor)
        or not value.dtype.is_floating_point
    ]
    if wrong:
        raise InputError(f"{name} holds other things than weights: {_some(wrong)}")
    tensors = dict(state)
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


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
    texts = [f"{len(c)} {kind} ({_some(c)})" for kind, c in complaints.items() if c]
    if texts:
        raise InputError(f"{intro}: of {len(expected)} tensors, {'; '.join(texts)}")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
