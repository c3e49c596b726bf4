"""Hashes of weight files: results are keyed by what weights are, never by their names."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from w2sdiff.errors import InputError


def sha256_of(path: Path) -> str:
    """sha256 of one file, or of a folder's safetensors files and their names, as hexadecimal text.

    The hash of an unchanged file (same size and time of change) is computed once per process.

    Raises:
        InputError: there is no such file, or the folder holds no safetensors.
    """
    if path.is_dir():
        files = sorted(path.rglob("*.safetensors"))
        if not files:
            raise InputError(f"No safetensors file in {path}.")
        parts = [f"{file.relative_to(path).as_posix()} {_of_file(file)}" for file in files]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if not path.is_file():
        raise InputError(f"No such file: {path}.")
    return _of_file(path)


def _of_file(path: Path) -> str:
    stat = path.stat()
    return _hash(path.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hash(path: Path, size: int, mtime_ns: int) -> str:
    del size, mtime_ns  # part of the key only: a changed file is hashed again
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
