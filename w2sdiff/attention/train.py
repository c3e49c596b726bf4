"""`python -m w2sdiff.attention.train`: another door to `w2sdiff kv tune`; `--help` says how.

Only a door: the training lies in `w2sdiff.highres`, and this file is the one of its folder that is
not on the ground floor.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run `w2sdiff kv tune` with these arguments and return its exit code."""
    from w2sdiff.cli import main as program

    return program(["kv", "tune", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
