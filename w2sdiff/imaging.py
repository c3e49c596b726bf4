"""Pictures on disk: PNG files that say how they were made, and labelled grids.

A picture carries two text fields: ``w2sdiff``, JSON, which is authoritative, and ``parameters``,
the lines that the web interfaces and image managers of the field read and show.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2sdiff.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

__all__ = ["Cell", "grid", "open_image", "parameters_text", "png_bytes", "read_metadata"]

FIELD = "w2sdiff"
MAX_PIXELS = 100_000_000  # larger pictures are refused unread: a small file can claim any size


def png_bytes(
    image: Image, metadata: Mapping[str, Any] | None = None, parameters: str = ""
) -> bytes:
    """The bytes of a PNG file that carries `metadata` as JSON and `parameters` as text.

    Equal pictures with equal metadata give equal bytes.

    Raises:
        InputError: the metadata has no JSON form.

    Example:
        >>> from PIL import Image
        >>> data = png_bytes(Image.new("RGB", (8, 8)), {"seed": 1})
        >>> data[1:4]
        b'PNG'
    """
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    if metadata is not None:
        try:
            field = json.dumps(metadata, sort_keys=True, ensure_ascii=False, allow_nan=False)
            text.add_itxt(FIELD, field)
        except (TypeError, ValueError) as error:
            raise InputError(f"the metadata of a picture must be JSON: {error}") from error
    if parameters:
        text.add_itxt("parameters", parameters)
    out = io.BytesIO()
    image.save(out, format="PNG", pnginfo=text)
    return out.getvalue()


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata that `png_bytes` put into a PNG file.

    Raises:
        InputError: the file is missing, is no PNG, or carries no metadata of this package.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["PNG"]) as image:
            text = image.info.get(FIELD)
    except UnidentifiedImageError:
        raise InputError(f"{path} is not a PNG image") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read {path}: {_short(error)}") from error
    if not isinstance(text, str):
        raise InputError(f"{path} does not say how it was made: it has no text field {FIELD!r}")
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the text field {FIELD!r} of {path} is damaged: {error}") from error
    if not isinstance(metadata, dict):
        raise InputError(f"the text field {FIELD!r} of {path} is damaged: it is no JSON object")
    return metadata


def open_image(path: Path) -> Image:
    """An image file as an RGB picture, transparency on white, turned as its camera says.

    Raises:
        InputError: the file is missing, is no image, or has more than `MAX_PIXELS` pixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            if file.width * file.height > MAX_PIXELS:
                raise InputError(f"{path} has {file.width}×{file.height} pixels, too many to open")
            image = ImageOps.exif_transpose(file)
            if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise InputError(f"{path} is not an image") from None
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read {path}: {_short(error)}") from error


def parameters_text(prompt: str, negative: str | None, settings: Mapping[str, object]) -> str:
    """The ``parameters`` text of the web interfaces: prompt, negative prompt, one line of settings.

    Example:
        >>> print(parameters_text("a circle", "blurry", {"Steps": 20, "Size": "64x64"}))
        a circle
        Negative prompt: blurry
        Steps: 20, Size: 64x64
    """
    lines = [prompt]
    if negative:
        lines.append(f"Negative prompt: {negative}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items()))
    return "\n".join(lines)


@dataclass(frozen=True)
class Cell:
    """One picture of a grid, what stands above and below it; without a picture, an empty frame."""

    image: Image | None
    title: str
    lines: Sequence[str] = ()


def grid(
    rows: Sequence[Sequence[Cell]], *, title: str = "", smallest: int = 256, largest: int = 768
) -> Image:
    """Pictures in rows and columns with their labels, and a title above.

    Pictures smaller than `smallest` pixels are enlarged by a whole factor, pixel by pixel, so that
    nothing is smoothed away; larger than `largest` they are shrunk. Labels are wrapped, never cut.

    Raises:
        InputError: there is no cell.
    """
    from PIL import Image, ImageDraw

    if not rows or not all(rows):
        raise InputError("a grid needs at least one row, and a cell in every row")
    frames = [[_fit(cell.image, smallest, largest) for cell in row] for row in rows]
    known = [frame.size for row in frames for frame in row if frame]
    width = max([size[0] for size in known] or [smallest])
    height = max([size[1] for size in known] or [smallest])
    columns = max(len(row) for row in rows)
    gap = 16
    total = columns * (width + gap) + gap

    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    heading = _Text(draw, title, total - 2 * gap, 20)
    titles = [[_Text(draw, cell.title, width, 16) for cell in row] for row in rows]
    notes = [[_Text(draw, "\n".join(cell.lines), width, 13) for cell in row] for row in rows]
    above = [max(text.height for text in row) for row in titles]
    below = [max(text.height for text in row) for row in notes]
    top = gap + (heading.height + gap if title else 0)

    sheet = Image.new(
        "RGB", (total, top + sum(above) + sum(below) + len(rows) * (height + gap)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    heading.draw(draw, gap, gap)
    y = top
    for i, row in enumerate(rows):
        for j in range(len(row)):
            x = gap + j * (width + gap)
            titles[i][j].draw(draw, x, y)
            frame = frames[i][j]
            if frame is None:
                box = (x, y + above[i], x + width - 1, y + above[i] + height - 1)
                draw.rectangle(box, outline="#bbbbbb")
            else:
                sheet.paste(frame, (x, y + above[i]))
            notes[i][j].draw(draw, x, y + above[i] + height, "#444444")
        y += above[i] + height + below[i] + gap
    return sheet


class _Text:
    """Text wrapped to a width in pixels, measured once and drawn later."""

    def __init__(self, draw: ImageDraw, text: str, width: int, size: int) -> None:
        self.font = _font(size)
        self.pitch = size * 4 // 3
        lines = text.splitlines()
        self.lines = [part for line in lines for part in _wrapped(draw, self.font, line, width)]
        self.height = len(self.lines) * self.pitch + (self.pitch // 3 if self.lines else 0)

    def draw(self, draw: ImageDraw, x: int, y: int, fill: str = "black") -> None:
        for i, line in enumerate(self.lines):
            draw.text((x, y + i * self.pitch), line, font=self.font, fill=fill)


def _wrapped(
    draw: ImageDraw, font: FreeTypeFont | ImageFont, line: str, width: int
) -> Iterator[str]:
    """Break a line at spaces, and within a word only where the word alone is too wide."""
    current = ""
    for word in line.split():
        longer = f"{current} {word}".strip()
        if draw.textlength(longer, font=font) <= width:
            current = longer
            continue
        if current:
            yield current
        current = word
        while draw.textlength(current, font=font) > width and len(current) > 1:
            fits = next(
                n
                for n in range(len(current) - 1, 0, -1)
                if n == 1 or draw.textlength(current[:n], font=font) <= width
            )
            yield current[:fits]
            current = current[fits:]
    yield current


def _font(size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _fit(image: Image | None, smallest: int, largest: int) -> Image | None:
    from PIL.Image import Resampling

    if image is None:
        return None
    image = image.convert("RGB")
    longest = max(image.size)
    if longest < smallest:
        factor = -(-smallest // longest)
        size = (image.width * factor, image.height * factor)
        return image.resize(size, Resampling.NEAREST)
    if longest > largest:
        image.thumbnail((largest, largest), Resampling.LANCZOS)
    return image


def _quoted(value: object) -> str:
    """As the web interfaces do: a value with a separator in it is written as JSON."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:"\n') else text


def _short(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]
