"""What a command says: notes and a progress bar on stderr, results on stdout."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

__all__ = ["Bar", "Reporter", "hush_libraries"]


class Reporter:
    """Where a command's words go.

    Args:
        quiet: say nothing but errors (and, with `as_json`, results).
        as_json: one JSON object per line on stdout, for programs.
    """

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self.quiet = quiet
        self.as_json = as_json
        self._bar: Bar | None = None

    def note(self, text: str) -> None:
        """A remark for people."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.above(text)
        else:
            typer.echo(text, err=True)

    def result(self, text: str, event: str, **facts: Any) -> None:
        """A result: `text` for people, the facts for programs."""
        if self.as_json:
            typer.echo(json.dumps({"event": event, **facts}, sort_keys=True))
        elif text and not self.quiet:
            typer.echo(text)

    @contextmanager
    def bar(self, total: int, what: str) -> Iterator[Bar]:
        """A live bar while the block runs, and the package's warnings as notes."""
        handler = _Notes(self)
        logging.getLogger("w2sdiff").addHandler(handler)
        try:
            with Bar(total, what, shown=not self.quiet and total > 0) as bar:
                self._bar = bar
                yield bar
        finally:
            self._bar = None
            logging.getLogger("w2sdiff").removeHandler(handler)


class Bar:
    """A bar of pictures on stderr that moves with every step; only on a terminal."""

    def __init__(self, total: int, what: str, *, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not (shown and self._console.is_terminal),
        )
        self._task = self._progress.add_task(what, total=total)
        self._done = 0

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def above(self, text: str) -> None:
        """A line of text above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, done: int, total: int, pictures: int = 1) -> None:
        """`done` of `total` denoising steps of the batch in hand are done."""
        part = pictures * done / max(1, total)
        self._progress.update(self._task, completed=self._done + part)

    def at(self, done: int, what: str) -> None:
        """So many are finished."""
        self._done = done
        self._progress.update(self._task, completed=done, description=what)

    def advance(self, what: str) -> None:
        """A picture is finished."""
        self._done += 1
        self._progress.update(self._task, completed=self._done, description=what)


class _Notes(logging.Handler):
    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.note(record.getMessage())


@contextmanager
def hush_libraries(*, debug: bool) -> Iterator[None]:
    """Keep warnings and bars of diffusers and transformers off the terminal, unless debugging."""
    import warnings

    if debug:
        yield
        return
    # transformers imports torchao where it is installed, which warns of torch versions as it loads.
    torchao = logging.getLogger("torchao")
    loud = torchao.level
    torchao.setLevel(logging.CRITICAL)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for library in libraries:
            library.set_verbosity(logging.CRITICAL)
            library.disable_progress_bar()
        try:
            yield
        finally:
            for library, level in zip(libraries, levels, strict=True):
                library.set_verbosity(level)
                library.enable_progress_bar()
            torchao.setLevel(loud)
