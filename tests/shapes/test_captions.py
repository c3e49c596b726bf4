from __future__ import annotations

import itertools

import numpy as np
import pytest

from w2sdiff.errors import InputError
from w2sdiff.shapes.captions import SLOT_SIZES, VOCABULARY, Caption, Demand, parse
from w2sdiff.shapes.world import (
    CATEGORIES,
    COLOURS,
    COUNTS,
    RELATIONS,
    SHAPES,
    completions,
    evaluation_captions,
    is_held_out,
    open_captions,
    sample_caption,
)

KINDS = tuple(itertools.product(SHAPES, COLOURS))


def every_caption() -> list[Caption]:
    """All captions of the world, by enumeration instead of by sampling."""
    demands = [Demand(s, c) for s in (*SHAPES, None) for c in (*COLOURS, None)]
    pairs = [(a, b) for a in demands for b in demands if a.excludes(b)]
    return (
        [Caption("single", (d,)) for d in demands]
        + [Caption("counting", (d,) * n) for d in demands for n in COUNTS.values()]
        + [Caption("colours", pair) for pair in pairs]
        + [Caption("position", pair, relation) for pair in pairs for relation in RELATIONS]
    )


def test_parse_is_the_inverse_of_text_for_every_caption_of_the_world():
    captions = every_caption()
    assert len({c.text for c in captions}) == len(captions)
    for caption in captions:
        assert parse(caption.text) == caption
        assert set(caption.text.split()) <= set(VOCABULARY)


def test_the_vocabulary_is_small_and_every_word_is_used():
    words = {word for caption in every_caption() for word in caption.text.split()}
    assert words == set(VOCABULARY)
    assert len(VOCABULARY) == len(set(VOCABULARY)) <= 40


def test_a_vague_caption_is_open_and_admits_whatever_the_caption_admits():
    for caption in every_caption():
        vague = parse(caption.vague.text)
        assert vague == caption.vague
        assert vague.is_open
        assert (vague.category, vague.relation) == (caption.category, caption.relation)
        assert len(vague.demands) == len(caption.demands)
        for loose, strict in zip(vague.demands, caption.demands, strict=True):
            assert all(loose.admits(kind) for kind in KINDS if strict.admits(kind))
    assert parse("a red circle and a blue circle").vague.text == "a red shape and a blue shape"
    assert parse("two red circles").vague.text == "two circles"


def test_slots_tell_captions_apart_and_stay_within_their_sizes():
    captions = every_caption()
    slots = [c.slots for c in captions]
    assert len(set(slots)) == len(captions)
    assert (np.array(slots) >= 0).all()
    assert (np.array(slots) < np.array(SLOT_SIZES)).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a purple circle", "no word 'purple'"),
        ("", "cannot read|expected"),
        ("red circle", "expected 'a'"),
        ("two red circle", "two red circles"),
        ("a circles", "a red circle"),
        ("a red", "a red circle"),
        ("a red blue circle", "cannot read"),
        ("a red circle and a circle", "one object could answer both"),
        ("a red circle left of a red circle", "one object could answer both"),
        ("a red circle left of a blue square above a green cross", "cannot read"),
    ],
)
def test_what_is_no_caption_is_refused_in_words(text, message):
    with pytest.raises(InputError, match=message):
        parse(text)


def test_captions_are_read_in_any_case_and_with_a_full_stop():
    assert parse("  A red Circle. ") == parse("a red circle")


def test_a_tenth_of_pairs_and_a_twelfth_of_counts_are_held_out_and_no_single_object():
    pairs = list(itertools.combinations(KINDS, 2))
    assert 0.08 <= np.mean([is_held_out(p) for p in pairs]) <= 0.12
    assert all(is_held_out(p) == is_held_out(p[::-1]) for p in pairs)
    counted = [(kind,) * n for kind in KINDS for n in COUNTS.values()]
    assert sum(is_held_out(c) for c in counted) * 12 == len(counted)
    assert not any(is_held_out((kind,)) for kind in KINDS)


def test_every_kind_is_seen_in_pairs_and_counted():
    for kind in KINDS:
        assert any(not is_held_out((kind, other)) for other in KINDS if other != kind)
        assert any(not is_held_out((kind,) * n) for n in COUNTS.values())


def test_completions_answer_the_caption_and_are_held_out_only_by_name():
    for caption in every_caption():
        options = completions(caption)
        assert len(set(options)) == len(options) > 0
        for kinds in options:
            assert all(d.admits(k) for d, k in zip(caption.demands, kinds, strict=True))
            assert not is_held_out(kinds) or (len(options) == 1 and not caption.is_open)


def test_open_single_captions_have_a_uniform_truth():
    assert [len(completions(c)) for c in open_captions("colour")] == [len(COLOURS)] * len(SHAPES)
    assert [len(completions(c)) for c in open_captions("shape")] == [len(SHAPES)] * len(COLOURS)
    assert len(open_captions("colour", "counting")) == len(SHAPES) * len(COUNTS)
    with pytest.raises(InputError, match="leave is"):
        open_captions("size")


def test_sampled_captions_cover_the_categories_evenly_and_are_open_as_often_as_asked():
    rng = np.random.default_rng(0)
    captions = [sample_caption(rng, open_share=0.3) for _ in range(2000)]
    for category in CATEGORIES:
        assert abs(sum(c.category == category for c in captions) / 2000 - 0.25) < 0.04
    single = [c.demands[0] for c in captions if c.category == "single"]
    assert abs(np.mean([d.colour is None for d in single]) - 0.3) < 0.08
    assert not any(sample_caption(rng, open_share=0).is_open for _ in range(100))


@pytest.mark.parametrize("category", CATEGORIES[1:])
def test_held_out_captions_are_drawn_on_request_only(category):
    rng = np.random.default_rng(0)
    for _ in range(100):
        held_out = sample_caption(rng, held_out=True, category=category)
        assert held_out.category == category
        assert [is_held_out(k) for k in completions(held_out)] == [True]


def test_colour_weights_steer_the_colours_that_are_named():
    rng = np.random.default_rng(0)
    weights = {"red": 0.0, "blue": 5.0}
    named = [
        sample_caption(rng, category="single", open_share=0, colour_weights=weights)
        for _ in range(1000)
    ]
    shares = {c: np.mean([n.demands[0].colour == c for n in named]) for c in COLOURS}
    assert shares["red"] == 0
    assert abs(shares["blue"] - 5 / 9) < 0.06
    for bad in ({"mauve": 1.0}, {"red": -1.0}, dict.fromkeys(COLOURS, 0.0)):
        with pytest.raises(InputError, match="colour"):
            sample_caption(rng, colour_weights=bad)


def test_captions_that_cannot_be_drawn_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="unknown category"):
        sample_caption(rng, category="texture")
    with pytest.raises(InputError, match="held out"):
        sample_caption(rng, held_out=True, category="single")


def test_evaluation_captions_are_fixed_balanced_fully_specified_and_partly_held_out():
    captions = evaluation_captions(400, held_out_fraction=0.25)
    assert captions == evaluation_captions(400, held_out_fraction=0.25)
    assert captions[:100] == evaluation_captions(100, held_out_fraction=0.25)
    assert captions != evaluation_captions(400, seed=1, held_out_fraction=0.25)
    assert not any(c.is_open for c in captions)
    for category in CATEGORIES:
        mine = [c for c in captions if c.category == category]
        held_out = [c for c in mine if is_held_out(completions(c)[0])]
        assert len(mine) == 100
        assert len(held_out) == (0 if category == "single" else 25)
    assert not any(is_held_out(completions(c)[0]) for c in evaluation_captions(80, 0, 0.0))
