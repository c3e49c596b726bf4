"""A denoiser on the hub: found in the local cache, or fetched; looked for once per process.

What is fetched is what is loaded and nothing else: of each denoiser its configuration and one set
of weights, safetensors, the plain ones or else those of the first variant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from threading import Lock

from w2sdiff.errors import InputError

# Folders of denoisers in a pipeline's repository; "" is a repository of one network alone.
FOLDERS = ("unet", "transformer", "transformer_2", "unconditional_transformer", "")
WEIGHTS = "diffusion_pytorch_model"
INDEX = "model_index.json"
_BESIDE = "kv_adapter.safetensors"  # travels with a transformer, see `w2sdiff.attention`
_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")

_lock = Lock()
_found: dict[tuple[str, str], Path] = {}


def is_hub_id(source: object) -> bool:
    """Whether it reads "owner/name" and is no path that exists."""
    if not isinstance(source, str) or Path(source).exists():
        return False
    return _ID.fullmatch(source) is not None


def snapshot(repo: str, *, download: bool = True) -> Path:
    """The folder in which the hub's cache keeps a model's denoisers.

    The hub is asked only if the cache lacks them, and never twice by one process.

    Args:
        repo: "owner/name".
        download: whether what the cache lacks may be fetched.

    Raises:
        InputError: the cache has no such model, and neither has the hub; says why.
    """
    from huggingface_hub import constants

    key = (str(constants.HF_HUB_CACHE), repo)
    with _lock:
        if key not in _found or not _found[key].is_dir():
            _found[key] = _cached(repo) or _fetched(repo, download=download)
        return _found[key]


def is_here(source: object) -> bool:
    """Whether it can be loaded without a download: a path that exists, or a model in the cache."""
    if not is_hub_id(source):
        return Path(str(source)).exists()
    try:
        snapshot(str(source), download=False)
    except InputError:
        return False
    return True


def chosen(files: Iterable[str]) -> list[str]:
    """Of the files of a repository or folder, by their paths, those that a denoiser is loaded from.

    Example:
        >>> chosen(["unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors",
        ...     "unet/diffusion_pytorch_model.safetensors", "vae/config.json"])
        ['unet/config.json', 'unet/diffusion_pytorch_model.safetensors']
    """
    files = sorted(files)
    folders = [name for name in FOLDERS if name or INDEX not in files]
    return [file for folder in folders for file in _of_folder(folder, files)]


def weights_in(folder: Path) -> list[Path]:
    """The files of weights that `chosen` takes of a folder."""
    found = [folder / file for file in chosen(files_of(folder))]
    return [
        file for file in found if file.name.startswith(WEIGHTS) and file.suffix == ".safetensors"
    ]


def files_of(folder: Path) -> list[str]:
    """Files of a folder and of those in it that may hold a denoiser, by their paths in it."""
    places = [folder / name for name in FOLDERS if (folder / name).is_dir()]
    found = [file for place in places for file in place.iterdir() if file.is_file()]
    return sorted(file.relative_to(folder).as_posix() for file in found)


def variant_of(file: str) -> str | None:
    """The variant in the name of a weight file or its shard: `x.fp16.safetensors` -> fp16.

    Example:
        >>> variant_of("diffusion_pytorch_model.fp16-00001-of-00002.safetensors")
        'fp16'
    """
    middle = ".".join(PurePosixPath(file).name.split(".")[1:-1])
    return re.sub(r"-\d{5}-of-\d{5}$", "", middle) or None


def _of_folder(folder: str, files: list[str]) -> list[str]:
    inside = {PurePosixPath(f).name: f for f in files if _parent(f) == folder}
    found = [n for n in inside if n.startswith(WEIGHTS) and n.endswith(".safetensors")]
    if "config.json" not in inside or not found:
        return []
    variants = {variant_of(name) for name in found}
    variant = None if None in variants else min(filter(None, variants))
    settings = [name for name in inside if name.endswith(".json")]
    beside = [_BESIDE] if _BESIDE in inside else []
    wanted = {*settings, *beside, *(name for name in found if variant_of(name) == variant)}
    return [inside[name] for name in sorted(wanted)]


def _parent(file: str) -> str:
    parent = PurePosixPath(file).parent.as_posix()
    return "" if parent == "." else parent


def _cached(repo: str) -> Path | None:
    """The folder in the cache, if everything that is loaded is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # No file is asked for: newer clients (2.0) want whole snapshots otherwise, all variants.
        folder = Path(snapshot_download(repo, local_files_only=True, allow_patterns=[]))
    except LocalEntryNotFoundError:
        return None
    return folder if _is_whole(folder) else None


def _is_whole(folder: Path) -> bool:
    found = chosen(files_of(folder))
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text("utf-8"))
        wanted = {name for name in FOLDERS if (index.get(name) or [None])[0] is not None}
        if not wanted <= {_parent(file) for file in found}:
            return False
    return bool(found) and all(_has_its_shards(found, file) for file in found)


def _has_its_shards(files: list[str], file: str) -> bool:
    """Whether all parts of a weight file that is one of several are there."""
    match = re.search(r"-\d{5}-of-(\d{5})\b", file)
    if match is None:
        return True
    start, end = file[: match.start()], file[match.end() :]
    number = sum(other.startswith(f"{start}-") and other.endswith(end) for other in files)
    return number == int(match[1])


def _fetched(repo: str, *, download: bool) -> Path:
    from huggingface_hub import list_repo_files, snapshot_download

    lacks = f"No folder {repo!r} here, and the hub's local cache does not hold its denoiser"
    if not download:
        raise InputError(f"{lacks}; allow the download (--download), or give its folder.")
    try:
        files = list_repo_files(repo)
        wanted = chosen(files)
        if wanted:
            return Path(snapshot_download(repo, allow_patterns=[*wanted, INDEX]))
    except Exception as error:  # the hub's client has many ways to say no, of several libraries
        short = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{lacks}; the hub does not give it: {short}") from error
    raise InputError(f"{repo} on the hub has no denoiser in safetensors.")
