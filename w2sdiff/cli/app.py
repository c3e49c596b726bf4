"""The program: its commands, and what happens to their errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import w2sdiff
from w2sdiff.cli.bench import EPILOG as BENCH_EPILOG
from w2sdiff.cli.bench import bench
from w2sdiff.cli.compare import compare
from w2sdiff.cli.core2 import core2
from w2sdiff.cli.generate import EPILOG, generate
from w2sdiff.cli.kv import kv
from w2sdiff.cli.listing import list_kinds
from w2sdiff.cli.prompts import prompts
from w2sdiff.cli.report import report
from w2sdiff.cli.rerun import rerun
from w2sdiff.cli.score import score
from w2sdiff.cli.verify import verify
from w2sdiff.errors import W2SDiffError

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate", epilog=EPILOG)(generate)
app.command("rerun")(rerun)
app.command("bench", epilog=BENCH_EPILOG)(bench)
app.command("score")(score)
app.command("report")(report)
app.command("compare")(compare)
app.add_typer(prompts, name="prompts")
app.add_typer(core2, name="core2")
app.add_typer(kv, name="kv")
app.command("verify")(verify)
app.command("list")(list_kinds)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"w2sdiff {w2sdiff.__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Weak-to-strong diffusion on stock diffusers pipelines, with every evaluation counted."""
    del version


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Example:
        >>> main(["list", "nothing"])
        2
    """
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    debug = "--debug" in words
    command = typer.main.get_command(app)
    try:
        return command.main(args=words, prog_name="w2sdiff", standalone_mode=False) or 0
    except W2SDiffError as error:
        return _failed(error, 2, debug)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("w2sdiff: stopped; finished pictures are whole", err=True)
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain again while it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _failed(error, 2, debug)
    except Exception as error:
        # Errors of the command-line library, whichever it is built on, can be told by these two.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return _failed(error.format_message(), int(error.exit_code), debug)
        hint = "" if debug else " (a bug, or a library's; --debug shows where)"
        return _failed(f"{type(error).__name__}: {error}", 1, debug, hint)


def _failed(error: BaseException | str, code: int, debug: bool, hint: str = "") -> int:
    if debug and sys.exc_info()[0] is not None:
        import traceback

        traceback.print_exc()
    line = " ".join(str(error).split())
    typer.echo(f"w2sdiff: error: {line}{hint}", err=True)
    return code
