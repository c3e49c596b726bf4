"""Scoring: every picture once, whatever its neighbours, the order, the batch, or the past."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import struct
import zlib
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from w2sdiff.bench.scoring.score import (
    Picture,
    hashed,
    read_groups,
    read_scores,
    score_groups,
    score_pictures,
)
from w2sdiff.errors import InputError
from w2sdiff.jobs import Ledger
from w2sdiff.scorers import Scorer


@dataclasses.dataclass(frozen=True)
class Red(Scorer):
    """The mean of the red channel, times the length of the prompt."""

    kind: ClassVar[str] = "red"
    group: ClassVar = "exact"
    expected: ClassVar = (0.0, 1.0)
    factor: float = 1.0

    @property
    def max_tokens(self):
        return 5

    def fingerprint(self):
        return {"scorer": self.kind, "weights": {}, "formula": f"{self.factor} * mean red"}

    @property
    def calls(self):
        return self.__dict__.setdefault("_calls", [])

    def score(self, images, prompts=None):
        prompts = self._check_prompts(images, prompts)
        self.calls.append(len(images))
        red = [np.asarray(image, dtype=np.float32)[..., 0].mean() / 255 for image in images]
        lengths = [len(prompt) for prompt in prompts]
        return (self.factor * np.array(red) * np.array(lengths)).astype(np.float32)

    def tokens(self, prompts):
        return [len(prompt.split()) for prompt in prompts]

    def close(self):
        self.__dict__["closed"] = True  # the calls are for the test, so they stay


class Plain(Red):
    kind: ClassVar[str] = "plain"
    needs_prompt: ClassVar[bool] = False

    def score(self, images, prompts=None):
        del prompts
        return super().score(images, ["x"] * len(images))


class Spread(Red):
    kind: ClassVar[str] = "spread"
    per_prompt: ClassVar[bool] = True

    def score(self, images, prompts=None):
        del prompts
        values = super().score(images, ["x"] * len(images))
        return np.full(len(images), np.ptp(values), dtype=np.float32)


class Small(Red):
    """Has memory for three pictures."""

    def score(self, images, prompts=None):
        values = super().score(images, prompts)
        if len(images) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return values


class Picky(Red):
    """Refuses the word "bad", breaks at "broken", and finds no number for "nan"."""

    def score(self, images, prompts=None):
        values = super().score(images, prompts)
        for i, prompt in enumerate(prompts):
            if "bad" in prompt:
                raise InputError(f"cannot read {prompt!r}")
            if "broken" in prompt:
                raise RuntimeError("boom")
            if "nan" in prompt:
                values[i] = np.nan
        return values


class Refuses(Red):
    def score(self, images, prompts=None):
        super().score(images, prompts)
        raise InputError("expected other pictures")


def draw(folder, reds, prompt="ab"):
    folder.mkdir(exist_ok=True)
    pictures = []
    for i, red in enumerate(reds):
        path = folder / f"{i:03}.png"
        Image.new("RGB", (8, 8), (red, i, 0)).save(path)
        pictures.append(Picture(path, None, prompt))
    return pictures


def scores(ledger, pictures, scorer):
    found = read_scores(ledger, pictures, [scorer])
    return [
        found[i, scorer.name].score if (i, scorer.name) in found else None
        for i in range(len(pictures))
    ]


def test_every_picture_has_its_score_and_its_tokens(tmp_path):
    pictures = draw(tmp_path / "p", [0, 51, 255])
    pictures[2] = dataclasses.replace(pictures[2], prompt="one two three four five six")
    scorer = Red()
    with Ledger(tmp_path / "s") as ledger:
        summary = score_pictures(pictures, [scorer], ledger, batch=2)
        found = read_scores(ledger, pictures, [scorer])
    assert (summary.made, summary.failed, summary.left) == (3, 0, 0)
    assert [found[i, "red"].score for i in range(3)] == pytest.approx([0, 0.4, 27])
    assert [(found[i, "red"].tokens, found[i, "red"].truncated) for i in (0, 2)] == [
        (1, False),
        (6, True),
    ]
    assert scorer.__dict__["closed"]


def test_nothing_is_scored_twice_and_a_new_picture_or_scorer_adds_only_itself(tmp_path):
    pictures, scorer, other = draw(tmp_path / "p", range(7)), Red(), Red(factor=2.0)
    ledger = Ledger(tmp_path / "s")
    score_pictures(pictures[1:], [scorer], ledger, batch=3)
    assert scorer.calls == [3, 3]
    summary = score_pictures(pictures, [scorer, other], ledger, batch=4)  # other batches, too
    assert scorer.calls == [3, 3, 1]
    assert sum(other.calls) == 7
    assert summary.failed == 0
    assert scores(ledger, pictures, other) == [2 * x for x in scores(ledger, pictures, scorer)]


def test_a_score_belongs_to_the_bytes_and_the_prompt_not_to_the_place(tmp_path):
    [picture] = draw(tmp_path / "p", [100])
    moved = tmp_path / "elsewhere.png"
    moved.write_bytes(picture.path.read_bytes())
    ledger = Ledger(tmp_path / "s")
    red, plain = Red(), Plain()
    score_pictures([picture], [red, plain], ledger)
    again = [Picture(moved, None, picture.prompt), Picture(moved, None, "another")]
    summary = score_pictures(again, [red, plain], ledger, batch=1)
    assert (summary.found, summary.made) == (2, 1)  # only the other prompt, where one is read
    assert len(plain.calls) == 1


def test_the_batch_and_the_order_decide_no_score(tmp_path):
    pictures = draw(tmp_path / "p", [5, 80, 200, 31, 7])
    one, two, scorer = Ledger(tmp_path / "1"), Ledger(tmp_path / "2"), Red()
    score_pictures(pictures, [scorer], one, batch=1)
    score_pictures(pictures[::-1], [scorer], two, batch=4)
    assert scores(one, pictures, scorer) == scores(two, pictures, scorer)
    names = [sorted(path.name for path in (tmp_path / n / "records").iterdir()) for n in "12"]
    assert names[0] == names[1]


def png_of_size(width, height):
    """A PNG of a few bytes that claims any size."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0")),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


