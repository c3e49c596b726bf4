"""The loader of collected data: everything once, in an order that can be taken up, a few at a time.

Each stored step carries the number of its prompt and of its step in its latents.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from core2 import synthetic
from hypothesis import given as varied
from hypothesis import settings
from hypothesis import strategies as st

from w2sdiff.core2.collect import MANIFEST
from w2sdiff.core2.data import Collected, Shard
from w2sdiff.errors import InputError
from w2sdiff.jobs import Ledger


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """23 prompts in 6 shards of 4 and one of 3, three steps each; texts of 5, 2 and 7 tokens."""
    texts = synthetic.prompts(23)
    return synthetic.write(tmp_path_factory.mktemp("data"), texts=texts, lengths=(5, 2, 7))


@pytest.fixture
def data(folder):
    return Collected.open(folder)


def names(batch):
    """(prompt, step) of each row, as the latents say."""
    flat = batch.given.x.flatten(1)
    return [(int(p), int(s)) for p, s in flat[:, :2].tolist()]


EVERY = {(p, s) for p in range(23) for s in range(3)}


def test_what_is_read_is_what_was_stored(data):
    assert len(data) == len(EVERY)
    batches = list(data.read())
    assert sorted(len(batch.c) for batch in batches) == [9, 12, 12, 12, 12, 12]
    found = [name for batch in batches for name in names(batch)]
    assert sorted(found) == sorted(EVERY)
    for batch in batches:
        assert batch.c.dtype == batch.target.dtype == batch.given.text.dtype == torch.float32
        assert batch.step.tolist() == [s for _, s in names(batch)]
        sigma = 1 - (batch.step.double() + 0.5) / 3
        torch.testing.assert_close(batch.given.sigma.double(), sigma, rtol=0, atol=1e-6)
        # Stored in float16: 11 bits of the value, twice, and once of the sum.
        expected = torch.cat(
            [
                synthetic.mixed(
                    batch.c[i : i + 1],
                    synthetic.Given(batch.given.x[i : i + 1], 1 - s, s),
                    0,
                )
                for i, s in enumerate(sigma.tolist())
            ]
        )
        torch.testing.assert_close(batch.target, expected, rtol=2**-9, atol=2**-8)


def test_a_limit_reads_no_shard_more_than_it_needs(data, monkeypatch):
    read = counted(monkeypatch)
    assert 13 <= sum(len(batch.c) for batch in data.read(13)) <= 24
    assert len(read) == 2


@settings(max_examples=25)
@varied(
    size=st.integers(1, 14),
    window=st.integers(1, 8),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
)
def test_every_step_comes_at_most_once_and_only_a_rest_is_dropped(
    folder, size, window, seed, epoch
):
    data = Collected.open(folder)
    batches = list(data.batches(size, seed=seed, epoch=epoch, window=window))
    found = [name for batch in batches for name in names(batch)]
    assert len(found) == len(set(found))
    assert set(found) <= EVERY
    assert all(len(batch.c) == size for batch in batches)
    windows = -(-len(data.shards) // window)
    assert len(EVERY) - len(found) <= windows * (size - 1)
    assert len(batches) == data.batches_per_epoch(size, seed=seed, epoch=epoch, window=window)


def order(data, **options):
    options = {"seed": 0, "window": 3, **options}
    return [names(batch) for batch in data.batches(4, **options)]


def test_the_order_is_a_function_of_seed_and_epoch(data, folder):
    assert order(data) == order(Collected.open(folder))
    others = [order(data, seed=1), order(data, epoch=1), order(data, seed=1, epoch=1)]
    assert all(other != order(data) for other in others)
    assert len({str(other) for other in others}) == 3
    flat = [name for batch in order(data) for name in batch]
    assert flat != sorted(flat)


@pytest.mark.parametrize("window", [1, 2, 3, 16])
def test_what_is_skipped_is_not_missed(data, window):
    whole = order(data, window=window)
    for skip in range(len(whole) + 2):
        assert order(data, window=window, skip=skip) == whole[skip:]


def counted(monkeypatch):
    """The shards that are read, in order."""
    read, own = [], Shard.read

    def counting(self):
        read.append(self.path.name)
        return own(self)

    monkeypatch.setattr(Shard, "read", counting)
    return read


def test_no_more_than_a_window_of_shards_is_read_at_a_time(data, monkeypatch):
    read = counted(monkeypatch)
    batches = data.batches(4, seed=0, window=2)
    assert not read
    seen = []
    for _ in batches:
        seen.append(len(read))
    assert set(seen) == {2, 4, 6}
    assert sorted(read) == sorted(shard.path.name for shard in data.shards), "each once"


def test_shards_of_which_nothing_is_left_are_not_read(data, monkeypatch):
    read = counted(monkeypatch)
    next(data.batches(4, seed=0, window=2, skip=6))  # 24 steps in the first window of two
    assert len(read) == 2


def test_a_batch_of_several_shards_pads_its_texts_and_masks_what_it_adds(data):
    lengths = {}
    for batch in data.read():
        for (prompt, _), text in zip(names(batch), batch.given.text, strict=True):
            lengths[prompt] = text.clone()
    assert {len(text) for text in lengths.values()} == {2, 5, 7}
    for batch in data.batches(12, seed=0, window=16):
        assert batch.given.text.shape[1] == batch.given.mask.shape[1] == 7
        for (prompt, _), text, mask in zip(
            names(batch), batch.given.text, batch.given.mask, strict=True
        ):
            expected = lengths[prompt]
            assert torch.equal(text[: len(expected)], expected)
            assert not text[len(expected) :].any()
            assert mask.tolist() == [1] * len(expected) + [0] * (7 - len(expected))


# --- the split ------------------------------------------------------------------------------------


def texts_of(part):
    return [shard.prompts[row] for shard in part.shards for row in part.rows(shard)]


def test_the_split_is_by_prompt_however_often_it_occurs(tmp_path):
    texts = [f"prompt {i % 10}" for i in range(40)]
    data = Collected.open(synthetic.write(tmp_path / "data", texts=texts))
    train, held = data.split(0.3)
    assert set(texts_of(train)) | set(texts_of(held)) == set(texts)
    assert not set(texts_of(train)) & set(texts_of(held))
    assert len(texts_of(train)) + len(texts_of(held)) == 40
    assert len(train) + len(held) == len(data) == 120
    found = [name for part in (train, held) for batch in part.read() for name in names(batch)]
    assert sorted(found) == sorted((p, s) for p in range(40) for s in range(3))
    epoch = [name for batch in train.batches(1, seed=0) for name in names(batch)]
    assert sorted(epoch) == sorted(name for batch in train.read() for name in names(batch))


def test_the_split_depends_on_the_text_alone(tmp_path):
    texts = synthetic.prompts(30)
    one = Collected.open(synthetic.write(tmp_path / "a", texts=texts, shard=4))
    other = Collected.open(synthetic.write(tmp_path / "b", texts=texts[::-1], shard=7))
    assert sorted(texts_of(one.split(0.2)[1])) == sorted(texts_of(other.split(0.2)[1]))


def test_the_share_is_about_what_was_asked_for(tmp_path):
    texts = synthetic.prompts(400)
    data = Collected.open(synthetic.write(tmp_path / "d", texts=texts, shard=100, steps=1))
    held = len(data.split(0.25)[1])
    assert abs(held - 100) < 4 * (400 * 0.25 * 0.75) ** 0.5  # four standard deviations


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_is_a_share(data, share):
    with pytest.raises(InputError, match=r"\(0, 1\)"):
        data.split(share)


def test_a_part_without_a_prompt_is_an_error(tmp_path):
    data = Collected.open(synthetic.write(tmp_path / "d", texts=["the only one"]))
    with pytest.raises(InputError, match="collect more prompts"):
        data.split(0.5)


# --- what is wrong with a folder ------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path):
    return synthetic.write(tmp_path / "data")


def shards(folder):
    return sorted(folder.glob("*.safetensors"))


def refused(folder, says):
    with pytest.raises(InputError, match=says) as error:
        list(Collected.open(folder).read())
    assert "\n" not in str(error.value)


def test_no_folder_and_no_data(tmp_path):
    refused(tmp_path / "nowhere", "no folder of collected data.*core2 collect")
    refused(tmp_path, "no folder of collected data.*core2 collect")


def test_a_missing_shard(whole):
    shards(whole)[1].unlink()
    refused(whole, "0001.safetensors is missing; run the same `w2sdiff core2 collect` again")


@pytest.mark.parametrize("kept", [0, 3, 100, -1])
def test_a_shard_that_is_cut_off(whole, kept):
    path = shards(whole)[0]
    path.write_bytes(path.read_bytes()[:kept])
    refused(whole, r"0000.safetensors is cut off \(\d+ of \d+ bytes\).*again")


def test_a_shard_of_the_right_size_that_is_none(whole):
    path = shards(whole)[0]
    path.write_bytes(b"\xff" * path.stat().st_size)
    refused(whole, "0000.safetensors is damaged")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"prompts": "many", "shard": 4}', '{"prompts": null}']
)
def test_a_damaged_manifest(whole, text):
    (whole / MANIFEST).write_text(text, encoding="utf-8")
    refused(whole, f"{MANIFEST} is damaged")


def test_a_manifest_that_is_no_text(whole):
    (whole / MANIFEST).write_bytes(b"\xff\xfe\x00")
    refused(whole, f"{MANIFEST} is damaged")


def test_an_unfinished_collection(tmp_path):
    folder = synthetic.write(tmp_path / "data", stop_after=2)
    refused(folder, "has 2 of 3 shards.*run the same `w2sdiff core2 collect` again")


def test_shards_of_another_plan_do_not_make_up_for_missing_ones(tmp_path):
    """Collected for 12 prompts, then begun again for 13 and stopped: the last one is not there."""
    folder = synthetic.write(tmp_path / "data", texts=synthetic.prompts(12))
    about = json.loads((folder / MANIFEST).read_text("utf-8"))
    extra = about | {"prompts": 12, "items": [*about["items"][:-1], "f" * 64]}
    (folder / MANIFEST).write_text(json.dumps(extra), "utf-8")
    refused(folder, "has 2 of 3 shards")


def test_a_failed_shard_is_none(whole):
    [record] = [r for r in Ledger(whole).records() if r.files.keys() == {"0002.safetensors"}]
    path = whole / "records" / f"{record.key}.json"
    path.write_text(path.read_text("utf-8").replace('"done"', '"failed"'), "utf-8")
    refused(whole, "has 2 of 3 shards: some are missing, failed or not made yet")


def test_nothing_worth_keeping(tmp_path):
    folder = synthetic.write(tmp_path / "data", texts=synthetic.prompts(2), shard=2)
    [path] = shards(folder)
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["w2sdiff"])
    save_file(load_file(path), path, {"w2sdiff": json.dumps({**about, "shots": []})})
    [record] = Ledger(folder).records()
    text = (folder / "records" / f"{record.key}.json").read_text("utf-8")
    size = record.files[path.name]["bytes"]
    text = text.replace(f'"bytes":{size}', f'"bytes":{path.stat().st_size}').replace(
        f'"bytes": {size}', f'"bytes": {path.stat().st_size}'
    )
    (folder / "records" / f"{record.key}.json").write_text(text, "utf-8")
    refused(folder, "no picture that was worth keeping")


def test_a_folder_may_be_moved(whole, tmp_path):
    moved = whole.rename(tmp_path / "moved")
    assert len(Collected.open(Path(moved))) == 36
