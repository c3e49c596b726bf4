"""`KVCompression` as a value: layers, ratios, schedules, JSON, and what it refuses."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2sdiff import InputError
from w2sdiff.attention import KINDS, KVCompression, Schedule

sizes = st.integers(1, 8)
ratios = st.one_of(
    sizes,
    st.tuples(sizes, sizes),
    st.dictionaries(st.floats(0, 1), st.one_of(sizes, st.tuples(sizes, sizes)), min_size=1).map(
        Schedule
    ),
)


def test_names_are_the_published_layers_of_pixart_sigma():
    published = {"all": (0, 27), "deep": (14, 27), "middle": (7, 20), "shallow": (1, 14)}
    for name, (first, last) in published.items():
        assert KVCompression(layers=name).layers_of(28) == tuple(range(first, last + 1))


@pytest.mark.parametrize("count", range(1, 40))
def test_named_layers_exist_and_are_half_of_them(count):
    for name in ("deep", "middle", "shallow"):
        layers = KVCompression(layers=name).layers_of(count)
        assert len(layers) == max(1, count // 2)
        assert set(layers) <= set(range(count))


@pytest.mark.parametrize(
    "layers", [[3, 1, 1, 2], range(1, 4), (1, 2, 3), "1-3", "1+2-3", iter([2, 3, 1]), {1, 2, 3}]
)
def test_indices_in_every_form_are_one_value(layers):
    assert KVCompression(layers=layers) == KVCompression(layers=(1, 2, 3))


def test_kinds_are_the_five_with_a_summary_each():
    assert set(KINDS) == {"average", "conv", "nearest", "uniform", "uniform_every"}
    for name in KINDS:
        assert KINDS.summary(name).startswith(name)


@given(ratios, st.dictionaries(st.integers(0, 5), ratios))
def test_json_round_trip(ratio, per_layer):
    value = KVCompression("average", ratio, range(6), per_layer)
    again = KVCompression.from_json(json.loads(json.dumps(value.to_json())))
    assert again == value
    assert hash(again) == hash(value)


def test_equal_axes_are_one_number():
    assert KVCompression(ratio=(2, 2)) == KVCompression(ratio=2) == KVCompression(ratio=[2, 2])
    assert KVCompression("average", ratio=(1, 2)).at(0, None) == (1, 2)


def test_a_ratio_may_depend_on_layer_and_noise():
    value = KVCompression(
        "average", ratio=Schedule({0.8: 4, 0.5: 2}), layers="all", per_layer={0: 1, 3: (1, 2)}
    )
    levels = (0.0, 0.49, 0.5, 0.79, 0.8, 1.0)
    assert [value.at(1, level) for level in levels] == [
        *((1, 1), (1, 1)),
        *((2, 2), (2, 2)),
        *((4, 4), (4, 4)),
    ]
    assert value.at(0, 1.0) == (1, 1)
    assert value.at(3, 1.0) == (1, 2)
    assert value.follows_noise
    with pytest.raises(InputError, match="noise level"):
        value.at(1, None)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: KVCompression("konv"), "Did you mean 'conv'"),
        (lambda: KVCompression(ratio=0), "1 or more"),
        (lambda: KVCompression(ratio=-2), "1 or more"),
        (lambda: KVCompression(ratio=1.5), "whole number"),
        (lambda: KVCompression(ratio=True), "whole number"),
        (lambda: KVCompression(ratio=(2, 0)), "1 or more"),
        (lambda: KVCompression(ratio=(2, 2, 2)), "two of them"),
        (lambda: KVCompression(ratio="2"), "whole number"),
        (lambda: KVCompression(layers="deeep"), "Did you mean 'deep'"),
        (lambda: KVCompression(layers="1-"), "14-27"),
        (lambda: KVCompression(layers=[-1]), "index"),
        (lambda: KVCompression(layers=[0.5]), "index"),
        (lambda: KVCompression(layers=3), "indices"),
        (lambda: KVCompression(layers=[28]).layers_of(28), "no layer 28"),
        (lambda: KVCompression(layers="26-28").layers_of(28), "no layer 28"),
        (lambda: KVCompression(layers=[0], per_layer={1: 2}).layers_of(2), "layers="),
        (lambda: KVCompression("uniform_every", ratio=(2, 1)), "uniform"),
        (lambda: KVCompression("conv", ratio=Schedule({0.0: 2, 0.5: 4})), "one kernel"),
        (lambda: KVCompression.from_json({"kind": "conv", "ration": 2}), "ration"),
        (lambda: Schedule({}), "steps"),
        (lambda: Schedule({1.5: 2}), r"\[0, 1\]"),
        (lambda: Schedule(((0.5, 2), (0.5, 4))), "one per level"),
        (lambda: Schedule({0.5: 0}), "1 or more"),
        (lambda: Schedule({"high": 2}), "pairs"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(make, says):
    with pytest.raises(InputError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


def test_conv_may_be_off_at_some_levels():
    value = KVCompression("conv", ratio=Schedule({0.0: 1, 0.5: 2}))
    assert value.at(14, 0.4) == (1, 1)
    assert value.at(14, 0.6) == (2, 2)
