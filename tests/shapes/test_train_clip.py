"""The judge's training on a budget of seconds: data, truth, resuming, and the stock folder."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch

from w2sdiff.shapes.captions import parse
from w2sdiff.shapes.look import look_all
from w2sdiff.shapes.oracle import judge_all
from w2sdiff.shapes.sampling import completions, is_held_out
from w2sdiff.shapes.train import clip, clip_data, clip_facts
from w2sdiff.shapes.train.card import write_cards
from w2sdiff.shapes.world import evaluation_captions, render, sample_scene

SCHEDULE = replace(clip.SCHEDULE, steps=3, batch=8, warmup=1)
SECOND = replace(SCHEDULE, steps=1)
POOL = 32


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("judge")
    clip.train_clip(out, schedule=SCHEDULE, second=SECOND, pool_size=POOL)
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
        pixels, captions, obeyed, covered, _ = clip._batch(pool, items, rng, generator)
        own = obeyed[:, :POOL].diagonal()
        assert torch.equal(own, clip_data.obeys(pool, pool.captions).diagonal())
        assert len(captions) == POOL * (1 + clip.ALTERED_CAPTIONS)
        assert pixels.abs().max() <= 1
        assert covered.shape == (POOL, 64)
        assert covered[pool.objects < 0].eq(-100).all()


def test_a_resumed_run_is_the_run_that_never_stopped(out, tmp_path):
    (tmp_path / "pools").symlink_to(out / "pools")
    straight = tmp_path / "straight"
    straight.mkdir()
    (straight / "pools").symlink_to(out / "pools")
    steady, second = replace(SCHEDULE, cooldown=0.01), replace(SECOND, steps=2, cooldown=0.01)

    def run(folder, **first):
        clip.train_clip(folder, schedule=steady, second=replace(second, **first), pool_size=POOL)
        return (folder / "shapes-clip/open_clip_model.safetensors").read_bytes()

    stopped = run(tmp_path, steps=1)
    assert run(tmp_path) == run(straight) != stopped


def test_pictures_and_captions_say_the_same_facts():
    rng = np.random.default_rng(0)
    captions = evaluation_captions(80)
    readings = look_all(render([sample_scene(caption, rng) for caption in captions]))
    seen = clip_facts.of_pictures(*clip_data._as_tensors(readings))
    said = clip_facts.of_captions(captions)
    assert torch.equal(seen[0], said[0])
    related = torch.tensor([c.relation is not None for c in captions])
    assert related.sum() == 20
    assert torch.equal(seen[1][related], said[1][related])
    assert (said[1][~related] == clip_facts.UNKNOWN).all()


def test_facts_of_a_caption():
    there, sides = clip_facts.of_captions(
        [parse("a red circle above a blue square"), parse("a circle"), parse("two red circles")]
    )
    assert there.sum(1).tolist() == [2, -24, 1]
    one, two = (1 + n for n in there[0].nonzero().flatten().tolist())
    assert sorted(sides[0].tolist()) == [0, 0, *sorted([one, two])]
    assert sides[0, :2].tolist() == [0, 0]  # neither left nor right
    assert (sides[1:] == clip_facts.UNKNOWN).all()


def test_stock_open_clip_reads_the_folder(out):
    folder = out / "shapes-clip"
    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(["a red circle"])
    assert ids.shape == (1, 16)
    assert model.encode_text(ids).shape == (1, 128)
    sizes = [t.size for t in prepare.transforms if hasattr(t, "size")]
    assert sizes
    assert (folder / "open_clip_model.safetensors").stat().st_size < 3_000_000


def test_the_card_says_what_was_measured_or_that_nothing_was(out, tmp_path):
    write_cards(out)
    assert "Not evaluated." in (out / "shapes-clip" / "README.md").read_text()
    share = {"share": 0.5, "low": 0.4, "high": 0.6, "n": 100}
    area = {"auc": 0.75, "low": 0.7, "high": 0.8, "pictures": 40, "obeyed": 0.5}
    figures = {
        "benchmark": "shapes_clip",
        "true_above_altered": {"seen": {"swap": share}, "held out": {"swap": share}},
        "agreement_with_oracle": {"all": area, "categories": {}, "arms": {}},
    }
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    (card,) = write_cards(out, tmp_path / "figures.json")
    text = card.read_text()
    assert "| swap | 50.0 (40.0 to 60.0) | 100 | 50.0 (40.0 to 60.0) | 100 |" in text
    assert "| all | 40 | 50 | 0.750 (0.700 to 0.800) |" in text
    assert "| second | 1 |" in text


def test_facts_cost_nothing_where_nothing_is_known():
    reader, features = clip_facts.Facts(8), torch.ones(3, 8)
    there = torch.full((3, clip_facts.KINDS), -1)
    sides = torch.full((3, 4), clip_facts.UNKNOWN)
    assert reader(features, there, sides) == 0
    there[0] = 0
    assert reader(features, there, sides) > 0
