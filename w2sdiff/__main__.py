"""`python -m w2sdiff`: the same as the command `w2sdiff`."""

from __future__ import annotations

import sys

from w2sdiff.cli import main

if __name__ == "__main__":
    sys.exit(main())
