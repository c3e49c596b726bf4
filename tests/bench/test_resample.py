"""Intervals and p values: theory, independent implementations, and simulated error rates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from w2sdiff.bench.stats.resample import _on_grid, bootstrap_intervals, sign_flip_p, smallest_p

RNG = np.random.default_rng


def test_one_prompt_has_no_interval_and_proves_nothing():
    assert np.isnan(bootstrap_intervals([np.array([3.0])])).all()
    assert sign_flip_p([np.array([3.0]), np.array([])]) == [1.0, 1.0]


def test_two_prompts():
    low, high = bootstrap_intervals([np.array([1.0, 3.0])])[0]
    assert (low, high) == (1.0, 3.0)  # each end is a quarter of the resamples
    assert sign_flip_p([np.array([1.0, 3.0])]) == [0.5]


def test_equal_arms_differ_by_nothing():
    assert bootstrap_intervals([np.zeros(30)]) == [(0.0, 0.0)]
    assert sign_flip_p([np.zeros(n) for n in (3, 12, 13, 200)]) == [1.0] * 4


@pytest.mark.parametrize("n", [2, 5, 12])
def test_small_samples_are_enumerated(n):
    row = RNG(n).normal(0.5, 1, n)
    means = [np.mean(row * signs) for signs in itertools.product([-1, 1], repeat=n)]
    expected = np.mean(np.abs(means) >= abs(row.mean()) - 1e-12)
    assert sign_flip_p([row]) == [expected]
    peer = scipy.stats.permutation_test(
        (row,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p([row])[0] == pytest.approx(peer.pvalue)


def test_ties_of_sums_are_counted_exactly():
    # 0.1 + 0.2 is not 0.3 in binary, and scores are float32: what is a tie on paper must be one.
    whole = np.array([3, 3, -1.0, 2] * 3)
    expected = sign_flip_p([whole])
    assert sign_flip_p([whole * 0.1]) == expected
    assert sign_flip_p([(whole / 7).astype(np.float32).astype(float)]) == expected
    assert sign_flip_p([np.array([0.1, 0.2, 0.3])]) == [0.25]


def test_drawn_p_is_close_to_the_exact_one():
    row = RNG(1).normal(0.3, 1, 16)
    means = np.abs(np.array(list(itertools.product([-1, 1], repeat=16))) @ row)
    exact = np.mean(means >= abs(row.sum()) - 1e-9)
    assert 0.005 < exact < 0.2
    assert sign_flip_p([row])[0] == pytest.approx(exact, abs=4 * np.sqrt(exact / 10_000))


def test_drawn_p_is_never_zero():
    assert sign_flip_p([np.ones(500)], draws=99) == [0.01]
    assert smallest_p(500, 99) == 0.01
    assert smallest_p(12, 99) == sign_flip_p([np.ones(12)])[0]


@pytest.mark.parametrize("n", [15, 100])
def test_intervals_agree_with_scipy(n):
    row = RNG(n).exponential(1, n)
    peer = scipy.stats.bootstrap(
        (row,), np.mean, n_resamples=10_000, method="percentile", rng=RNG(0)
    ).confidence_interval
    ours = bootstrap_intervals([row])[0]
    assert ours == pytest.approx(tuple(peer), abs=0.05 * row.std() / np.sqrt(n))


def test_rows_of_one_length_share_their_resamples_whatever_stands_beside_them():
    rows = [RNG(i).normal(size=n) for i, n in enumerate([30, 7, 30, 300, 7])]
    together = bootstrap_intervals(rows)
    assert together == [bootstrap_intervals([row])[0] for row in rows]
    assert sign_flip_p(rows) == [sign_flip_p([row])[0] for row in rows]
    (low, high), (low2, high2) = bootstrap_intervals([rows[0], 2 * rows[0]])
    assert (low2, high2) == (2 * low, 2 * high)


def test_many_rows_go_through_in_parts():
    rows = [RNG(0).normal(size=20) + i for i in range(300)]
    intervals = bootstrap_intervals(rows, draws=200)
    assert intervals[299] == bootstrap_intervals(rows[299:], draws=200)[0]


def test_the_order_of_additions_does_not_matter():
    row = RNG(0).lognormal(0, 3, 999)
    signs = 1 - 2 * RNG(1).integers(0, 2, (50, 999)).astype(float)
    grid = _on_grid(row[:, None])[:, 0]
    np.testing.assert_allclose(grid, row, rtol=0, atol=row.max() * 2**-42)
    order = RNG(2).permutation(999)
    assert (np.cumsum(signs * grid, axis=1)[:, -1] == (signs[:, order] @ grid[order])).all()


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=9), st.integers(-200, 200))
def test_sign_flips_are_symmetric_and_know_no_unit(numbers, power):
    row = np.array(numbers)
    p = sign_flip_p([row])[0]
    assert 0 < p <= 1
    assert sign_flip_p([-row, row[::-1]]) == [p, p]
    scaled = row / max(1.0, np.abs(row).max()) * 2.0**power
    assert sign_flip_p([scaled])[0] == sign_flip_p([scaled * 2.0**-power])[0]


DRAWS = {
    "normal": lambda rng, shape: rng.normal(1.0, 1.0, shape),
    "skewed": lambda rng, shape: rng.exponential(1.0, shape),
}

# Share of 95% intervals that hold the truth, from 20,000 simulations each. The percentile bootstrap
# is a little too narrow for few prompts, more so if a few of them decide the mean (Hesterberg 2015,
# arXiv 1411.5279, section 4): pinned here, so that nobody promises more. At 10: 0.90 and 0.86.
COVERAGE = {("normal", 30): 0.932, ("normal", 200): 0.946, ("skewed", 30): 0.916}
COVERAGE |= {("skewed", 200): 0.941}


@pytest.mark.parametrize(("kind", "n"), COVERAGE)
def test_coverage_of_the_intervals(kind, n):
    runs = 2000
    rows = DRAWS[kind](RNG(n), (runs, n))
    intervals = np.array(bootstrap_intervals(list(rows), draws=1000))
    held = np.mean((intervals[:, 0] <= 1.0) & (intervals[:, 1] >= 1.0))
    expected = COVERAGE[kind, n]
    error = 3 * np.sqrt(expected * (1 - expected) / runs)  # binomial
    assert held == pytest.approx(expected, abs=error)
    if n == 200:
        assert held >= 0.95 - error


@pytest.mark.parametrize("n", [8, 30, 200])
def test_p_is_uniform_where_there_is_no_difference(n):
    runs = 2000
    p = np.array(sign_flip_p(list(RNG(n).normal(size=(runs, n))), draws=999))
    for level in (0.05, 0.2, 0.5):
        share = np.floor(level * 2 ** (n - 1)) / 2 ** (n - 1) if n <= 12 else level
        assert np.mean(p <= level) == pytest.approx(
            share, abs=2.6 * np.sqrt(level * (1 - level) / runs)
        )
