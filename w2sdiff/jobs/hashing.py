"""Content hashes: of JSON values, for keys, and of files, for weights."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from w2sdiff.errors import InputError

__all__ = ["canonical", "digest", "file_sha256", "weights_sha256"]

_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)
_LARGE = 2**22  # bytes; to hash less takes a few ms, and pictures would swell the memory


def canonical(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no spaces, no NaN.

    Raises:
        InputError: the value has no JSON form (a number that is not finite, an object, a broken
            character).

    Example:
        >>> canonical({"b": 1.5, "a": "é"})
        '{"a":"é","b":1.5}'
    """
    try:
        text = _ENCODER.encode(value)
        text.encode()  # a lone surrogate passes json but has no UTF-8 form
    except (TypeError, ValueError) as error:
        raise InputError(f"expected a value with a JSON form, got one without: {error}") from error
    return text


def digest(value: Any) -> str:
    """The sha256 of the canonical JSON of a value, 64 hexadecimal digits.

    Example:
        >>> digest({"seed": 1})[:12]
        'fbe47f6d82b4'
    """
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """The sha256 of a file; a large one is read once, and remembered by path, size and time.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        path = path.resolve(strict=True)
        state = path.stat()
        if state.st_size < _LARGE:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        memory = _Memory.load()
        name = f"{path}|{state.st_size}|{state.st_mtime_ns}"
        if name not in memory.hashes:
            with path.open("rb") as file:
                memory.add(name, hashlib.file_digest(file, "sha256").hexdigest())
        return memory.hashes[name]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def weights_sha256(path: Path) -> str:
    """The sha256 of a file, or of a folder's safetensors files with their names.

    Results are keyed by what weights are, never by what they are called.

    Raises:
        InputError: there is no such file, or the folder holds no safetensors.
    """
    if path.is_dir():
        files = sorted(path.rglob("*.safetensors"))
        if not files:
            raise InputError(f"No safetensors file in {path}.")
        parts = [f"{file.relative_to(path).as_posix()} {file_sha256(file)}" for file in files]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if not path.is_file():
        raise InputError(f"No such file: {path}.")
    return file_sha256(path)


class _Memory:
    """The hashes of files seen before: a cache, so whatever is wrong with it is passed over."""

    _loaded: dict[Path, _Memory] = {}  # noqa: RUF012 - one per process and place, on purpose

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hashes: dict[str, str] = {}
        with suppress(OSError, ValueError):
            known = json.loads(path.read_text("utf-8"))
            self.hashes = {name: value for name, value in known.items() if _is_sha256(value)}

    @classmethod
    def load(cls) -> _Memory:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        path = Path(home) / "w2sdiff" / "sha256.json"
        if path not in cls._loaded:
            cls._loaded[path] = cls(path)
        return cls._loaded[path]

    def add(self, name: str, value: str) -> None:
        self.hashes[name] = value
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # A name of its own: two processes may save at once, and the later one wins.
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, suffix=".tmp")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(self.hashes, file, indent=0)
            Path(temporary).replace(self.path)


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
