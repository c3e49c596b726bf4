"""ImageReward on a small random copy, against BLIP's forward pass written out in plain torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from plain_blip import (
    SIZE,
    TEXT,
    WORDS,
    State,
    plain_head,
    plain_text,
    plain_vision,
    published_state,
)
from torch import Tensor

from w2sdiff.errors import InputError
from w2sdiff.scorers import blip, parse_scorer, scorer_from_json
from w2sdiff.scorers.aesthetic import affine
from w2sdiff.scorers.blip import text_tower, vision_tower
from w2sdiff.scorers.imagereward import ImageReward
from w2sdiff.scorers.preprocess import normalise, resize_crop
from w2sdiff.scorers.tensors import part


@pytest.fixture(scope="module")
def state() -> State:
    return published_state()


@pytest.fixture(scope="module")
def scorer(state: State, tmp_path_factory: pytest.TempPathFactory) -> ImageReward:
    folder = tmp_path_factory.mktemp("imagereward")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    torch.save(state, folder / "ImageReward.pt")
    sha256 = hashlib.sha256((folder / "ImageReward.pt").read_bytes()).hexdigest()
    return ImageReward(str(folder), str(folder / "vocab.txt"), sha256)


def pixels(n: int = 3) -> Tensor:
    return torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def picture(seed: int = 0, size: tuple[int, int] = (64, 48)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values)


def test_picture_tower(state: State) -> None:
    got = vision_tower(state)(pixels()).last_hidden_state
    assert torch.allclose(got, plain_vision(state, pixels()), atol=1e-5)
    # The test can tell: another eps, or another number of heads, is far from it.
    assert (plain_vision(state, pixels(), eps=1e-5) - got).abs().max() > 1e-2
    assert (plain_vision(state, pixels(), heads=8) - got).abs().max() > 1e-2


def test_text_tower(state: State) -> None:
    seen = plain_vision(state, pixels(2))
    ids = torch.tensor([[2, 5, 6, 8, 9, 3], [2, 5, 3, 0, 0, 0]])
    mask = (ids != 0).long()
    tower = text_tower(state)
    assert tower.config.num_attention_heads == TEXT // 64
    got = tower(
        input_ids=ids,
        attention_mask=mask,
        encoder_hidden_states=seen,
        encoder_attention_mask=torch.ones(seen.shape[:2]),
        is_decoder=False,
    ).last_hidden_state
    expected = plain_text(state, ids, mask, seen)
    assert torch.allclose(got[mask == 1], expected[mask == 1], atol=1e-5)
    assert (plain_text(state, ids, mask, seen, heads=8) - got).abs().max() > 1e-2


def test_twelve_heads_at_the_published_width() -> None:
    """BERT-base is 768 wide; eight heads would load just as well."""
    assert (768 // blip._HEAD_CHANNELS, 1024 // blip._HEAD_CHANNELS) == (12, 16)


def test_head_is_affine(state: State) -> None:
    cls = torch.randn(20, TEXT, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weight, bias = affine(part(state, "mlp.layers."))
    exact = {name: value.double() for name, value in state.items() if name.startswith("mlp.")}
    assert torch.allclose(cls @ weight + bias, plain_head(exact, cls), atol=1e-14)


def test_reward(scorer: ImageReward, state: State) -> None:
    """The whole way from a picture file and a prompt to the number."""
    images, prompts = [picture(1), picture(2, (48, 90))], ["a red circle", "a blue, blue circles"]
    ids = torch.zeros(2, 35, dtype=torch.long)
    ids[0, :5] = torch.tensor([2, 5, 6, 8, 3])
    ids[1, :8] = torch.tensor([2, 5, 7, 10, 7, 8, 9, 3])
    ready = torch.stack([normalise(resize_crop(image, SIZE)) for image in images])
    cls = plain_text(state, ids, (ids != 0).long(), plain_vision(state, ready))[:, 0]
    expected = (plain_head(state, cls) - 0.16717362830052426) / 1.0333394966054072
    scores = scorer.score(images, prompts)
    assert scores.dtype == np.float32
    assert scores == pytest.approx(expected.numpy(), abs=1e-5)
    assert abs(scores[0] - scores[1]) > 1e-3


def test_batch_and_order(scorer: ImageReward) -> None:
    images = [picture(seed) for seed in range(5)]
    prompts = ["a circle", "red", "a red, red circle", "blue circles", "a a a"]
    together = scorer.score(images, prompts)
    alone = [scorer.score([i], [p])[0] for i, p in zip(images, prompts, strict=True)]
    assert together == pytest.approx(np.array(alone), abs=2e-6)
    assert together[::-1] == pytest.approx(scorer.score(images[::-1], prompts[::-1]), abs=2e-6)
    assert scorer.score([], []).shape == (0,)


def test_modes(scorer: ImageReward) -> None:
    """Grey, palette and transparent pictures are read as what a viewer shows."""
    grey = picture().convert("L")
    variants = [grey, grey.convert("RGB"), grey.convert("P"), grey.convert("RGBA")]
    scores = scorer.score(variants, ["a circle"] * 4)
    assert scores == pytest.approx(np.full(4, scores[0]), abs=2e-6)


def test_long_prompts(scorer: ImageReward) -> None:
    """Cut after 35 tokens, the end mark kept, and counted."""
    assert scorer.max_tokens == 35
    assert scorer.tokens(["a red circle", "circles", "a " * 33, "a " * 34]) == [5, 4, 35, 36]
    long, other = "a " * 60, "red " * 60
    late = "a " * 59 + "red"
    scores = scorer.score([picture()] * 3, [long, other, late])
    assert abs(scores[0] - scores[1]) > 1e-4
    assert scores[0] == pytest.approx(scores[2], abs=1e-6)  # what lies behind the cut is not read
    assert scorer._words.encode([long])[0].tolist() == [2, *[5] * 33, 3]


def test_word_pieces_are_those_of_transformers(scorer: ImageReward) -> None:
    from transformers import BertTokenizerFast

    stock = BertTokenizerFast.from_pretrained(scorer.weights, do_lower_case=True)
    for text in ("A Red, circles", "ünd a\tblue   circle", "", "圆 a circle", "a " * 50):
        assert scorer._words.split(text) == stock(text).input_ids


def test_wrong_weights(scorer: ImageReward, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tensor is called blip\.visual_encoder"):
        vision_tower({"visual.proj": torch.zeros(1)})
    other = published_state()
    del other["blip.visual_encoder.blocks.1.norm2.weight"]
    wide = torch.zeros(len(WORDS), 768)
    with pytest.raises(InputError, match="not the weights of BlipTextModel"):
        text_tower({**other, "blip.text_encoder.embeddings.word_embeddings.weight": wide})
    with pytest.raises(InputError, match="not the weights of BlipVisionModel"):
        vision_tower(other)
    with pytest.raises(InputError):
        ImageReward(str(tmp_path)).fingerprint()


def test_protocol(scorer: ImageReward) -> None:
    assert parse_scorer("imagereward") == ImageReward()
    assert scorer_from_json(scorer.to_json()) == scorer == parse_scorer(scorer.to_text())
    fingerprint = scorer.fingerprint()
    assert scorer.weights not in str(fingerprint)
    assert set(fingerprint["weights"]) == {"ImageReward.pt", "vocab.txt"}
    before = scorer.score([picture()], ["a circle"])
    scorer.close()
    assert "_model" not in scorer.__dict__
    assert scorer.score([picture()], ["a circle"]) == before
