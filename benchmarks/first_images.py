"""The README's picture: the sheets of `make demo`, one under the other.

make demo && python benchmarks/first_images.py [out/demo]
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

OUT = Path(__file__).parent / "results" / "first_images.png"


def main(folder: Path = Path("out/demo")) -> None:
    paths = sorted(folder.glob("*-compare-*.png"))
    if not paths:
        sys.exit(f"No sheets in {folder}: run `make demo` first.")
    sheets = [Image.open(path).convert("RGB") for path in paths]
    size = (max(s.width for s in sheets), sum(s.height for s in sheets))
    page = Image.new("RGB", size, sheets[0].getpixel((0, 0)))
    top = 0
    for sheet in sheets:
        page.paste(sheet, (0, top))
        top += sheet.height
    page.save(OUT, optimize=True)
    print(OUT)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
