"""The command line: `w2sdiff generate`, `w2sdiff rerun`, `w2sdiff list`.

Exit codes: 0 everything is there, 1 something failed (its record says why), 2 the input is wrong,
130 interrupted. An error is one line on stderr; ``--debug`` shows where it came from.

torch and diffusers are imported inside the commands: ``w2sdiff --help`` needs neither.
"""

from __future__ import annotations

from w2sdiff.cli.app import app, main

__all__ = ["app", "main"]
