"""An altered caption differs in one thing, and no picture obeys both."""

from __future__ import annotations

import numpy as np
import pytest

from w2sdiff.errors import InputError
from w2sdiff.shapes.alter import ALTERATIONS, alter
from w2sdiff.shapes.captions import parse
from w2sdiff.shapes.oracle import judge_all
from w2sdiff.shapes.world import CATEGORIES, evaluation_captions, render, sample_scene

APPLIES = {
    "colour": set(CATEGORIES),
    "shape": set(CATEGORIES),
    "count": set(CATEGORIES),
    "relation": {"position"},
    "swap": {"colours", "position"},
}


@pytest.mark.parametrize("kind", ALTERATIONS)
def test_no_picture_obeys_both(kind):
    rng = np.random.default_rng(0)
    captions = evaluation_captions(160, seed=3)
    pairs = [(c, other) for c in captions if (other := alter(c, kind, rng)) is not None]
    assert {c.category for c, _ in pairs} == APPLIES[kind]
    pictures = render([sample_scene(caption, rng) for caption, _ in pairs])
    assert all(v.obeyed for v in judge_all(pictures, [c for c, _ in pairs]))
    assert not any(v.obeyed for v in judge_all(pictures, [other for _, other in pairs]))
    for caption, other in pairs:
        assert parse(other.text) == other != caption


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a circle", "colour"),
        ("a red shape", "shape"),
        ("two red circles", "swap"),
        ("a red circle and a blue circle", "swap"),  # the same picture in other words
        ("a red circle above a red square", "swap"),
        ("a red circle and a square", "swap"),
        ("a red circle and a blue square", "relation"),
    ],
)
def test_none_where_there_is_nothing_to_alter(text, kind):
    assert alter(parse(text), kind, np.random.default_rng(0)) is None


def test_swapping_equal_shapes_turns_the_relation_round():
    caption = parse("a red circle above a blue circle")
    other = alter(caption, "swap", np.random.default_rng(0))
    assert other is not None
    assert other.text == "a blue circle above a red circle"


def test_unknown_alterations_are_refused():
    with pytest.raises(InputError, match="unknown alteration 'size'"):
        alter(parse("a circle"), "size", np.random.default_rng(0))
