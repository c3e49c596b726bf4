"""The command line's grammar for edits: `lora:dpo=-1.5,guidance=1`.

    edits  =  edit { "," edit }
    edit   =  kind [ ":" argument ] "=" value
    value  =  anything without a comma, or a text in double quotes ("" inside stands for one quote)

What an argument and a value may be is for the kind to say: `w2sdiff list` shows every form.
"""

from __future__ import annotations

import re

from w2sdiff.edits.base import EDITS, Edit, Edits
from w2sdiff.errors import InputError

_EDIT = re.compile(r"\s*(?P<kind>[\w-]+)(?::(?P<argument>[^=]*))?=(?P<value>.*)", re.DOTALL)


def parse_edits(text: str) -> Edits:
    """Edits of one role from the command line's text.

    Args:
        text: for example `lora:dpo=-1.5,guidance=1` or `prompt="{prompt}, best quality"`.

    Raises:
        InputError: empty text, unknown kind (with the nearest known one), or a value the kind does
            not take.

    Example:
        >>> parse_edits("lora:dpo=-1.5,guidance=1")
        Guidance(scale=1.0) | Lora(name='dpo', scale=-1.5, sha256=None)
    """
    if not text.strip():
        raise InputError("Empty edits; write for example guidance=1 or lora:dpo=-1.5,guidance=1.")
    return Edits(tuple(_parse_one(part) for part in split_edits(text)))


def _parse_one(part: str) -> Edit:
    match = _EDIT.fullmatch(part)
    if match is None:
        kind = re.split("[:=]", part)[0].strip()
        EDITS[kind]  # an unknown kind is the likelier mistake, and its message is the better one
        form = EDITS.summary(kind).split("  ")[0]
        raise InputError(f"Cannot read the edit {part!r}; write {form}.")
    value = match["value"].strip()
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1].replace('""', '"')
    return EDITS[match["kind"]].from_text(match["argument"], value)


def split_edits(text: str) -> list[str]:
    """The edits of a role one by one: split at commas outside double quotes; the quotes stay.

    Raises:
        InputError: a comma too many, or a quote that is not closed.
    """
    parts = re.findall(r'(?:[^",]|"(?:[^"]|"")*")+', text)
    if ",".join(parts) != text:
        raise InputError(
            f"Cannot read the edits {text!r}: a comma too many, or a quote that is not closed."
        )
    return parts
