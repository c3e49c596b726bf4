"""The judge's training on a budget of seconds: data, truth, resuming, and the stock folder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch

from w2sdiff.shapes.look import look_all
from w2sdiff.shapes.oracle import judge_all
from w2sdiff.shapes.sampling import completions, is_held_out
from w2sdiff.shapes.train import clip, clip_data

SCHEDULE = replace(clip.SCHEDULE, steps=3, batch=8, warmup=1)
POOL = 32


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("judge")
    clip.train_clip(out, schedule=SCHEDULE, pool_size=POOL)
    return out


@pytest.fixture(scope="module")
def pool(out):
    return clip_data.make_pictures(None, POOL, out / "pools" / "clip.safetensors", seed=0)


def test_truth_is_the_oracles(pool):
    found = clip_data.obeys(pool, pool.captions)
    pixels = pool.pixels.numpy()
    for column, caption in enumerate(pool.captions):
        verdicts = [v.obeyed for v in judge_all(pixels, [caption] * POOL)]
        assert found[:, column].tolist() == verdicts
    assert 0 < found.diagonal().sum() < POOL  # some pictures are partly wrong


def test_nothing_held_out_is_seen(pool):
    for caption in pool.captions:
        assert not is_held_out(completions(caption)[0])
    for reading in look_all(pool.pixels.numpy()):
        kinds = [(s.shape, s.colour) for s in reading.objects if s.shape and s.colour]
        assert not (len(kinds) > 1 and is_held_out(kinds))


def test_mirrored_pictures_keep_the_truth(pool):
    rng = np.random.default_rng(0)
    items = np.arange(POOL)
    for _ in range(3):  # other pictures are mirrored each time
        generator = torch.Generator().manual_seed(0)
        pixels, captions, obeyed, covered = clip._batch(pool, items, rng, generator)
        own = obeyed[:, :POOL].diagonal()
        assert torch.equal(own, clip_data.obeys(pool, pool.captions).diagonal())
        assert len(captions) == POOL * (1 + clip.ALTERED_CAPTIONS)
        assert pixels.abs().max() <= 1
        assert covered.shape == (POOL, 64)
        assert covered[pool.objects < 0].eq(-100).all()


def test_a_resumed_run_is_the_run_that_never_stopped(out, tmp_path):
    (tmp_path / "pools").symlink_to(out / "pools")
    clip.train_clip(tmp_path, schedule=replace(SCHEDULE, steps=2, cooldown=0.01), pool_size=POOL)
    clip.train_clip(tmp_path, schedule=replace(SCHEDULE, cooldown=0.01), pool_size=POOL)
    straight = tmp_path / "straight"
    straight.mkdir()
    (straight / "pools").symlink_to(out / "pools")
    clip.train_clip(straight, schedule=replace(SCHEDULE, cooldown=0.01), pool_size=POOL)
    name = "shapes-clip/open_clip_model.safetensors"
    assert (tmp_path / name).read_bytes() == (straight / name).read_bytes()


def test_stock_open_clip_reads_the_folder(out):
    folder = out / "shapes-clip"
    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(["a red circle"])
    assert ids.shape == (1, 16)
    assert model.encode_text(ids).shape == (1, 128)
    sizes = [t.size for t in prepare.transforms if hasattr(t, "size")]
    assert sizes
    assert (folder / "open_clip_model.safetensors").stat().st_size < 3_000_000
