"""From a template and values to one file that needs nothing else and can run nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from w2sdiff.errors import InputError

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["render"]


def render(
    template: str, styles: tuple[str, ...], scripts: tuple[str, ...], **values: Any
) -> bytes:
    """A whole page as UTF-8: the template, with its style sheets and scripts written into it.

    Every value is escaped. On top of that the page says, in its Content-Security-Policy, by their
    hashes which script and which style may run, and that nothing may be fetched but pictures of
    its own folder: were escaping ever forgotten, the browser would refuse what slipped through.

    Args:
        template: name in `templates/`.
        styles: names of style sheets, joined in this order.
        scripts: names of scripts, joined in this order.
        values: what the template shows; `tojson` writes one into a data block.

    Raises:
        InputError: a value that goes into a data block is no JSON.
    """
    style = "\n".join(map(_text, styles))
    script = "\n".join(map(_text, scripts))
    policy = "; ".join(
        [
            "default-src 'none'",
            f"style-src {_hash(style)}",
            f"script-src {_hash(script)}",
            # 'self' is nobody for a page opened from the disk, so `file:` is said beside it.
            "img-src data: 'self' file:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    page = _environment().get_template(template)
    try:
        text = page.render(style=style, script=script, policy=policy, **values)
    except (TypeError, ValueError) as error:
        raise InputError(f"cannot write the page: a value has no JSON form: {error}") from error
    return text.encode("utf-8", "replace")  # a lone surrogate of a prompt has no UTF-8


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("w2sdiff.bench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # `tojson` escapes < > & ' itself; ASCII also takes care of U+2028 and U+2029.
    environment.policies["json.dumps_kwargs"] = {
        "ensure_ascii": True,
        "allow_nan": False,
        "separators": (",", ":"),
    }
    environment.filters["pretty"] = _pretty
    return environment


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=str)


@cache
def _text(name: str) -> str:
    return (resources.files("w2sdiff.bench.report") / "templates" / name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
