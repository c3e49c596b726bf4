"""MPS on a small random copy, against its forward pass written out in plain torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from plain_mps import END, State, plain_score, plain_text, published_state
from safetensors.torch import save_file
from torch import Tensor

from w2sdiff.errors import InputError
from w2sdiff.scorers import parse_scorer, scorer_from_json
from w2sdiff.scorers.mps import CONDITION, MPS


def picture(seed: int = 0, size: tuple[int, int] = (40, 64)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values)


PROMPTS = [
    "a red circle",
    "an old man, hands in his pockets, at a blue door",
    "colour",
    "word " * 90,
]


@pytest.fixture(scope="module")
def state() -> State:
    return published_state()


@pytest.fixture(scope="module")
def scorer(state: State, tmp_path_factory: pytest.TempPathFactory) -> MPS:
    file = tmp_path_factory.mktemp("mps") / "model.safetensors"
    save_file(state, file)
    return MPS(str(file))


def test_score(scorer: MPS, state: State) -> None:
    images = [picture(seed) for seed in range(4)]
    scores = scorer.score(images, PROMPTS)
    expected = [plain_score(state, i, p) for i, p in zip(images, PROMPTS, strict=True)]
    assert scores.dtype == np.float32
    assert scores == pytest.approx(np.array(expected), abs=2e-5)
    # The test can tell: at the threshold of the published class, 0.01, other words are looked at.
    assert abs(plain_score(state, images[1], PROMPTS[1], 0.01) - expected[1]) > 1e-3


def test_alone_as_in_a_batch(scorer: MPS, state: State) -> None:
    """The published code divides by the largest similarity of the batch, and so mixes pictures."""
    images = [picture(seed) for seed in range(4)]
    alone = [scorer.score([i], [p])[0] for i, p in zip(images, PROMPTS, strict=True)]
    assert scorer.score(images, PROMPTS) == pytest.approx(np.array(alone), abs=2e-5)
    assert scorer.score(images[::-1], PROMPTS[::-1])[::-1] == pytest.approx(
        np.array(alone), abs=2e-5
    )
    condition = plain_text(state, CONDITION)[0]
    near = torch.stack([(plain_text(state, p)[0] @ condition.T).max(1).values for p in PROMPTS])
    mixed = near / near.max() > 0.3
    assert not torch.equal(mixed, torch.stack([n / n.max() > 0.3 for n in near]))


def test_long_prompts(scorer: MPS) -> None:
    """The end mark is kept: two long prompts differ; what lies behind the cut is not read."""
    assert scorer.max_tokens == 77
    assert scorer.tokens(["a red circle", "", "a " * 75, "a " * 76]) == [5, 2, 77, 78]
    prompts = ["a " * 90, "red " * 90, "a " * 89 + "red"]
    scores = scorer.score([picture()] * 3, prompts)
    assert abs(scores[0] - scores[1]) > 1e-2
    assert scores[0] == pytest.approx(scores[2], abs=1e-5)


def test_padding_does_not_eat_words(scorer: MPS) -> None:
    """Token 0 is "!" within a word; only what follows the end mark is padding."""
    bpe = SimpleTokenizer()
    text = next(t for t in ("!^", "!~", "!@", "!§", "!{") if 0 in bpe.encode(t))
    seen: list[Tensor] = []
    clip, _ = scorer._model
    handle = clip.text_model.embeddings.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    scorer._read([text])
    handle.remove()
    ids = seen[0][0].tolist()
    length = len(bpe.encode(text))
    assert ids == [49406, *bpe.encode(text), *[END] * (76 - length)]


def test_wrong_weights(state: State, tmp_path: Path) -> None:
    save_file({"visual.proj": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"no tensor is called cross_model\."):
        MPS(str(tmp_path)).score([picture()], ["a"])
    broken = {n: t for n, t in state.items() if "vision_model.post_layernorm" not in n}
    save_file(broken, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="not the weights of CLIPModel"):
        MPS(str(tmp_path)).score([picture()], ["a"])


def test_a_pickled_program_is_refused(tmp_path: Path) -> None:
    """The original release is one; even with its hash stated, no code of it runs."""
    file = tmp_path / "MPS_overall_checkpoint.pth"
    torch.save(torch.nn.Linear(2, 2), file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(InputError, match="pickle of unknown origin"):
        MPS(str(file)).score([picture()], ["a"])
    with pytest.raises(InputError, match="contains code"):
        MPS(str(file), sha256).score([picture()], ["a"])


def test_protocol(scorer: MPS) -> None:
    assert parse_scorer("mps") == MPS()
    assert scorer_from_json(scorer.to_json()) == scorer == parse_scorer(scorer.to_text())
    assert scorer.weights not in str(scorer.fingerprint())
    before = scorer.score([picture()], ["a circle"])
    scorer.close()
    assert "_model" not in scorer.__dict__
    assert scorer.score([picture()], ["a circle"]) == before
