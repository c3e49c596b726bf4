"""Plans: what is an item, what is a batch, and what counts for its key."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_folders import model_folder

from w2sdiff import Guidance, Plain, ZigZag
from w2sdiff.errors import InputError
from w2sdiff.generate import Arm, Plan, Settings, find_model
from w2sdiff.generate.plan import slug
from w2sdiff.prompts import PromptRow

SETTINGS = Settings(steps=4, guidance=3.0, device="cpu", dtype="float32")


def rows(*texts):
    return tuple(PromptRow(str(i), text) for i, text in enumerate(texts, 1))


@pytest.fixture(scope="module")
def plan():
    model = find_model(str(model_folder("sd")))
    arms = (Arm("plain", Plain()), Arm("zigzag", ZigZag()))
    return Plan(model, SETTINGS, arms, rows("a", "b", "c"), (0, 1))


def keys(plan):
    return [item.key for task, _ in plan.batches for item in task.items]


def test_every_prompt_seed_and_arm_is_one_item(plan):
    assert len(set(keys(plan))) == len(plan.pictures) == 3 * 2 * 2
    assert plan.evaluations == 6 * Plain().cost(4, 3.0) + 6 * ZigZag().cost(4, 3.0)


def test_the_method_comes_first_so_that_it_fails_before_anything_is_written(plan):
    assert [pictures[0].arm.label for _, pictures in plan.batches] == ["zigzag"] * 6 + ["plain"] * 6


def test_a_prompt_that_is_there_twice_is_drawn_once(plan):
    twice = dataclasses.replace(plan, rows=rows("a", "b", "a"))
    assert len(twice.pictures) == 2 * 2 * 2


def test_what_is_drawn_once_stands_in_every_place_of_a_sheet(plan):
    same = (Arm("weak", Plain()), Arm("strong", Plain()))
    twice = dataclasses.replace(plan, rows=rows("a", "b", "a"), arms=same)
    assert len(twice.pictures) == 2 * 2
    assert len(twice.keys) == 2 * 3 * 2
    assert twice.keys["weak", 0, 1] == twice.keys["strong", 2, 1]


def test_ids_and_labels_and_unused_columns_do_not_count(plan):
    other = tuple(PromptRow(f"x{row.id}", row.text, {"note": "hm"}) for row in plan.rows)
    renamed = (Arm("strong", Plain()), plan.arms[1])
    assert keys(dataclasses.replace(plan, rows=other, arms=renamed)) == keys(plan)


def test_groups_are_part_of_the_key(plan):
    batched = dataclasses.replace(plan, batch=4)
    assert [len(task.items) for task, _ in batched.batches] == [4, 2, 4, 2]
    assert not set(keys(batched)) & set(keys(plan))
    reordered = dataclasses.replace(batched, rows=tuple(reversed(plan.rows)))
    assert not set(keys(batched)) & set(keys(reordered))
    single = dataclasses.replace(plan, batch=1, rows=plan.rows[:1])
    assert set(keys(single)) <= set(keys(plan))


def test_the_same_method_built_otherwise_has_the_same_key(plan):
    spelled_out = (plan.arms[0], Arm("zigzag", ZigZag(weak=Guidance(0))))
    assert keys(dataclasses.replace(plan, arms=spelled_out)) == keys(plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": ()}, "no prompts"),
        ({"seeds": ()}, "count"),
        ({"seeds": (-1,)}, "seeds from 0"),
        ({"seeds": (2**63,)}, "seeds from 0"),
        ({"batch": 0}, "batch"),
    ],
)
def test_what_cannot_be_planned(plan, change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(plan, **change)


@given(st.text())
def test_any_prompt_makes_a_plain_file_name(text):
    name = slug(text)
    assert len(name) <= 48
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@given(
    st.builds(
        Settings,
        steps=st.integers(1, 1000),
        guidance=st.floats(-50, 50),
        negative=st.none() | st.text(),
        size=st.none() | st.tuples(*[st.integers(1, 64).map(lambda n: 8 * n)] * 2),
        scheduler=st.none() | st.sampled_from(["ddim", "euler"]),
        offload=st.sampled_from(["none", "model"]),
        compile=st.booleans(),
    )
)
def test_settings_are_read_back_as_they_were(settings):
    assert Settings.from_json(settings.to_json()) == settings
    elsewhere = dataclasses.replace(settings, device="cuda:1", offload="group")
    assert elsewhere.decides() == dataclasses.replace(settings, device="cuda:0").decides()
