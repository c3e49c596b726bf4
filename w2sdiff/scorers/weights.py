"""Finding weights and reading them: nothing is downloaded unasked, and no file runs code."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2sdiff.errors import InputError
from w2sdiff.jobs import file_sha256, write_whole

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KNOWN", "fetch_file", "find_weights", "load_state"]

KNOWN = {
    "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0": (
        "sac+logos+ava1-l14-linearMSE.pth"
    ),
}
"""Published pickles by their sha256: these need no `sha256=`."""

_PICKLES = {".pt", ".pth", ".bin"}
_FOLDER_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def find_weights(
    source: str, file: str | None = None, *, download: bool = False, sha256: str | None = None
) -> Path:
    """Return where weights lie on this machine.

    Args:
        source: a file, a folder, or a hub id (`owner/name`).
        file: which file of the folder or of the hub id; None stands for the folder as a whole
            (of a hub id: its configuration, tokenizer and safetensors).
        download: whether to fetch from the hub what is not in its cache.
        sha256: what the file must hash to; not checked where None.

    Raises:
        InputError: nothing is there (and may not be downloaded), or it is another file.
    """
    path = _local(source, file) or _hub(source, file, download)
    if sha256 is not None:
        if path.is_dir():
            raise InputError(f"sha256= is for one file, and {source!r} is a folder")
        _check(path, sha256)
    return path


def fetch_file(name: str, url: str, sha256: str, *, download: bool) -> Path:
    """Return a file that is published outside of the hub, from the cache or from its address.

    Args:
        name: of the file, for messages and for the cache.
        url: where it is published.
        sha256: of the file; anything else is refused and not kept.
        download: whether to fetch it where it is not in the cache.

    Raises:
        InputError: it is not here and may not be fetched, or what came is another file.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = home / "w2sdiff" / "weights" / sha256[:16] / name
    if not path.is_file():
        if not download:
            raise InputError(
                f"{name} is not here: name a local file, or allow the download from {url} "
                "(--download)"
            )
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                data = answer.read()
        except OSError as error:
            raise InputError(f"cannot fetch {name} from {url}: {error}") from error
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise InputError(
                f"{url} is not the known {name}: expected sha256 {sha256}, got {found}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    _check(path, sha256)
    return path


def load_state(path: Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """Read the tensors of one file, on the CPU and in the types they are stored in.

    Safetensors hold numbers only. A pickle (`.pt`, `.pth`, `.bin`) is read only if its hash is
    known, from `KNOWN` or as stated, and then with `weights_only=True`. A dictionary under
    "state_dict" is unwrapped.

    Args:
        path: the file.
        sha256: what it must hash to.

    Raises:
        InputError: the file is of another form, is not the stated one, or is a pickle that is
            unknown or holds more than weights.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"weight": torch.ones(2)}, Path(folder) / "head.safetensors")
        ...     load_state(Path(folder) / "head.safetensors")["weight"].tolist()
        [1.0, 1.0]
    """
    if sha256 is not None:
        _check(path, sha256)
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix not in _PICKLES:
        raise InputError(f"expected weights as .safetensors, .pt, .pth or .bin, got {path.name!r}")
    found = file_sha256(path)
    if sha256 is None and found not in KNOWN:
        raise InputError(
            f"{path.name} is a pickle of unknown origin: convert it to safetensors, or, if it is "
            f"the file you mean and its hash is the published one, state sha256={found}"
        )
    return _pickle(path)


def _local(source: str, file: str | None) -> Path | None:
    if not source.strip():
        raise InputError("expected a file, a folder or a hub id, got nothing")
    path = Path(source).expanduser()
    if path.is_dir():
        path = path / file if file else path
        if not path.exists():
            raise InputError(f"the folder {source} has no {file}")
        return path
    if path.is_file():
        return path
    if path.suffix in {*_PICKLES, ".safetensors", ".jsonl"} or source.startswith((".", "~", "/")):
        raise InputError(f"no file or folder at {source}")
    return None


def _hub(source: str, file: str | None, download: bool) -> Path:
    if not _HUB_ID.fullmatch(source):
        raise InputError(f"expected a file, a folder or a hub id (owner/name), got {source!r}")
    from huggingface_hub import hf_hub_download, snapshot_download

    what = f"{file} of {source}" if file else source
    try:
        if file is None:
            return Path(
                snapshot_download(
                    source,
                    allow_patterns=_FOLDER_FILES,
                    ignore_patterns=["open_clip_*"],  # the same weights again, in another layout
                    local_files_only=not download,
                )
            )
        return Path(hf_hub_download(source, file, local_files_only=not download))
    # The hub client has a dozen kinds of errors, of network, disk and hub; none of them is ours.
    except Exception as error:
        if download:
            raise InputError(f"cannot download {what}: {error}") from error
        raise InputError(
            f"{what} is not here: give a local path, or allow the download (--download)"
        ) from error


def _check(path: Path, sha256: str) -> None:
    found = file_sha256(path)
    if found != sha256.lower():
        raise InputError(f"{path.name} is another file: expected sha256 {sha256}, got {found}")


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        with path.open("rb") as file:
            start = file.read(4)
        posing = start.startswith((b"PK", b"\x80"))
        why = "it is a pickle under another name" if posing else str(error)
        raise InputError(f"{path.name} holds no safetensors: {why}") from error
    return state


def _pickle(path: Path) -> dict[str, Tensor]:
    import torch

    from w2sdiff.pickles import load_pickle

    state: Any = load_pickle(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise InputError(f"{path.name} holds no dictionary of tensors")
    return state
