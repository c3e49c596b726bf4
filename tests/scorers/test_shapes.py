"""The oracle as a scorer."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from w2sdiff.errors import InputError
from w2sdiff.scorers import parse_scorer, scorer_from_json
from w2sdiff.scorers.shapes import Shapes
from w2sdiff.shapes.oracle import judge_all
from w2sdiff.shapes.world import Object, Scene, evaluation_captions, render


def picture(colour: str) -> Image.Image:
    return Image.fromarray(render(Scene((Object("square", colour, x=30, y=30, size=20),)))[0])


def test_agrees_with_the_oracle() -> None:
    captions = [str(caption) for caption in evaluation_captions(12)]
    images = [picture("red") for _ in captions]
    captions[3] = "a red square"
    scores = Shapes().score(images, captions)
    assert scores.dtype == np.float32
    assert scores.tolist() == [float(bool(v)) for v in judge_all(images, captions)]
    assert scores[3] == 1
    assert Shapes().score([], []).shape == (0,)


def test_alone_as_in_a_batch() -> None:
    images = [picture(colour) for colour in ("red", "blue", "red")]
    captions = ["a red square", "a red square", "a blue square"]
    together = Shapes().score(images, captions)
    assert together.tolist() == [1, 0, 0]
    alone = [Shapes().score([i], [c])[0] for i, c in zip(images, captions, strict=True)]
    assert together.tolist() == alone


def test_refusals() -> None:
    with pytest.raises(InputError, match="no word 'photo'"):
        Shapes().score([picture("red")], ["a photo of a cat"])
    with pytest.raises(InputError, match="64x64 pixels, that of 'a red square' has 32x48"):
        Shapes().score([Image.new("RGB", (32, 48))], ["a red square"])
    with pytest.raises(InputError, match="needs the prompts"):
        Shapes().score([picture("red")])


def test_modes_of_pictures() -> None:
    image = picture("green")
    for other in (image.convert("RGBA"), image.quantize(256)):
        assert Shapes().score([other], ["a green square"]).tolist() == [1]


def test_protocol() -> None:
    scorer = parse_scorer("shapes")
    assert scorer == Shapes() == scorer_from_json(scorer.to_json())
    assert scorer.group == "exact"
    fingerprint = scorer.fingerprint()
    assert all("/" not in name for name in fingerprint["weights"])
    assert set(fingerprint["weights"]) >= {"oracle.py", "look.py", "captions.py"}