BAD_FILES = {
    "cut.png": None,  # the first half of a good one
    "text.png": b"not a picture at all",
    "empty.png": b"",
    "bomb.png": png_of_size(60_000, 60_000),
    "large.png": png_of_size(12_000, 12_000),
    "pickle.png": b"cos\nsystem\n(S'echo pwned'\ntR.",
    "script.png": b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>",
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_picture_is_flagged_by_name_and_the_others_are_unharmed(tmp_path):
    pictures = draw(tmp_path / "p", range(4))
    good = pictures[0].path.read_bytes()
    for name, data in BAD_FILES.items():
        (tmp_path / "p" / name).write_bytes(good[: len(good) // 2] if data is None else data)
        pictures.insert(2, Picture(tmp_path / "p" / name, None, "ab"))
    pictures.insert(2, Picture(tmp_path / "p" / "not-there.png", None, "ab"))
    (tmp_path / "p" / "folder.png").mkdir()
    pictures.insert(2, Picture(tmp_path / "p" / "folder.png", None, "ab"))
    ledger, scorer = Ledger(tmp_path / "s"), Red()
    summary = score_pictures(pictures, [scorer], ledger, batch=5)
    found = read_scores(ledger, pictures, [scorer])
    assert (summary.made, summary.failed) == (4, len(BAD_FILES) + 2)
    for i, picture in enumerate(pictures):
        facts = found[i, "red"]
        if picture.path.name in BAD_FILES or picture.path.name in ("not-there.png", "folder.png"):
            assert facts.score is None
            assert picture.path.name in facts.reason
            assert str(tmp_path) not in facts.reason
        else:
            assert facts.score is not None


def test_a_picture_that_was_mended_is_scored(tmp_path):
    pictures = draw(tmp_path / "p", range(3))
    data = pictures[1].path.read_bytes()
    pictures[1].path.write_bytes(data[:40])
    ledger, scorer = Ledger(tmp_path / "s"), Red()
    assert not score_pictures(pictures, [scorer], ledger).complete
    pictures[1].path.write_bytes(data)
    assert score_pictures(pictures, [scorer], ledger).complete
    assert None not in scores(ledger, pictures, scorer)


def test_a_picture_that_changed_since_it_was_hashed_has_no_score(tmp_path):
    pictures = hashed(draw(tmp_path / "p", range(2)))
    Image.new("RGB", (8, 8), "red").save(pictures[0].path)
    ledger, scorer = Ledger(tmp_path / "s"), Red()
    assert score_pictures(pictures, [scorer], ledger).failed == 1
    assert "changed" in read_scores(ledger, pictures, [scorer])[0, "red"].reason


def test_too_little_memory_halves_the_batch_and_costs_no_score(tmp_path):
    pictures, scorer = draw(tmp_path / "p", range(20)), Small()
    ledger = Ledger(tmp_path / "s")
    assert score_pictures(pictures, [scorer], ledger, batch=10).made == 20
    assert scorer.calls[:2] == [10, 5]
    assert max(scorer.calls[2:]) <= 3  # what was learnt is kept
    assert scores(ledger, pictures, scorer) == scores_of(Red(), pictures)


def scores_of(scorer, pictures):
    images = [Image.open(picture.path) for picture in pictures]
    return [float(x) for x in scorer.score(images, [picture.prompt for picture in pictures])]


def test_a_refused_picture_costs_nobody_else_the_score(tmp_path):
    prompts = ["a", "bad", "nan", "broken", "b"]
    pictures = [
        dataclasses.replace(picture, prompt=prompt)
        for picture, prompt in zip(draw(tmp_path / "p", range(5)), prompts, strict=True)
    ]
    ledger, scorer = Ledger(tmp_path / "s"), Picky()
    summary = score_pictures(pictures, [scorer], ledger)
    found = read_scores(ledger, pictures, [scorer])
    reasons = [found[i, "red"].reason for i in range(5)]
    assert (summary.made, summary.failed) == (2, 3)
    assert reasons == [None, "cannot read 'bad'", "not a number", "RuntimeError: boom", None]


def test_a_refusal_that_meets_every_picture_ends_the_run(tmp_path):
    pictures = draw(tmp_path / "p", range(5))
    with pytest.raises(InputError, match="expected other pictures"):
        score_pictures(pictures, [Refuses()], Ledger(tmp_path / "s"))


def test_weights_that_are_not_here_are_said_before_anything_is_scored(tmp_path):
    class Absent(Red):
        def fingerprint(self):
            raise InputError("the weights are not here")

    scorer = Red()
    with pytest.raises(InputError, match="not here"):
        score_pictures(draw(tmp_path / "p", [1]), [scorer, Absent()], Ledger(tmp_path / "s"))
    assert scorer.calls == []
    assert not (tmp_path / "s").exists()


def test_a_damaged_record_is_made_again(tmp_path):
    pictures, scorer = draw(tmp_path / "p", range(3)), Red()
    ledger = Ledger(tmp_path / "s")
    score_pictures(pictures, [scorer], ledger)
    before = scores(ledger, pictures, scorer)
    record = min((tmp_path / "s" / "records").iterdir())
    record.write_bytes(record.read_bytes()[:30])
    (tmp_path / "s" / "records" / "holiday.json").write_text("{}")
    summary = score_pictures(pictures, [scorer], ledger)
    assert summary.complete
    assert scorer.calls == [3, 1]
    assert scores(ledger, pictures, scorer) == before


def test_pictures_that_are_there_twice_are_scored_once(tmp_path):
    pictures, scorer = draw(tmp_path / "p", [9, 9]) * 3, Red()
    pictures = [dataclasses.replace(picture) for picture in pictures]
    ledger = Ledger(tmp_path / "s")
    summary = score_pictures(pictures, [scorer], ledger, batch=4)
    assert summary.made == 2  # the second channel differs between the two files
    assert None not in scores(ledger, pictures, scorer)


def test_stopping_leaves_the_rest(tmp_path):
    pictures, scorer, done = draw(tmp_path / "p", range(6)), Red(), []
    summary = score_pictures(
        pictures,
        [scorer, Plain()],
        Ledger(tmp_path / "s"),
        batch=2,
        on_batch=lambda scorer, n: done.append((scorer.kind, n)),
        stopping=lambda: len(done) == 2,
    )
    assert done == [("red", 2), ("red", 2)]
    assert (summary.made, summary.left) == (4, 8)


@pytest.mark.parametrize("prompt", ["x" * 1_000_000, "\ud800", "a\0b", " "])
def test_a_prompt_that_no_encoder_should_see_is_refused(tmp_path, prompt):
    [picture] = draw(tmp_path / "p", [1], prompt)
    with pytest.raises(InputError, match=r"the prompt of 000\.png"):
        score_pictures([picture], [Red()], Ledger(tmp_path / "s"))
    assert score_pictures([picture], [Plain()], Ledger(tmp_path / "s")).made == 1


def test_groups_share_one_score_and_a_lonely_picture_has_none(tmp_path):
    pictures = draw(tmp_path / "p", [0, 51, 255, 10, 20])
    groups = [pictures[:3], pictures[3:4], pictures[3:]]
    ledger, scorer = Ledger(tmp_path / "s"), Spread()
    summary = score_groups(groups, [scorer], ledger)
    found = read_groups(ledger, groups, [scorer])
    assert summary.made == 2
    assert (1, "spread") not in found
    assert found[0, "spread"].score == pytest.approx(1.0)
    again = score_groups([pictures[2::-1]], [scorer], ledger)  # a set has no order
    assert again.found == 1


def test_a_group_with_an_unreadable_picture_has_no_score(tmp_path):
    pictures = draw(tmp_path / "p", range(4))
    pictures[1].path.write_bytes(b"")
    groups = [pictures[:2], pictures[2:]]
    ledger, scorer = Ledger(tmp_path / "s"), Spread()
    assert (score_groups(groups, [scorer], ledger).made) == 1
    assert "001.png" in read_groups(ledger, groups, [scorer])[0, "spread"].reason


def test_single_and_group_scorers_are_not_mixed_up(tmp_path):
    with pytest.raises(InputError, match="score_groups"):
        score_pictures([], [Spread()], Ledger(tmp_path))
    with pytest.raises(InputError, match="score_pictures"):
        score_groups([], [Red()], Ledger(tmp_path))


def score_in_a_process(folder, out, log):
    pictures = [Picture(path, None, "ab") for path in sorted(folder.glob("*.png"))]
    scorer = Red()
    with Ledger(out) as ledger:
        score_pictures(pictures, [scorer], ledger, batch=2)
    log.put(sum(scorer.calls))


def test_two_processes_share_the_work_and_score_nothing_twice(tmp_path):
    pictures = draw(tmp_path / "p", range(40))
    context = multiprocessing.get_context("fork")
    log = context.Queue()
    workers = [
        context.Process(target=score_in_a_process, args=(tmp_path / "p", tmp_path / "s", log))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    assert sum(log.get(timeout=60) for _ in workers) == 40
    for worker in workers:
        worker.join()
    assert None not in scores(Ledger(tmp_path / "s"), pictures, Red())


def test_the_hash_is_that_of_the_file(tmp_path):
    [picture] = hashed(draw(tmp_path / "p", [3]))
    assert picture.sha256 == hashlib.sha256(picture.path.read_bytes()).hexdigest()
