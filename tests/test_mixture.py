"""W2SD and AutoGuidance where the truth is known: closed-form mixtures, no network."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from w2sdiff import W2SD, AutoGuidance, Plain
from w2sdiff.drivers.function import drive
from w2sdiff.errors import InputError
from w2sdiff.levels import Levels
from w2sdiff.mixture import (
    Mixture,
    Trial,
    eight_modes,
    missing_region,
    sliced_wasserstein,
    total_variation,
    two_peaks,
)

TRIALS = [two_peaks, eight_modes, missing_region]


def start(trial: Trial, n: int = 1000):
    shape = n, trial.truth.means.shape[1]
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def run(trial: Trial, method, steps: int = 50, roles=None, n: int = 1000):
    levels = Levels.flow(steps)
    return drive(method, roles or trial.networks(levels), start(trial, n), levels)


def off(trial: Trial, x):
    return total_variation(trial.truth.masses(x), trial.truth.weights)


def only(mixture: Mixture, steps: int = 50):
    """Every role played by one model."""
    return dict.fromkeys(("strong", "weak", "base"), mixture.network(Levels.flow(steps)))


def reversed_pair(trial: Trial, steps: int = 50):
    roles = trial.networks(Levels.flow(steps))
    return {"strong": roles["weak"], "weak": roles["strong"], "base": roles["base"]}


# -- the closed form itself


@given(
    st.floats(0.05, 1.0), st.floats(0.05, 3.0), st.integers(0, 2**16), st.sampled_from([1, 2, 3])
)
@settings(max_examples=30, deadline=None)
def test_prediction_follows_the_gradient_of_the_density(alpha, sigma, seed, dims):
    """Tweedie: noise = -sigma grad log p(x), by automatic differentiation of the density."""
    g = torch.Generator().manual_seed(seed)
    means = 3 * torch.randn(4, dims, generator=g, dtype=torch.float64)
    mixture = Mixture(means, torch.rand(4, generator=g, dtype=torch.float64) + 0.1, std=0.7)
    x = alpha * mixture.sample(8, g)
    x = (x + sigma * torch.randn(x.shape, generator=g, dtype=x.dtype)).requires_grad_()
    (score,) = torch.autograd.grad(mixture.density(x, alpha, sigma).log().sum(), x)
    x0, noise = mixture.predict(x.detach(), alpha, sigma)
    torch.testing.assert_close(noise, -sigma * score, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(alpha * x0 + sigma * noise, x.detach(), atol=1e-9, rtol=1e-9)


def test_density_integrates_to_one_and_matches_samples():
    mixture = eight_modes().truth
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    density = mixture.density(grid)
    assert float(torch.trapezoid(density, grid[:, 0])) == pytest.approx(1.0, abs=1e-9)
    samples = mixture.sample(20000, torch.Generator().manual_seed(0))
    assert total_variation(mixture.masses(samples), mixture.weights) < 0.015
    mean = float(torch.trapezoid(density * grid[:, 0], grid[:, 0]))
    assert float(samples.mean()) == pytest.approx(mean, abs=0.1)


@pytest.mark.parametrize("trial", TRIALS)
def test_errors_of_the_models_point_the_same_way(trial):
    trial = trial()
    recovered = trial.strong.weights**2 / trial.weak.weights
    torch.testing.assert_close(recovered / recovered.sum(), trial.truth.weights)
    distances = [
        total_variation(m.weights, trial.truth.weights) for m in (trial.strong, trial.weak)
    ]
    assert 0.1 < distances[0] < distances[1]


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v", "flow"])
@pytest.mark.parametrize("karras", [False, True])
def test_every_prediction_samples_the_same_paths(kind, karras):
    angle = torch.linspace(1.5, 0.02, 30, dtype=torch.float64)
    alpha, sigma = angle.cos(), angle.sin()
    scale = alpha if karras else torch.ones_like(alpha)
    levels = Levels(alpha, sigma, scale, kind, torch.arange(29))
    plain = Levels(alpha, sigma, torch.ones_like(alpha), "v", torch.arange(29))
    trial = two_peaks()
    x = start(trial, 50)
    roles = trial.networks(levels)
    # the weak model told the level its x is at: only then is its (x0, noise) one and the same
    method = W2SD(weak_time="next")
    ours = drive(method, roles, x / scale[0], levels) * scale[-1]
    torch.testing.assert_close(ours, drive(method, trial.networks(plain), x, plain))


def test_distances():
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5])
    assert total_variation(p, p) == 0
    assert total_variation(p, q) == pytest.approx(0.5)
    x = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    assert sliced_wasserstein(x, x.flip(0)) == 0
    assert sliced_wasserstein(x, x + 3) == pytest.approx(3, abs=1e-5)
    plane = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    shifted = sliced_wasserstein(plane, plane + torch.tensor([3.0, 0.0]), projections=2000)
    assert shifted == pytest.approx(3 * 2 / math.pi, rel=0.05)  # mean of |cos| over directions


def test_bad_mixtures_are_refused():
    with pytest.raises(InputError, match="positive"):
        Mixture(torch.zeros(2, 1), torch.tensor([1.0, 0.0]))
    with pytest.raises(InputError, match="expected means"):
        Mixture(torch.zeros(2), torch.ones(2))
    with pytest.raises(InputError, match="one shape"):
        sliced_wasserstein(torch.zeros(3, 1), torch.zeros(4, 1))


# -- what the methods do on it


@pytest.mark.parametrize("trial", TRIALS)
def test_the_true_network_samples_the_truth(trial):
    trial = trial()
    x = run(trial, Plain(), 100, only(trial.truth, 100), n=4000)
    reference = trial.truth.sample(4000, torch.Generator().manual_seed(1))
    assert off(trial, x) < 0.04
    assert sliced_wasserstein(x, reference) < 0.25


@pytest.mark.parametrize("trial", TRIALS)
def test_w2sd_moves_mass_towards_the_truth_and_its_reverse_away(trial):
    trial = trial()
    weak = off(trial, run(trial, Plain(), roles=only(trial.weak)))
    strong = off(trial, run(trial, Plain()))
    reflected = off(trial, run(trial, W2SD()))
    reverse = off(trial, run(trial, W2SD(), roles=reversed_pair(trial)))
    assert reflected < 0.6 * strong < 0.6 * reverse
    assert reverse == pytest.approx(weak, abs=0.05)  # to first order it is the weak model


@pytest.mark.parametrize("trial", TRIALS)
def test_autoguidance_at_scale_two_does_about_as_well(trial):
    trial = trial()
    reflected, guided = (off(trial, run(trial, m)) for m in (W2SD(), AutoGuidance(scale=2.0)))
    assert guided == pytest.approx(reflected, abs=0.04)


# Medians: the few paths that start on a watershed between two modes may end in either.


@pytest.mark.parametrize(("times", "weak_time"), [(1, "this"), (1, "next"), (2, "this")])
@pytest.mark.parametrize("trial", TRIALS)
def test_w2sd_is_autoguidance_to_first_order(trial, times, weak_time):
    """base + times (strong - weak): the difference to AutoGuidance(1 + times) is O(1 / steps)."""
    trial = trial()
    gap = {
        steps: (
            run(trial, W2SD(times=times, weak_time=weak_time), steps, n=300)
            - run(trial, AutoGuidance(scale=1.0 + times), steps, n=300)
        )
        .abs()
        .median()
        for steps in (60, 120)
    }
    assert float(gap[60] / gap[120]) == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize("weak_time", ["this", "next"])
@pytest.mark.parametrize("trial", TRIALS)
def test_with_equal_models_the_residual_halves_when_steps_double(trial, weak_time):
    """Reflection with one model twice is no identity: what remains is the inversion error."""
    trial = trial()
    rest = {
        steps: (
            run(trial, W2SD(weak_time=weak_time), steps, only(trial.strong, steps), n=300)
            - run(trial, Plain(), steps, n=300)
        )
        .abs()
        .median()
        for steps in (60, 120)
    }
    assert float(rest[60]) > 1e-4
    assert float(rest[60] / rest[120]) == pytest.approx(2.0, abs=0.2)


def test_evaluations_are_what_the_cost_says():
    trial, levels = two_peaks(), Levels.flow(10)
    for method, expected in ((Plain(), 10), (AutoGuidance(scale=2.0), 20), (W2SD(), 28)):
        calls = []
        network = trial.strong.network(levels)

        def counted(x, i, network=network, calls=calls):
            calls.append(i)
            return network(x, i)

        drive(method, counted, start(trial, 2), levels)
        assert len(calls) == expected == method.cost(10)
