"""`w2sdiff rerun`: make a picture again from what it says about itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from w2sdiff.cli.console import Reporter, hush_libraries

__all__ = ["rerun"]


def rerun(
    image: Annotated[Path, typer.Argument(help="A PNG file of `w2sdiff generate`.")],
    model: Annotated[
        str | None, typer.Option(help="Where its model is now, if not where it was.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Another device than it was made on.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The new file, or its folder. Default: NAME-again.png.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines on stdout.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """Make a picture again: same prompt, seed, method, weights and batch.

    If the pictures differ, it says what is not as it was, and the exit code is 1.

    Nothing is downloaded unless you name a model yourself.
    """
    from w2sdiff.generate import make_again
    from w2sdiff.jobs import check_writable, write_whole

    reporter = Reporter(quiet=quiet, as_json=as_json)
    target = out or image.parent
    if target.is_dir():
        target = target / f"{image.stem}-again.png"
    check_writable(target.parent)
    with hush_libraries(debug=debug), reporter.bar(1, "drawing") as bar:
        again = make_again(image, model=model, device=device, on_step=bar.step)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, again.data)
    for line in again.differences:
        reporter.note(f"not as it was: {line}")
    match again.pixels_changed:
        case 0:
            reporter.note("the same picture, pixel by pixel")
        case None:
            reporter.note("another picture: its size differs")
        case number:
            reporter.note(f"another picture: {number} pixels differ")
    reporter.result(
        str(target),
        "rerun",
        file=str(target),
        pixels_changed=again.pixels_changed,
        differences=list(again.differences),
    )
    if again.pixels_changed != 0:
        raise typer.Exit(1)
