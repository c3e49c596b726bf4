"""Reading the weights of somebody else's `.pth`: tensors and plain values, no code."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2sdiff.errors import InputError

__all__ = ["first_line", "load_pickle", "some", "tensors_of"]

_WRAPPERS = ("state_dict", "model", "module")  # names under which training scripts put the weights
_PREFIXES = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile prepend
_SHOWN = 3  # names per complaint


def load_pickle(path: Path) -> Any:
    """What a file of `torch.save` holds, on the CPU and, where its format allows, still on disk.

    Args:
        path: the file; its name may end in anything.

    Raises:
        InputError: no such file, damaged, or with code in it, which is not run.
    """
    if not path.is_file():
        raise InputError(f"expected a checkpoint, and there is no file {path}")
    try:
        with path.open("rb") as file:
            # Only zipped files, the form of torch since 1.6, can be mapped, and only by their path;
            # but a path that ends so makes torch expect safetensors.
            mmap = file.read(2) == b"PK" and path.suffix != ".safetensors"
            file.seek(0)
            source = path if mmap else file
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code or "function" in str(error):
            what = f" ({code[1]})" if code else ""
            raise InputError(
                f"{path.name} contains code{what} and is not loaded; expected a dictionary of "
                "tensors: save the model's state_dict(), or ask whoever made it for that"
            ) from error
        raise _no_checkpoint(path) from error
    except PermissionError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    # Damaged bytes raise whatever the place they are in leads to.
    except Exception as error:
        if "TorchScript" in str(error):
            raise InputError(
                f"{path.name} is a TorchScript program and is not loaded; expected a dictionary of "
                "tensors: save the model's state_dict()"
            ) from error
        raise _no_checkpoint(path) from error


def tensors_of(state: Any, name: str) -> dict[str, Tensor]:
    """The weights in what a checkpoint holds, out of the dictionaries of a training around them.

    Args:
        state: what was read.
        name: of the file, for messages.

    Raises:
        InputError: no dictionary of tensors, or other things among them.

    Example:
        >>> list(tensors_of({"state_dict": {"module.a": torch.ones(1)}}, "a.pth"))
        ['a']
    """
    while isinstance(state, Mapping):
        inner = next((state[w] for w in _WRAPPERS if isinstance(state.get(w), Mapping)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{name} holds no dictionary of tensors")
    wrong = [str(key) for key, value in state.items() if not _is_weight(key, value)]
    if wrong:
        raise InputError(f"{name} holds other things than weights: {some(wrong)}")
    tensors = dict(state)
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def some(names: Iterable[str]) -> str:
    """The first few names of many."""
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def first_line(error: Exception) -> str:
    """The first line of a message; torch goes on for a screen."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _no_checkpoint(path: Path) -> InputError:
    """In our words: those of torch end in the advice to run whatever code the file holds."""
    return InputError(
        f"{path.name} is damaged, cut off or no checkpoint: expected a file that torch.save wrote, "
        f"got {_looks(path)}; copy or download it again, or give the checkpoint's own file"
    )


def _looks(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "an empty file"
    if start.startswith(b"PK"):
        return "a zip file that is cut off or not of torch"
    if start.startswith(b"\x80"):
        return "a pickle that is cut off or holds other things than tensors"
    if start[8:9] == b"{":
        return "what looks like safetensors"
    # The last character may be cut in two.
    text = start.decode("utf-8", errors="replace").rstrip("\ufffd")
    printable = all(sign.isprintable() or sign.isspace() for sign in text)
    return "text" if printable and "\ufffd" not in text else "bytes that mean nothing to torch"


def _is_weight(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor) and value.dtype.is_floating_point
