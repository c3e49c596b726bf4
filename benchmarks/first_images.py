"""The README's picture: the sheets of `make demo`, one under the other.

make demo && python benchmarks/first_images.py [out/demo]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

OUT = Path(__file__).parent / "results" / "first_images.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("out/demo"), help="of the sheets (out/demo)"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="the picture")
    args = parser.parse_args()
    paths = sorted(args.folder.glob("*-compare-*.png"))
    if not paths:
        sys.exit(f"No sheets in {args.folder}: run `make demo` first.")
    sheets = [Image.open(path).convert("RGB") for path in paths]
    size = (max(s.width for s in sheets), sum(s.height for s in sheets))
    page = Image.new("RGB", size, sheets[0].getpixel((0, 0)))
    top = 0
    for sheet in sheets:
        page.paste(sheet, (0, top))
        top += sheet.height
    page.save(args.out, optimize=True)
    print(args.out)


if __name__ == "__main__":
    main()
