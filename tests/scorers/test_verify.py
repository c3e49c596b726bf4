"""`verify` finds what is wrong, and its golden data are what other code computes."""

from __future__ import annotations

import json
from pathlib import Path

import golden_scorers
import numpy as np
import pytest
import torch
from conftest import SHARED
from PIL import Image

from w2sdiff.scorers import blip, golden, preprocess, text, verify
from w2sdiff.scorers.preprocess import resize_pad

HEADS = SHARED / "data" / "aesthetic"
needs_heads = pytest.mark.skipif(not HEADS.is_dir(), reason=f"no aesthetic heads at {HEADS}")


@needs_heads
def test_everything_here_is_right() -> None:
    found = list(verify.verify(HEADS))
    assert [check for check in found if check.status == "failed"] == []
    fine = {check.name for check in found if check.status == "ok"}
    assert {
        *("small imagereward", "small mps", "small hpsv3", "tokenizer of CLIP"),
        *("aesthetic head v1", "aesthetic head v2", "oracle of shapes", "shapes-clip"),
        *("preprocessing, alpha picture", "version of torch", "scorer contrast"),
    } <= fine
    assert len({check.name for check in found}) == len(found)


def clamped(image: Image.Image, size: int, *, antialias: bool) -> torch.Tensor:
    return resize_pad(image, size, antialias=antialias).clamp(0, 1)


def cropped(image: Image.Image, size: int, *, antialias: bool) -> torch.Tensor:
    del antialias
    return preprocess.resize_crop(image, size)


def always_smooth(image: Image.Image, size: int, *, antialias: bool) -> torch.Tensor:
    del antialias
    return resize_pad(image, size, antialias=True)


@pytest.mark.parametrize("wrong", [clamped, cropped, always_smooth])
def test_wrong_preprocessing(monkeypatch: pytest.MonkeyPatch, wrong: object) -> None:
    """The overshoot of bicubic clamped, a crop where HPSv2 pads, one recipe for both: found."""
    monkeypatch.setattr(preprocess, "resize_pad", wrong)
    found = verify._run("x", verify._preprocessing, "wide")
    assert found.status == "failed"
    assert "grey levels" in found.detail


def test_wrong_number_of_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blip, "_HEAD_CHANNELS", 16)  # eight heads at this width
    found = verify._run("x", verify._small_model, "imagereward")
    assert found.status == "failed"
    assert found.detail.startswith("expected")


def test_lost_end_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    real = text.clip_tokeniser

    class Cut(text.Tokeniser):
        def encode(self, prompts):  # type: ignore[no-untyped-def]
            ids = super().encode(prompts)
            ids[:, -1] = self.split(prompts[0])[self.context - 1]
            return ids

    def cutting(context: int) -> text.Tokeniser:
        return Cut(context, real(context).split)

    monkeypatch.setattr(text, "clip_tokeniser", cutting)
    found = verify._run("x", verify._tokenizer)
    assert (found.status, found.detail) == ("failed", "a long prompt loses its end mark")


@needs_heads
def test_wrong_head(tmp_path: Path) -> None:
    lines = (HEADS / "laion_v1_linear_vit_l_14.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        if row.get("name", "").endswith("weight"):
            row["data"] = (np.array(row["data"]) * 1.01).tolist()
    file = tmp_path / "laion_v1_linear_vit_l_14.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    found = verify._run("x", verify._head, "v1", tmp_path)
    assert found.status == "failed"
    assert "ten published embeddings" in found.detail
    assert verify._run("x", verify._head, "v1", None).status == "not installed"


def test_not_a_number_is_wrong() -> None:
    assert verify._far(np.array([np.nan]), [1.0]) == np.inf


def test_a_check_that_breaks_has_failed() -> None:
    found = verify._run("x", verify._small_model, "nothing")
    assert (found.status, found.detail) == ("failed", "KeyError: 'nothing'")


def test_preprocessing_is_what_torchvision_gives() -> None:
    if not HEADS.is_dir():
        pytest.skip(f"no aesthetic heads at {HEADS}")
    fresh, stored = golden_scorers.arrays(HEADS), golden.arrays()
    assert fresh.keys() == stored.keys()
    for name, values in fresh.items():
        assert values.dtype == stored[name].dtype
        assert np.allclose(values, stored[name], atol=1e-5), name


@pytest.mark.slow
def test_small_models_are_what_plain_torch_gives() -> None:
    fresh, stored = golden_scorers.numbers(), golden.numbers()
    assert fresh.keys() == stored.keys()
    for kind, facts in fresh.items():
        assert facts["expected"] == pytest.approx(stored[kind]["expected"], abs=1e-5)
        assert facts | {"expected": 0} == stored[kind] | {"expected": 0}
