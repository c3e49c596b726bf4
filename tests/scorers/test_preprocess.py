"""Pictures of every kind come out the way the published code makes them ready."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import pictures

from w2sdiff.errors import InputError
from w2sdiff.scorers.preprocess import (
    OPENAI_MEAN,
    OPENAI_STD,
    normalise,
    resize_crop,
    resize_pad,
    rgb,
)

SHAPES = [(64, 64), (100, 70), (70, 100), (224, 225), (33, 32), (20, 90)]


@pytest.fixture
def picture() -> Image.Image:
    return pictures(1)[0]


@pytest.mark.parametrize("size", SHAPES)
def test_crop_is_torchvisions(size):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, ToTensor

    published = Compose([Resize(32, InterpolationMode.BICUBIC), CenterCrop(32), ToTensor()])
    image = pictures(1, size)[0]
    assert torch.equal(resize_crop(image, 32), published(image))


def test_crop_down_is_the_one_of_transformers():
    import transformers

    # In transformers 4 the slow one, over PIL, has the plain name.
    kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    processor = kind(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    image = pictures(1, (61, 40))[0]  # resized to 48 and, in the other, 49: the middle is between
    for picture in (image, image.rotate(90, expand=True), pictures(1, (1024, 701))[0]):
        wanted = torch.as_tensor(np.asarray(processor(picture)["pixel_values"][0]))
        found = normalise(resize_crop(picture, 32, crop="down"))
        torch.testing.assert_close(found, wanted, atol=2e-6, rtol=0)


def test_the_two_crops_differ_by_a_pixel_where_the_middle_is_between_two():
    image = pictures(1, (35, 32))[0]
    even, down = resize_crop(image, 32), resize_crop(image, 32, crop="down")
    assert torch.equal(even[:, :, :-1], down[:, :, 1:])


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", SHAPES)
def test_pad_is_the_published_one(size, antialias):
    from torchvision.transforms import functional as F

    image = pictures(1, size)[0]
    tensor = F.to_tensor(image)
    scale = 32 / max(tensor.shape[1:])
    sides = [round(side * scale) for side in tensor.shape[1:]]
    bicubic = F.InterpolationMode.BICUBIC
    small = F.resize(tensor, sides, bicubic, antialias=antialias) if scale != 1 else tensor
    down, across = 32 - sides[0], 32 - sides[1]
    padding = [across // 2, down // 2, across - across // 2, down - down // 2]
    wanted = F.pad(small, padding, fill=0)
    torch.testing.assert_close(resize_pad(image, 32, antialias=antialias), wanted)


def test_antialias_changes_pixels():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8))
    plain, smooth = (resize_pad(image, 32, antialias=a) for a in (False, True))
    assert (plain - smooth).abs().mean() > 0.05


def test_overshoot_is_not_clamped():
    stripes = np.zeros((48, 48, 3), np.uint8)
    stripes[:, 24:] = 255
    found = resize_pad(Image.fromarray(stripes), 32, antialias=False)
    assert found.min() < -0.01
    assert found.max() > 1.01


def test_a_wide_picture_is_padded_with_black_not_cropped():
    image = Image.new("RGB", (64, 16), "white")
    found = resize_pad(image, 32, antialias=True)
    assert torch.equal(found[:, 12:20].round(), torch.ones(3, 8, 32))
    assert not found[:, :12].any()
    assert not found[:, 20:].any()


def test_a_line_of_pixels_survives():
    assert resize_pad(Image.new("RGB", (500, 1), "white"), 32, antialias=True).max() > 0.9


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_is_transparent_is_white(mode):
    picture = Image.new("RGBA", (2, 1), (200, 200, 200, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    if mode == "PA":
        alpha = picture.getchannel("A")
        picture = picture.convert("RGB").quantize(4)
        picture.putalpha(alpha)
    elif mode == "LA":
        picture = picture.convert("LA")
    assert picture.mode == mode
    found = rgb(picture)
    assert found.mode == "RGB"
    assert found.getpixel((1, 0)) == (255, 255, 255)
    assert found.getpixel((0, 0)) == (200, 200, 200)


def test_half_transparent_is_mixed_with_white():
    found = rgb(Image.new("RGBA", (1, 1), (0, 100, 255, 128))).getpixel((0, 0))
    assert np.allclose(found, [127, 177, 255], atol=1)


def test_palette_with_a_transparent_entry(tmp_path, picture):
    palette = picture.quantize(8)
    palette.save(tmp_path / "x.png", transparency=palette.getpixel((0, 0)))
    with Image.open(tmp_path / "x.png") as opened:
        assert opened.mode == "P"
        assert rgb(opened).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["P", "L", "1", "CMYK", "YCbCr", "HSV", "LAB"])
def test_other_modes_become_rgb_before_resizing(mode, picture):
    other = picture.quantize(256) if mode == "P" else picture.convert(mode)
    tensor = resize_crop(other, 16)
    wanted = resize_crop(other.convert("RGB"), 16)
    assert torch.equal(tensor, wanted)
    if mode in ("P", "CMYK", "YCbCr"):  # these keep the colours
        torch.testing.assert_close(tensor, resize_crop(picture, 16), atol=0.12, rtol=0)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    grey = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as opened:
        assert opened.mode.startswith("I")
        assert np.array_equal(np.asarray(rgb(opened))[..., 0].ravel(), np.arange(256))


def test_floats_are_refused():
    with pytest.raises(InputError, match="floating-point"):
        rgb(Image.new("F", (2, 2)))


def test_pictures_are_turned_as_their_exif_says(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    picture.save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as opened:
        turned = rgb(opened)
    assert turned.size == picture.size[::-1]
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(picture), -1))


def test_normalise():
    pixels = torch.rand(2, 3, 4, 5)
    found = normalise(pixels)
    for channel in range(3):
        wanted = (pixels[:, channel] - OPENAI_MEAN[channel]) / OPENAI_STD[channel]
        torch.testing.assert_close(found[:, channel], wanted)
