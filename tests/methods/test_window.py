"""Which steps are in a window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2sdiff import InputError, Window


def steps(window, n):
    return [i for i in range(n) if window.contains(i, n)]


def test_default_is_every_step_but_the_last():
    assert steps(Window(), 5) == [0, 1, 2, 3]
    assert steps(Window(), 1) == []
    assert steps(Window(last=True), 3) == [0, 1, 2]


@pytest.mark.parametrize("n", [1, 2, 10, 50])
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_a_window_without_width_is_empty(at, n):
    assert steps(Window(at, at), n) == []
    assert steps(Window(at, at, last=True), n) == []


def test_fractions():
    assert steps(Window(0.0, 0.5), 10) == [0, 1, 2, 3, 4]
    assert steps(Window(0.5, 1.0), 10) == [5, 6, 7, 8]
    assert steps(Window(0.3, 0.6), 10) == [3, 4, 5]  # 0.3 * 10 and 0.6 * 10 are not exact in binary
    assert steps(Window(0.07, 0.14), 100) == list(range(7, 14))


def test_explicit_steps():
    assert steps(Window(steps=(1, 4)), 5) == [1, 4]
    assert steps(Window(steps=[1, 4]), 3) == [1]


def test_predicate():
    assert steps(Window(when=lambda i, n: i % 2 == 0 and i < n - 1), 5) == [0, 2]


fraction = st.floats(0, 1)


@given(fraction, fraction, fraction, st.integers(1, 200))
def test_neighbouring_windows_share_the_run_without_gap_or_overlap(a, b, c, n):
    a, b, c = sorted((a, b, c))
    parts = steps(Window(a, b, last=True), n) + steps(Window(b, c, last=True), n)
    assert parts == steps(Window(a, c, last=True), n)


@given(fraction, fraction, st.integers(1, 200), st.booleans())
def test_count_is_the_number_of_steps(a, b, n, last):
    window = Window(min(a, b), max(a, b), last)
    assert window.count(n) == len(steps(window, n))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), "half", None])
@pytest.mark.parametrize("name", ["start", "stop"])
def test_outside_the_run_is_an_error(name, value):
    with pytest.raises(InputError, match=rf"(?s){name}.*0, 1"):
        Window(**{name: value})


def test_start_after_stop_is_an_error():
    with pytest.raises(InputError, match="after"):
        Window(0.6, 0.4)


def test_two_ways_at_once_are_an_error():
    with pytest.raises(InputError, match="not by two of them"):
        Window(steps=(1,), when=lambda *_: True)
    with pytest.raises(InputError, match="not by two of them"):
        Window(0.2, 0.4, steps=(1,))


@pytest.mark.parametrize("bad", [(-1,), (1.5,), ("a",)])
def test_steps_are_numbers_from_zero(bad):
    with pytest.raises(InputError, match="from 0"):
        Window(steps=bad)
