"""`w2sdiff kv`: compressed keys and values: published weights in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from w2sdiff.cli.console import Reporter, hush_libraries
from w2sdiff.errors import InputError

__all__ = ["kv", "parse_ratio"]

kv = typer.Typer(
    help="Compressed keys and values: published weights in and out, training.",
    no_args_is_help=True,
)

_OUTPUT = "Output"


def _option(panel: str, text: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar)


@kv.command("convert")
def convert(
    source: Annotated[
        Path, typer.Argument(help="A published .pth; with --back, the folder of a transformer.")
    ],
    out: Annotated[
        Path, _option(_OUTPUT, "The folder to write; with --back, the .pth.", "--out", "-o")
    ],
    back: Annotated[
        bool, typer.Option("--back", help="From a diffusers folder to a .pth.")
    ] = False,
    heads: Annotated[
        int | None,
        typer.Option(help="Attention heads. Default: one per 72 channels."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Pixels per side of its training. Default: what it says.")
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the running average.")] = False,
    like: Annotated[
        Path | None, typer.Option(help="A diffusers folder that the weights must fit.")
    ] = None,
    ratio: Annotated[
        str | None, typer.Option(help="The compression it must have.", metavar="R or RxR")
    ] = None,
    quiet: Annotated[bool, _option(_OUTPUT, "Say nothing but errors.", "--quiet", "-q")] = False,
    as_json: Annotated[bool, _option(_OUTPUT, "JSON lines on stdout.", "--json")] = False,
    debug: Annotated[bool, _option(_OUTPUT, "Show where an error came from.", "--debug")] = False,
) -> None:
    """Read a published PixArt checkpoint into a diffusers folder, or write one back.

    Compressed blocks become kv_adapter.safetensors in the folder, which `generate --kv-compress
    model` finds there. No code in the file is run, and the way there and back loses nothing.
    """
    reporter = Reporter(quiet=quiet, as_json=as_json)
    with hush_libraries(debug=debug):
        from w2sdiff.attention import from_published, write_published

        if back:
            if heads or size or ema or like or ratio:
                raise InputError("--heads, --size, --ema, --like and --ratio do not go with --back")
            file = write_published(source, out)
            reporter.result(str(file), "published", file=str(file))
            return
        wanted = parse_ratio(ratio) if ratio else None
        found = from_published(
            source, out, heads=heads, size=size, ema=ema, like=like, ratio=wanted
        )
    compression = found.compression
    what = "not compressed" if compression is None else f"compressed: {compression}"
    reporter.note(f"{found.layers} layers of width {found.width}, {what}")
    reporter.result(
        str(found.folder),
        "transformer",
        folder=str(found.folder),
        layers=found.layers,
        width=found.width,
        compression=compression and compression.to_json(),
    )


def parse_ratio(text: str) -> int | tuple[int, int]:
    """A ratio from "2" or "2x4" (height, width).

    Raises:
        InputError: the text is neither.
    """
    try:
        pair = [int(part) for part in text.split("x")]
    except ValueError:
        pair = []
    if len(pair) not in (1, 2):
        raise InputError(f"expected a ratio such as 2, or 2x4 for height and width, got {text!r}")
    return pair[0] if len(pair) == 1 else (pair[0], pair[1])
