"""The judge that comes with the package: stock open_clip, small, and right more often than not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from w2sdiff import shapes
from w2sdiff.errors import InputError
from w2sdiff.scorers.clipscore import ClipScore
from w2sdiff.shapes.alter import alter
from w2sdiff.shapes.world import evaluation_captions, render, sample_scene


@pytest.fixture(scope="module")
def judge() -> ClipScore:
    return ClipScore(model="shapes-clip", form="plain")


@pytest.fixture(scope="module")
def rendered():
    rng = np.random.default_rng(0)
    captions = evaluation_captions(60, seed=5)
    images = render([sample_scene(caption, rng) for caption in captions])
    return captions, [Image.fromarray(image) for image in images]


def test_it_is_no_pipeline_and_is_found_by_name():
    assert "shapes-clip" not in shapes.checkpoint_names()
    assert (shapes.judge_path() / "open_clip_config.json").is_file()
    with pytest.raises(InputError, match="shapes-clip"):
        shapes.judge_path("shape-clip")


def test_it_is_small_and_safe():
    files = [f for f in shapes.judge_path().iterdir() if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 3_000_000
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".md"}


def test_stock_open_clip_gives_the_same_scores(judge, rendered):
    import open_clip

    captions, images = rendered
    texts = [c.text for c in captions]
    place = f"local-dir:{shapes.judge_path()}"
    model, _, prepare = open_clip.create_model_and_transforms(place)
    model.eval()
    with torch.inference_mode():
        seen = model.encode_image(torch.stack([prepare(i) for i in images]), normalize=True)
        read = model.encode_text(open_clip.get_tokenizer(place)(texts), normalize=True)
    wanted = 100 * (seen * read).sum(-1)
    np.testing.assert_allclose(judge.score(images, texts), wanted, atol=1e-3)


def test_true_captions_are_above_altered_ones(judge, rendered):
    captions, images = rendered
    rng = np.random.default_rng(1)
    true = judge.score(images, [c.text for c in captions])
    for kind in ("colour", "count"):
        others = [alter(caption, kind, rng) for caption in captions]
        wrong = judge.score(images, [other.text for other in others])
        assert (true > wrong).mean() >= 0.9, kind


def test_long_and_foreign_prompts_are_read_and_counted(judge, rendered):
    _, images = rendered
    prompts = ["a red circle " * 30, "Ein rotes Quadrat 🟥", ""]
    assert judge.max_tokens == 16
    counts = judge.tokens(prompts)
    assert counts[0] == 92
    assert counts[2] == 2
    assert np.isfinite(judge.score(images[:3], prompts)).all()


def test_fingerprint_is_that_of_the_files(judge):
    weights = judge.fingerprint()["weights"]
    assert set(weights) >= {"open_clip_model.safetensors", "config", "tokenizer.json"}
    assert str(shapes.judge_path()) not in json.dumps(judge.fingerprint())
