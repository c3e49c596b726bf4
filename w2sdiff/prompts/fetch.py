"""Fetching known prompt sets: only when asked, only over https, only what the hash says."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from w2sdiff.errors import InputError
from w2sdiff.jobs import write_whole
from w2sdiff.prompts.known import KNOWN, KnownFile
from w2sdiff.registry import unknown

__all__ = ["cache_folder", "check_file", "fetch_set"]

MAX_BYTES = 64 * 2**20  # of a published file; the largest known one has a thousandth of that
_SECONDS = 60


def cache_folder() -> Path:
    """Where fetched prompt sets are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "w2sdiff" / "prompts"


def fetch_set(
    name: str, *, folder: Path | None = None, get: Callable[[str], bytes] | None = None
) -> list[Path]:
    """Fetch the files of a known set, check them, and keep them.

    Files are written whole or not at all, and none is kept that is not the known one.

    Args:
        name: of the set.
        folder: where to keep them; the cache by default.
        get: the bytes at an address, at most `MAX_BYTES`; over https by default.

    Returns:
        The files, in order.

    Raises:
        InputError: no such set, one that cannot be fetched, no connection, or not the known file.
    """
    if name not in KNOWN:
        raise unknown("prompt set", name, sorted(KNOWN))
    known, folder = KNOWN[name], folder or cache_folder()
    if not all(file.url for file in known.files):
        names = ", ".join(file.name for file in known.files)
        raise InputError(
            f"{name} is not published as a small file: put {names} into {folder} yourself; "
            f"its source: {known.source}"
        )
    return [_fetch(file, folder, get or _https) for file in known.files]


def check_file(file: KnownFile, data: bytes, where: str) -> None:
    """Refuse bytes that are not those of a known file.

    Raises:
        InputError: names the place, what was expected and what came.
    """
    if file.sha256 is None:
        return
    found = hashlib.sha256(data).hexdigest()
    if found != file.sha256:
        raise InputError(
            f"{where} is not the known {Path(file.name).name}: expected {file.size} bytes with the "
            f"sha256 {file.sha256}, got {len(data)} bytes with {found}; to use it all the same, "
            "give its path instead of the set's name"
        )


def _fetch(file: KnownFile, folder: Path, get: Callable[[str], bytes]) -> Path:
    assert file.url is not None
    data = get(file.url)
    if file.convert is not None:
        try:
            data = file.convert(data)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{file.url} is not what it was: {error}") from error
    check_file(file, data, file.url)
    path = folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)
    return path


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never to a place without https."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> urllib.request.Request | None:
        _check_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _https(url: str) -> bytes:
    _check_https(url)
    opener = urllib.request.build_opener(_OnlyHttps)
    try:
        with opener.open(url, timeout=_SECONDS) as answer:
            data: bytes = answer.read(MAX_BYTES + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise InputError(f"cannot fetch {url}: {getattr(error, 'reason', error)}") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{url} has more than {MAX_BYTES} bytes, too many for a prompt set")
    return data


def _check_https(url: str) -> None:
    if urlsplit(url).scheme != "https":
        raise InputError(f"expected an https address, got {url}")
