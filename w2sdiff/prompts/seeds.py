"""Which seed a picture starts from: a function of what it is, never of the order of work."""

from __future__ import annotations

import hashlib
import json

from w2sdiff.errors import InputError

__all__ = ["index_seed", "seed_of"]


def seed_of(set_name: str, prompt_id: str, replicate: int) -> int:
    """The seed of a replicate of a prompt: 63 bits of a sha256.

    It depends on nothing else, so `--limit`, shards, batches and other prompts change no picture.

    Args:
        set_name: of the prompt set.
        prompt_id: of the prompt in the set.
        replicate: from 0.

    Raises:
        InputError: a replicate below 0.

    Example:
        >>> seed_of("shapes", "1", 0)
        2702832607891867507
    """
    _check("a replicate", replicate)
    text = json.dumps([set_name, prompt_id, replicate])  # ASCII, and no two triples share a text
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def index_seed(index: int, replicate: int, count: int) -> int:
    """The seed that the published code of W2SD and Z-Sampling uses: the number of the prompt.

    Args:
        index: of the prompt in the set, from 0, empty rows not counted.
        replicate: from 0; each one takes the next `count` seeds.
        count: prompts in the whole set, before any limit.

    Raises:
        InputError: the index is not below the count, or something is below 0.

    Example:
        >>> index_seed(3, replicate=0, count=100), index_seed(3, replicate=2, count=100)
        (3, 203)
    """
    _check("an index", index)
    _check("a replicate", replicate)
    if index >= count:
        raise InputError(f"expected an index below {count}, the number of prompts, got {index}")
    return index + replicate * count


def _check(what: str, value: int) -> None:
    if value < 0:
        raise InputError(f"expected {what} of at least 0, got {value}")
