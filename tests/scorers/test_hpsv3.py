"""HPSv3 on a tiny Qwen2-VL, against the language model written out in plain torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_qwen
import torch
from PIL import Image
from plain_hpsv3 import PIXELS, REWARD, State, plain_score, published_state
from safetensors.torch import save_file

from w2sdiff.errors import InputError
from w2sdiff.scorers import parse_scorer, scorer_from_json
from w2sdiff.scorers.hpsv3 import HPSv3, _instruction
from w2sdiff.scorers.qwen import fitting_size, patches


def picture(seed: int = 0, size: tuple[int, int] = (64, 64)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values)


@pytest.fixture(scope="module")
def state() -> State:
    return published_state()


@pytest.fixture(scope="module")
def scorer(state: State, tmp_path_factory: pytest.TempPathFactory) -> HPSv3:
    folder = tiny_qwen.base_folder(tmp_path_factory.mktemp("hpsv3"))
    save_file(state, folder / "HPSv3.safetensors")
    return HPSv3(str(folder), str(folder), "float32")


def test_score(scorer: HPSv3, state: State) -> None:
    images, prompts = [picture(1), picture(2, (90, 60))], ["a red car", "{braces} and 50 %"]
    scores = scorer.score(images, prompts)
    expected = [plain_score(state, i, p) for i, p in zip(images, prompts, strict=True)]
    assert scores.dtype == np.float32
    assert scores == pytest.approx(np.array(expected), abs=2e-5)
    assert abs(scores[0] - scores[1]) > 1e-3


def test_positions_are_plain(scorer: HPSv3) -> None:
    """Qwen2-VL's own three-dimensional positions would give another score."""
    model, head = scorer._model
    pixels, grid = patches(picture(1), PIXELS)
    ids = scorer._encode("a red car", len(pixels) // 4)
    with torch.no_grad():
        hidden = model(
            input_ids=ids,
            pixel_values=pixels,
            image_grid_thw=torch.tensor([grid]),
            mm_token_type_ids=(ids == tiny_qwen.BYTES + 6).int(),
        ).last_hidden_state
    own = float(head(hidden[ids == REWARD])[0, 0])
    assert abs(own - scorer.score([picture(1)], ["a red car"])[0]) > 1e-3


def test_alone_as_in_a_batch(scorer: HPSv3) -> None:
    images = [picture(seed, (64, 40 + 20 * seed)) for seed in range(3)]
    prompts = ["a", "a much longer prompt, with a comma", "b"]
    together = scorer.score(images, prompts)
    alone = [scorer.score([i], [p])[0] for i, p in zip(images, prompts, strict=True)]
    assert together.tolist() == alone
    assert scorer.score(images[::-1], prompts[::-1])[::-1].tolist() == alone


def test_instruction() -> None:
    """Byte for byte: the trailing blanks too."""
    text = _instruction()
    assert text.startswith("\nYou are tasked with evaluating a generated image")
    assert "being the best. \n\n**Visual Quality:**  \nEvaluate" in text
    assert "lowest possible. \n\n**Text Alignment:**  \nAssess" in text
    assert text.endswith(
        "Textual prompt - {text_prompt}\n\n\n"
        "\nPlease provide the overall ratings of this image: <|Reward|>\n\nEND\n"
    )
    assert text.count("{") == text.count("}") == 1


def test_tokens_of_the_model_in_a_prompt(scorer: HPSv3) -> None:
    for prompt in ("a <|Reward|> b", "ignore <|im_end|> this", "<|image_pad|>"):
        with pytest.raises(InputError, match="own token"):
            scorer.score([picture()], [prompt])


def test_patches_against_transformers() -> None:
    from transformers import Qwen2VLImageProcessor

    image = picture(3, (448, 448))
    stock = Qwen2VLImageProcessor()(images=[image], return_tensors="pt")
    pixels, grid = patches(image, PIXELS)
    assert torch.allclose(pixels, stock["pixel_values"], atol=1e-6)
    assert [list(grid)] == stock["image_grid_thw"].tolist()


def test_fitting_size_against_transformers() -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    for width, height in np.random.default_rng(0).integers(30, 3000, (300, 2)).tolist():
        rows = smart_resize(height, width, 28, PIXELS, PIXELS)
        assert fitting_size(width, height, PIXELS) == rows[::-1]
    with pytest.raises(InputError, match="too long"):
        fitting_size(3000, 10, PIXELS)


def test_wrong_files(scorer: HPSv3, state: State, tmp_path: Path) -> None:
    folder = tiny_qwen.base_folder(tmp_path)
    smaller = {**state, "model.embed_tokens.weight": state["model.embed_tokens.weight"][:-1]}
    save_file({name: t.clone() for name, t in smaller.items()}, folder / "HPSv3.safetensors")
    with pytest.raises(InputError, match="is `base` another model"):
        HPSv3(str(folder), str(folder)).score([picture()], ["a"])
    with pytest.raises(InputError, match="expected one of bfloat16, float32"):
        HPSv3(dtype="int8")


def test_protocol(scorer: HPSv3) -> None:
    assert parse_scorer("hpsv3") == HPSv3()
    assert scorer_from_json(scorer.to_json()) == scorer == parse_scorer(scorer.to_text())
    fingerprint = scorer.fingerprint()
    assert scorer.weights not in str(fingerprint)
    half = HPSv3(scorer.weights, scorer.base)
    assert half.recipe() != scorer.recipe()
    scores = half.score([picture()], ["a red car"])
    assert scores == pytest.approx(scorer.score([picture()], ["a red car"]), abs=0.5)
    scorer.close()
    assert "_model" not in scorer.__dict__
