"""Which pictures there are to make: prefixes, shards, shared pictures, seeds."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_folders import model_folder

from w2sdiff import Plain, Prompt, ZigZag
from w2sdiff.bench.plan.design import Design, candidate_seed
from w2sdiff.bench.plan.drawings import Drawings, Shard
from w2sdiff.bench.plan.experiment import Arm
from w2sdiff.errors import InputError
from w2sdiff.generate import Settings, find_model
from w2sdiff.prompts import PromptRow, PromptSet, index_seed, seed_of

SETTINGS = Settings(steps=2, guidance=3.0, device="cpu", dtype="float32")


def rows(count):
    return tuple(PromptRow(f"p{i}", f"prompt {i}") for i in range(count))


def design(count=7, **options):
    prompts = PromptSet("made-up", rows(count), "0" * 64, "a test", "", 10)
    return Design.of(prompts, **{"batch": 2, **options})


@pytest.fixture(scope="module")
def arms():
    model = find_model(str(model_folder("sd")))
    return (Arm("plain", Plain(), model, SETTINGS), Arm("zigzag", ZigZag(), model, SETTINGS))


def keys(drawings):
    return [item.key for task in drawings for item in task.items]


def test_every_arm_prompt_and_replicate_is_one_picture(arms):
    drawings = Drawings(arms, design(replicates=3))
    assert len(set(keys(drawings))) == len(keys(drawings)) == drawings.pictures == 2 * 7 * 3
    assert len(drawings) == 2 * 3 * 4


def test_more_prompts_replicates_and_arms_repeat_nothing(arms):
    few = set(keys(Drawings(arms[:1], design(4))))
    assert few < set(keys(Drawings(arms, design(6, replicates=2))))


def test_a_limit_is_a_prefix_in_whole_batches(arms):
    assert keys(Drawings(arms[:1], design(4))) == keys(Drawings(arms[:1], design(7)))[:4]


@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_the_shards_are_the_whole_and_share_nothing(arms, count):
    whole = keys(Drawings(arms, design(replicates=2)))
    parts = [
        keys(Drawings(arms, design(replicates=2), Shard(i, count))) for i in range(1, count + 1)
    ]
    assert sorted(key for part in parts for key in part) == sorted(whole)


@pytest.mark.parametrize("text", ["0/2", "3/2", "a/b", "1", "1/0", "-1/2", ""])
def test_a_shard_that_is_none(text):
    with pytest.raises(InputError, match="shard"):
        Shard.parse(text)


def test_best_of_n_shares_its_first_picture_with_the_plain_arm(arms):
    best = dataclasses.replace(arms[0], name="best", candidates=3, select="sharpness")
    alone, both = Drawings([best], design()), Drawings([arms[0], best], design())
    assert alone.pictures == both.pictures == 3 * 7
    assert set(keys(Drawings(arms[:1], design()))) < set(keys(alone))
    assert len({shot.seed for task in alone for shot in task.shots}) == 3 * 7


def test_every_arm_starts_from_the_same_seeds(arms):
    seeds = {}
    for task in Drawings(arms, design(replicates=2)):
        seeds.setdefault(task.arm.name, []).extend(shot.seed for shot in task.shots)
    assert seeds["plain"] == seeds["zigzag"]
    assert len(set(seeds["plain"])) == 14


def test_seeds_are_those_of_the_prompt_or_of_its_number():
    assert design().seed(3, 1) == seed_of("made-up", "p3", 1)
    assert design(seeds="index").seed(3, 2) == index_seed(3, 2, 10) == 23


def test_a_column_that_is_not_there_is_said_before_anything_is_drawn(arms):
    wants = dataclasses.replace(arms[0], method=Plain(base=Prompt("@style")))
    with pytest.raises(InputError, match=r"column 'style'.*p0"):
        Drawings([wants], design())


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 3))
def test_places_and_batches_agree(count, batch, replicates):
    made = dataclasses.replace(design(), rows=rows(count), batch=batch, replicates=replicates)
    cells = [cell for number in range(made.groups) for cell in made.group(number)]
    assert sorted(cells) == made.cells
    assert Design.from_json(made.to_json()) == made


@given(st.integers(0, 2**63 - 1), st.integers(0, 100))
def test_candidate_seeds_fit_a_generator(seed, candidate):
    assert 0 <= candidate_seed(seed, candidate) < 2**63
    assert (candidate_seed(seed, candidate) == seed) == (candidate == 0)
