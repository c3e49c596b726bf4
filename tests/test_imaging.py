"""PNG files that say how they were made, and grids."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from w2sdiff.errors import InputError
from w2sdiff.imaging import (
    Cell,
    grid,
    open_image,
    parameters_text,
    png_bytes,
    read_metadata,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def picture(seed=0, size=(16, 12)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@given(TEXT, st.integers(), st.dictionaries(TEXT, st.lists(TEXT)))
def test_metadata_and_pixels_survive_the_file(tmp_path_factory, prompt, seed, more):
    metadata = {"prompt": prompt, "seed": seed, "more": more}
    path = tmp_path_factory.mktemp("png") / "x.png"
    path.write_bytes(png_bytes(picture(), metadata, prompt))
    assert read_metadata(path) == metadata
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), np.asarray(picture()))
        assert image.info.get("parameters", "") == prompt


def test_equal_pictures_give_equal_bytes():
    assert png_bytes(picture(), {"a": 1, "b": 2}) == png_bytes(picture(), {"b": 2, "a": 1})
    assert png_bytes(picture(), {"a": 1}) != png_bytes(picture(1), {"a": 1})


def write_png(path, image=None, **text):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in text.items():
        info.add_itxt(key, value)
    (image or picture()).save(path, pnginfo=info)


def bomb(path):
    """A valid PNG header that claims 60,000 × 60,000 pixels, and nothing behind it."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "No such file"),
        (lambda p: p.mkdir(), "directory"),
        (lambda p: p.write_bytes(b""), "not a PNG"),
        (lambda p: p.write_bytes(b"GIF89a"), "not a PNG"),
        (lambda p: p.write_bytes(png_bytes(picture())[:20]), "not a PNG|cannot read"),
        (lambda p: picture().save(p, format="JPEG"), "not a PNG"),
        (write_png, "does not say how it was made"),
        (lambda p: write_png(p, parameters="Steps: 20"), "does not say how it was made"),
        (lambda p: write_png(p, w2sdiff='{"half'), "damaged"),
        (lambda p: write_png(p, w2sdiff="[1]"), "damaged"),
        (lambda p: write_png(p, w2sdiff="[" * 100_000), "damaged|cannot read"),
        (bomb, "cannot read"),
    ],
)
def test_what_carries_no_metadata_is_refused_in_one_line(tmp_path, make, message):
    path = tmp_path / "x.png"
    make(path)
    with pytest.raises(InputError, match=message) as caught:
        read_metadata(path)
    assert "\n" not in str(caught.value)
    assert "x.png" in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda _: None,
        lambda p: p.write_bytes(b"not an image"),
        lambda p: p.write_bytes(png_bytes(picture(size=(64, 64)))[:400]),
        bomb,
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, make):
    make(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"x\.png"):
        open_image(tmp_path / "x.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"])
def test_every_kind_of_picture_opens_as_rgb(tmp_path, mode):
    name = "x.tif" if mode == "CMYK" else "x.png"
    picture().convert("L").convert(mode).save(tmp_path / name)
    assert open_image(tmp_path / name).mode == "RGB"


def test_transparency_is_put_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "x.png")
    assert open_image(tmp_path / "x.png").getpixel((0, 0)) == (255, 255, 255)


def test_the_parameters_text_is_what_the_web_interfaces_write():
    settings = {"Steps": 20, "Sampler": "DDIM", "Model": "a, b", "Size": "64x64"}
    text = parameters_text("a red circle", "blurry", settings)
    assert text.splitlines() == [
        "a red circle",
        "Negative prompt: blurry",
        'Steps: 20, Sampler: DDIM, Model: "a, b", Size: 64x64',
    ]
    assert "Negative" not in parameters_text("a red circle", "", settings)


def test_a_small_picture_is_enlarged_without_smoothing():
    sheet = grid([[Cell(picture(size=(64, 64)), "plain")]])
    enlarged = np.asarray(picture(size=(64, 64))).repeat(4, 0).repeat(4, 1)
    pixels = np.asarray(sheet)
    found = any(
        np.array_equal(pixels[y : y + 256, 16 : 16 + 256], enlarged)
        for y in range(pixels.shape[0] - 255)
    )
    assert found


def test_the_labels_are_drawn_and_the_cells_stand_apart():
    red, blue = Image.new("RGB", (256, 256), "red"), Image.new("RGB", (256, 256), "blue")
    bare = grid([[Cell(red, ""), Cell(blue, "")]])
    labelled = grid(
        [[Cell(red, "weak", ["20 evaluations", "1.2 s"]), Cell(blue, "strong")]], title="a circle"
    )
    assert labelled.height > bare.height
    assert labelled.width == bare.width == 2 * 256 + 3 * 16
    for sheet in (bare, labelled):
        colours = {c: n for n, c in sheet.getcolors(1_000_000)}
        assert colours[(255, 0, 0)] == colours[(0, 0, 255)] == 256 * 256
    assert len(labelled.getcolors(1_000_000)) > len(bare.getcolors(1_000_000))


def test_long_labels_are_wrapped_not_cut():
    cell = Cell(picture(size=(256, 256)), "word " * 40 + "x" * 300)
    assert grid([[cell]]).height > 256 + 10 * 16
    assert grid([[cell]]).width == 256 + 32


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_can_be_drawn(title, label):
    grid([[Cell(None, label, [label])]], title=title)


def test_a_grid_of_nothing_is_refused():
    with pytest.raises(InputError, match="at least one row"):
        grid([])


def test_rows_may_differ_in_length_and_a_missing_picture_is_an_empty_frame():
    sheet = grid([[Cell(picture(), "a"), Cell(None, "b")], [Cell(picture(), "c")]])
    assert sheet.width > 2 * 256
    assert sheet.height > 2 * 192
