"""The statistics of `check_pairing`: shared noise at the same theta."""

import math

import numpy as np
import pytest

from sbi_multilevel.diagnostics import shared_noise
from sbi_multilevel.diagnostics.shared_noise import noise_variance

GROUPS = np.repeat(np.arange(10), 5)


def estimate(x, x_coarse, groups=GROUPS, seed=0):
    return shared_noise.shared_noise(x, x_coarse, groups, seed=seed)


def correlated(rho, num_thetas=10, num_noises=5, k=1, seed=0):
    """Both sides depend on theta and share noise with correlation rho."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(num_thetas), num_noises)
    theta = 10 * rng.normal(size=(num_thetas, 1))[groups]
    u, v = rng.normal(size=(2, len(groups), k))
    return theta + u, theta**2 + rho * u + math.sqrt(1 - rho**2) * v, groups


@pytest.mark.parametrize(
    ("slope", "correlation", "ratio"),
    ((1.0, 1.0, 0.0), (2.0, 1.0, 0.2), (-1.0, -1.0, 2.0), (-0.5, -1.0, 1.8)),
)
def test_estimates_are_exact_if_one_side_is_a_multiple_of_the_other(
    slope, correlation, ratio
):
    noise = np.random.default_rng(0).normal(size=(50, 1))
    theta = 100.0 * GROUPS[:, np.newaxis]
    found = estimate(theta + slope * noise, np.sin(theta) + noise)
    assert found.correlation == pytest.approx([correlation])
    # Var[(slope - 1) u] / ((slope^2 + 1) Var u)
    assert found.variance_ratio == pytest.approx([ratio], abs=1e-12)
    assert found.correlation_error == pytest.approx([0.0], abs=1e-9)
    assert found.p_value < 0.01


def test_estimates_for_two_thetas_are_those_computed_by_hand():
    x = np.array([[0.0], [2.0], [10.0], [14.0]])
    x_coarse = np.array([[1.0], [3.0], [5.0], [4.0]])
    found = estimate(x, x_coarse, np.array([0, 0, 1, 1]))
    # variances 2 and 8; 2 and 0.5; covariances 2 and -2
    assert found.correlation == pytest.approx([0.0])
    assert found.variance_ratio == pytest.approx([1.0])
    # leaving out one theta gives 2 / 2 and -2 / 2
    assert found.correlation_error == pytest.approx([math.sqrt(0.5 * 2)])
    assert noise_variance(x, np.array([0, 0, 1, 1])) == pytest.approx([5.0])


@pytest.mark.parametrize("rho", (-0.6, 0.0, 0.5, 0.9))
def test_correlation_and_variance_ratio_given_theta(rho):
    found = estimate(*correlated(rho, num_thetas=300))
    assert abs(found.correlation - rho) < 4 * found.correlation_error
    assert abs(found.variance_ratio - (1 - rho)) < 4 * found.variance_ratio_error
    assert found.correlation_error < 0.05


def test_jackknife_errors_are_the_spread_over_data_sets(monkeypatch):
    monkeypatch.setattr(shared_noise, "_NUM_PERMUTATIONS", 1)
    found = [estimate(*correlated(0.5, num_thetas=40, seed=s)) for s in range(100)]
    for value, error in (
        ("correlation", "correlation_error"),
        ("variance_ratio", "variance_ratio_error"),
    ):
        spread = np.std([getattr(f, value) for f in found], ddof=1)
        typical = np.sqrt(np.mean([getattr(f, error) ** 2 for f in found]))
        # the relative error of a standard deviation of 100 numbers is 1 / sqrt(200)
        assert typical == pytest.approx(spread, rel=4 / math.sqrt(200))


@pytest.mark.parametrize("k", (1, 4))
def test_p_values_are_valid_with_heavy_tails_and_unequal_noise(k, monkeypatch):
    monkeypatch.setattr(shared_noise, "_NUM_PERMUTATIONS", 199)
    smallest = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        theta = np.exp(2 * rng.normal(size=(10, 1)))[GROUPS]
        sides = theta + theta * rng.standard_cauchy(size=(2, 50, k))
        found = estimate(*sides, seed=seed)
        smallest.append((found.p_value.min(), found.counterpart_p_value.min()))
    rejected = (np.array(smallest) <= 0.05).mean(axis=0)
    # the test is exact
    tolerance = 4 * math.sqrt(0.05 * 0.95 / 150)
    assert (rejected <= 0.05 + tolerance).all() and (rejected > 0).all()


def test_adding_a_function_of_theta_changes_nothing_beyond_rounding():
    x, x_coarse, groups = correlated(0.7)
    shift = np.random.default_rng(1).normal(size=(10, 1))[groups]
    found, moved = estimate(x, x_coarse), estimate(x + shift, x_coarse - 3 * shift)
    assert moved.correlation == pytest.approx(found.correlation)
    assert moved.variance_ratio == pytest.approx(found.variance_ratio)
    assert moved.p_value == pytest.approx(found.p_value)


def test_the_order_of_simulations_has_no_effect():
    x, x_coarse, groups = correlated(0.7)
    order = np.random.default_rng(1).permutation(50)
    found = estimate(x, x_coarse)
    moved = estimate(x[order], x_coarse[order], groups[order])
    assert moved.correlation == pytest.approx(found.correlation)
    assert moved.correlation_error == pytest.approx(found.correlation_error)


def test_many_summaries_are_compared_with_their_own_counterpart():
    x, x_coarse, groups = correlated(0.95, k=60)
    x_coarse[:, 7] = np.random.default_rng(1).normal(size=50)
    found = estimate(x, x_coarse)
    assert np.flatnonzero(found.p_value > 0.01).tolist() == [7]
    assert (found.counterpart == np.arange(60)).all()


def test_statistics_are_scaled_for_each_summary():
    x, x_coarse, groups = correlated(0.0, k=2)
    # uncorrelated at each theta
    x[:, 0] = np.tile([1, -1, 1, -1, 0], 10)
    x_coarse[:, 0] = np.tile([1, 1, -1, -1, 0], 10)
    few = np.where(groups < 2, np.random.default_rng(1).normal(size=50), 0.0)
    x[:, 1] = x_coarse[:, 1] = few
    found = estimate(x, x_coarse)
    assert found.p_value[1] < 0.05 < 0.5 < found.p_value[0]


def test_shared_noise_of_very_unequal_size_is_detected():
    x, x_coarse, groups = correlated(0.9)
    scale = np.exp(6 * np.random.default_rng(2).normal(size=(10, 1)))[groups]
    assert estimate(scale * x, scale * x_coarse).p_value < 0.01
