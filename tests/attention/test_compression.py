"""`KVCompression` as a value: layers, ratios, schedules, JSON, and what it refuses."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2sdiff import InputError
from w2sdiff.attention import KINDS, KVCompression, Schedule
from w2sdiff.attention.text import parse_layers, parse_ratio

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
    "layers",
    [
        [3, 1, 1, 2],
        range(1, 4),
        (1, 2, 3),
        "1-3",
        "1+2-3",
        iter([2, 3, 1]),
        {1, 2, 3},
        range(3, 0, -1),
    ],
)
def test_indices_in_every_form_are_one_value(layers):
    assert KVCompression(layers=layers) == KVCompression(layers=(1, 2, 3))


def test_no_layer_is_said_by_nothing():
    for layers in ((), [], range(0), range(28, 28)):
        assert KVCompression(layers=layers).layers_of(28) == ()


def test_ratios_by_layer_in_every_form_are_one_value():
    expected = KVCompression("average", 2, range(4), ((1, 4), (3, (1, 2))))
    for per_layer in ({3: [1, 2], 1: 4}, [[3, [1, 2]], [1, (4, 4)]], {"1": 4, "3": (1, 2)}):
        assert KVCompression("average", 2, range(4), per_layer) == expected


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
        (lambda: KVCompression(layers="20-10"), "20-10 go downwards; write 10-20"),
        (lambda: KVCompression(layers="0+5-3"), "5-3 go downwards; write 3-5"),
        (lambda: KVCompression(layers=range(20, 10)), r"no layer.* range\(10, 20\)"),
        (lambda: KVCompression(layers=range(10, 20, -1)), r"no layer.* range\(10, 20\)"),
        (lambda: KVCompression(layers=[28]).layers_of(28), "no layer 28"),
        (lambda: KVCompression(layers="26-28").layers_of(28), "no layer 28"),
        (lambda: KVCompression(layers=[0], per_layer={1: 2}).layers_of(2), "layers="),
        (lambda: KVCompression(per_layer=3), "per_layer= takes ratios by layer"),
        (lambda: KVCompression(per_layer=[1, 2]), "per_layer= takes ratios by layer"),
        (lambda: KVCompression(per_layer={"one": 2}), "index"),
        (lambda: KVCompression(per_layer={1: 0}), "1 or more"),
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


# ---- in words


@pytest.mark.parametrize(
    ("text", "ratio"),
    [
        ("2", 2),
        ("2x1", (2, 1)),
        ("0.5/2", Schedule({0.5: 2})),
        ("0.6/2+0.85/4x2", Schedule({0.6: 2, 0.85: (4, 2)})),
        ("0/1+.5/2", Schedule({0.0: 1, 0.5: 2})),
    ],
)
def test_ratios_in_words(text, ratio):
    assert parse_ratio(text) == ratio


@pytest.mark.parametrize(
    ("text", "layers", "per_layer"),
    [
        ("deep", "deep", {}),
        ("14-27", range(14, 28), {}),
        ("14-20+21-27/4", range(14, 28), dict.fromkeys(range(21, 28), 4)),
        ("3/2x1+1", (1, 3), {3: (2, 1)}),
        ("all+0/1+27/4", "all", {0: 1, 27: 4}),
    ],
)
def test_layers_in_words(text, layers, per_layer):
    place, own = parse_layers(text)
    expected = KVCompression("average", 2, layers, per_layer)
    assert KVCompression("average", 2, place, own) == expected


@pytest.mark.parametrize(
    ("parse", "text", "says"),
    [
        (parse_ratio, "much", "whole numbers"),
        (parse_ratio, "2x2x2", "two of them"),
        (parse_ratio, "0.5/2+4", "LEVEL/R"),
        (parse_ratio, "high/2", "LEVEL/R"),
        (parse_ratio, "0.5/", "whole numbers"),
        (parse_ratio, "1.5/2", r"\[0, 1\]"),
        (parse_layers, "27-20/4", "write 20-27"),
        (parse_layers, "deep/4", "by index"),
        (parse_layers, "1/0.5", "whole numbers"),
    ],
)
def test_words_that_mean_nothing(parse, text, says):
    with pytest.raises(InputError, match=says):
        parse(text)
