"""`w2sdiff prompts list|fetch|show`."""

from __future__ import annotations

import typer

__all__ = ["prompts"]

prompts = typer.Typer(help="Known prompt sets: list, fetch, show.", no_args_is_help=True)


@prompts.command("list")
def list_sets() -> None:
    """List the known prompt sets."""


@prompts.command("show")
def show() -> None:
    """Show the prompts of a set."""
