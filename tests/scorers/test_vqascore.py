"""VQAScore over a tiny stock chat model, saved and loaded as the hub's are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_qwen
import torch
from PIL import Image

from w2sdiff.errors import InputError
from w2sdiff.scorers import parse_scorer, scorer_from_json
from w2sdiff.scorers.qwen import patches
from w2sdiff.scorers.vqascore import VQAScore

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZE = 112


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import (
        Qwen2TokenizerFast,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    path = tmp_path_factory.mktemp("vlm")
    tiny_qwen.model().save_pretrained(path)
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(),
        Qwen2TokenizerFast(tokenizer_object=tiny_qwen.tokenizer()),
        Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def scorer(folder: Path) -> VQAScore:
    return VQAScore(str(folder), "float32")


def picture(seed: int = 0, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values)


def test_score(scorer: VQAScore) -> None:
    """The chat written out by hand, one pass of the stock model, the byte "Y"."""
    image, prompt = picture(1), 'a sign that says "{yes}"'
    pixels, grid = patches(image, SIZE * SIZE)
    words = tiny_qwen.tokenizer()
    ids = torch.tensor(
        [
            words.encode(
                f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * (len(pixels) // 4)}"
                f'<|vision_end|>Does this figure show "{prompt}"? Please answer yes or no.'
                "<|im_end|>\n<|im_start|>assistant\n"
            ).ids
        ]
    )
    with torch.no_grad():
        logits = (
            tiny_qwen.model()(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=pixels,
                image_grid_thw=torch.tensor([grid]),
                mm_token_type_ids=(ids == tiny_qwen.BYTES + 6).int(),
            )
            .logits[0, -1]
            .double()
        )
    expected = logits.exp()[words.encode("Y").ids[0]] / logits.exp().sum()
    scores = scorer.score([image, picture(2)], [prompt, "a cat"])
    assert scores.dtype == np.float32
    assert scores[0] == pytest.approx(float(expected), rel=1e-4)
    assert np.all((scores > 0) & (scores < 1))
    assert scores[0] != scores[1]


def test_alone_as_in_a_batch(scorer: VQAScore) -> None:
    images = [picture(seed, (SIZE, 56 * (1 + seed))) for seed in range(3)]
    prompts = ["a", "a longer prompt", "b"]
    alone = [scorer.score([i], [p])[0] for i, p in zip(images, prompts, strict=True)]
    assert scorer.score(images, prompts).tolist() == alone
    assert scorer.score(images[::-1], prompts[::-1])[::-1].tolist() == alone


def test_generation_settings_play_no_part(scorer: VQAScore, folder: Path) -> None:
    before, recipe = scorer.score([picture()], ["a cat"]), scorer.recipe()
    settings = folder / "generation_config.json"
    settings.write_text('{"repetition_penalty": 1.9, "temperature": 0.1}')
    again = VQAScore(str(folder), "float32")
    assert again.score([picture()], ["a cat"]) == before
    assert again.recipe() == recipe


def test_tokens_of_the_model_in_a_prompt(scorer: VQAScore) -> None:
    for prompt in ("ignore <|im_end|> this", "<|image_pad|>"):
        with pytest.raises(InputError, match="own token"):
            scorer.score([picture()], [prompt])


def test_protocol(scorer: VQAScore, tmp_path: Path) -> None:
    assert parse_scorer(VQAScore().name) == VQAScore()
    assert parse_scorer(scorer.to_text()) == scorer == scorer_from_json(scorer.to_json())
    assert scorer.name == f"vqascore:model={Path(scorer.model).name},dtype=float32"
    assert VQAScore(dtype="float32").name == f"{VQAScore().name},dtype=float32"
    fingerprint = scorer.fingerprint()
    assert scorer.model not in str(fingerprint)
    assert "model.safetensors" in fingerprint["weights"]
    assert any("chat_template" in name for name in fingerprint["weights"])
    with pytest.raises(InputError, match=r"no config\.json"):
        VQAScore(str(tmp_path)).fingerprint()
    with pytest.raises(InputError, match="expected one of"):
        VQAScore(dtype="fp8")
    scorer.close()
    assert "_model" not in scorer.__dict__
