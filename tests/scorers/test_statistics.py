"""Statistics of pictures against closed forms and against Pillow's own code."""

from __future__ import annotations

import colorsys
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from safetensors.torch import save_file

from w2sdiff.errors import InputError
from w2sdiff.scorers import SCORERS, parse_scorer
from w2sdiff.scorers.clip import load_clip
from w2sdiff.scorers.clip_files import find_clip
from w2sdiff.scorers.colour import lab
from w2sdiff.scorers.diversity import Diversity
from w2sdiff.scorers.statistics import Clipping, Contrast, Saturation, Sharpness

KINDS = ("saturation", "clipping", "contrast", "sharpness")
BYTE = st.integers(0, 255)


def noise(seed: int = 0, width: int = 24, height: int = 16) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def one(scorer: type, image: Image.Image) -> float:
    return float(scorer().score([image])[0])


@given(st.tuples(BYTE, BYTE, BYTE))
def test_flat_picture(colour: tuple[int, int, int]) -> None:
    image = Image.new("RGB", (9, 7), colour)
    expected = colorsys.rgb_to_hsv(*(c / 255 for c in colour))[1]
    assert one(Saturation, image) == pytest.approx(expected, abs=1e-6)
    assert one(Clipping, image) == float(0 in colour or 255 in colour)
    assert one(Contrast, image) == pytest.approx(0, abs=1e-12)
    assert one(Sharpness, image) == 0


def test_checkerboard() -> None:
    """Half black, half white: the largest contrast there is, and a Laplacian of ±4·255."""
    board = (np.indices((10, 10)).sum(axis=0) % 2 * 255).astype(np.uint8)
    image = Image.fromarray(board)
    assert one(Contrast, image) == pytest.approx(0.5)
    assert one(Sharpness, image) == pytest.approx((4 * 255) ** 2)
    assert one(Clipping, image) == 1
    assert one(Saturation, image) == 0


def test_ramp_is_not_sharp() -> None:
    """The second derivative of a linear ramp is 0, that of a parabola 2 everywhere: variance 0."""
    x = np.arange(15)
    for row in (x * 10, x**2):
        image = Image.fromarray(np.tile(row.astype(np.uint8), (9, 1)))
        assert one(Sharpness, image) == pytest.approx(0, abs=1e-9)
        assert one(Contrast, image) > 0


def test_sharpness_against_pillow() -> None:
    """Pillow's own convolution, on a grey picture kept in the middle so that nothing is clipped."""
    grey = Image.fromarray(np.random.default_rng(3).integers(110, 140, (20, 30), np.uint8))
    kernel = ImageFilter.Kernel((3, 3), (0, -1, 0, -1, 4, -1, 0, -1, 0), scale=1, offset=128)
    filtered = np.asarray(grey.filter(kernel), float)[1:-1, 1:-1]
    assert one(Sharpness, grey) == pytest.approx(filtered.var(), rel=1e-6)


def test_known_shares() -> None:
    pixels = np.full((10, 10, 3), 128, np.uint8)
    pixels[0, :3, 1] = 0
    pixels[5, :4, 2] = 255
    assert one(Clipping, Image.fromarray(pixels)) == pytest.approx(0.07)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_order_and_mode(kind: str) -> None:
    """A picture's number depends on no other picture, and not on how its pixels are stored."""
    scorer = parse_scorer(kind)
    images = [noise(seed, 8 + seed, 12) for seed in range(4)]
    together = scorer.score(images)
    assert together.dtype == np.float32
    assert together.tolist() == [float(scorer.score([image])[0]) for image in images]
    assert together[::-1].tolist() == scorer.score(images[::-1]).tolist()
    grey = noise().convert("L")
    with_alpha = Image.merge("LA", (grey, Image.new("L", grey.size, 255)))
    scores = scorer.score([grey, grey.convert("RGB"), with_alpha, grey.convert("P")])
    assert len(set(scores.tolist())) == 1


@pytest.mark.parametrize("kind", [*KINDS, "diversity"])
def test_protocol(kind: str) -> None:
    scorer = parse_scorer(kind)
    assert scorer.to_text() == scorer.name == kind
    assert (scorer.group, scorer.higher_is_better, scorer.needs_prompt) == (
        "statistic",
        None,
        False,
    )
    assert SCORERS.summary(kind)
    recipes = {parse_scorer(other).recipe() for other in (*KINDS, "diversity")}
    assert len(recipes) == 5


def test_too_small() -> None:
    with pytest.raises(InputError, match="got 2x9"):
        Sharpness().score([Image.new("RGB", (2, 9))])


# ΔE and Lab of the sRGB primaries, from the CIE formulas (as any colour table prints them).
@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((0, 1, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((0.5, 0.5, 0.5), (53.39, 0, 0)),
        ((0.02, 0.02, 0.02), (1.398, 0, 0)),
    ],
)
def test_lab(colour: tuple[float, float, float], expected: tuple[float, float, float]) -> None:
    assert lab(np.array(colour, float)) == pytest.approx(expected, abs=0.02)


def flat(value: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    return Image.new("L", size, value)


def test_diversity_closed_form() -> None:
    """Greys differ by their lightness alone: three of them have three known distances."""
    lightness = [lab(np.full(3, v / 255))[0] for v in (0, 119, 255)]
    pairs = [abs(a - b) for a in lightness for b in lightness]
    scores = Diversity().score([flat(0), flat(119, (64, 48)), flat(255)])
    assert scores == pytest.approx([sum(pairs) / 6] * 3, rel=1e-6)
    assert Diversity().score([flat(7), flat(7)]).tolist() == [0, 0]


def test_diversity_of_halves() -> None:
    """Two pictures that differ in one half have half the distance."""
    half = flat(0)
    half.paste(255, (0, 0, 20, 40))
    assert Diversity().score([flat(0), half])[0] == pytest.approx(50, abs=1e-3)


def test_diversity_does_not_depend_on_order() -> None:
    images = [noise(seed, 64, 64) for seed in range(5)]
    first = Diversity().score(images)
    assert first.tolist() == Diversity().score(images[::-1]).tolist()
    assert len(set(first.tolist())) == 1


def test_diversity_needs_two() -> None:
    with pytest.raises(InputError, match="two or more"):
        Diversity().score([flat(0)])


def test_diversity_in_clip_features(tmp_path: Path) -> None:
    """With a CLIP: mean over pairs of 100 (1 - cos), of the features that it gives."""
    torch.manual_seed(0)
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"width": 16, "heads": 1, "layers": 1},
    }
    save_file(open_clip.CLIP(**config).state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    scorer = Diversity(str(tmp_path))
    images = [noise(seed, 40, 32) for seed in range(3)]
    seen = load_clip(find_clip(str(tmp_path))).image_features(images).double()
    pairs = [100 * (1 - float(seen[i] @ seen[j])) for i, j in ((0, 1), (0, 2), (1, 2))]
    scores = scorer.score(images)
    assert scores == pytest.approx([sum(pairs) / 3] * 3, rel=1e-5)
    assert scores[0] > 1e-3
    assert scorer.recipe() != Diversity().recipe()
    assert str(tmp_path) not in str(scorer.fingerprint())
