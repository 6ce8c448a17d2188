"""The synthetic likelihood, against exact densities and posteriors."""

import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.stats import multivariate_normal, norm

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.selection.synthetic_likelihood import SyntheticLikelihood
from tests.gaussian_simulations import (
    HIGH_COVARIANCE,
    HIGH_SHIFT,
    HIGH_SLOPE,
    gaussian_simulations,
    high_simulations,
    low_simulations,
    scaled_simulations,
)


def test_the_synthetic_likelihood_of_gaussians_is_their_density():
    sims = gaussian_simulations(8_000, HIGH_SLOPE, HIGH_SHIFT, HIGH_COVARIANCE, seed=3)
    fresh = high_simulations(400)
    model = SyntheticLikelihood.fit(sims)
    residuals = fresh.x - fresh.theta @ HIGH_SLOPE.T - HIGH_SHIFT
    exact = multivariate_normal(np.zeros(2), HIGH_COVARIANCE).logpdf(residuals)
    gaps = model.log_likelihood(fresh) - exact
    # 2 % of a wide normal in each of two dimensions costs some 0.03 nats
    assert abs(gaps.mean()) < 0.05
    distances = (residuals @ np.linalg.inv(HIGH_COVARIANCE) * residuals).sum(axis=1)
    assert np.sqrt((gaps[distances < 4] ** 2).mean()) < 0.2


def test_the_synthetic_likelihood_follows_a_scale_that_depends_on_theta():
    log_scale = lambda theta: 0.8 * theta
    model = SyntheticLikelihood.fit(scaled_simulations(8_000, log_scale, seed=0))
    fresh = scaled_simulations(400, log_scale, seed=1)
    scale = np.exp(log_scale(fresh.theta)) * [1.0, 10.0]
    exact = norm.logpdf(fresh.x, fresh.theta, scale).sum(axis=1)
    assert abs((model.log_likelihood(fresh) - exact).mean()) < 0.05


def test_the_synthetic_likelihood_integrates_to_one():
    sims = scaled_simulations(1_000, lambda theta: 0.5 * theta, seed=0)
    sims = LevelArrays(sims.theta, np.exp(0.3 * sims.x[:, :1]))
    model = SyntheticLikelihood.fit(sims)
    grid = np.linspace(-60, 60, 24_001)[:, None]
    for place in (-0.7, 0.4):
        density = np.exp(model.log_prob(grid, np.full_like(grid, place)))
        assert trapezoid(density, grid[:, 0]) == pytest.approx(1.0, abs=5e-3)


def test_values_beyond_the_range_have_a_finite_decreasing_density():
    model = SyntheticLikelihood.fit(low_simulations(500))
    far = np.array([[9.0, 9.0], [12.0, 12.0], [15.0, 15.0]])
    values = model.log_prob(far, np.zeros((3, 2)))
    assert np.isfinite(values).all() and (np.diff(values) < -2).all()


def linear_1d(n, seed):
    generator = np.random.default_rng(seed)
    theta = generator.normal(size=(n, 1))
    return LevelArrays(theta, 1.5 * theta + 0.7 * generator.normal(size=(n, 1)))


def test_the_posterior_it_implies_is_the_exact_one():
    many, fresh = linear_1d(5_000, 0), linear_1d(200, 1)
    model = SyntheticLikelihood.fit(many)
    ratio = model.log_posterior_ratio(fresh, many.theta)
    precision = 1 + (1.5 / 0.7) ** 2
    mean = 1.5 * fresh.x / 0.7**2 / precision
    exact = norm.logpdf(fresh.theta, mean, precision**-0.5) - norm.logpdf(fresh.theta)
    gaps = ratio - exact[:, 0]
    assert abs(gaps.mean()) < 0.04
    near = np.abs(fresh.x - 1.5 * fresh.theta)[:, 0] < 1.4
    assert np.sqrt((gaps[near] ** 2).mean()) < 0.2


def test_the_posterior_it_implies_does_not_depend_on_units_of_x():
    many, fresh = linear_1d(1_000, 0), linear_1d(20, 1)
    ratios, densities = [], []
    for unit in (1.0, 1e3):
        model = SyntheticLikelihood.fit(LevelArrays(many.theta, unit * many.x))
        moved = LevelArrays(fresh.theta, unit * fresh.x)
        ratios.append(model.log_posterior_ratio(moved, many.theta))
        densities.append(model.log_likelihood(moved))
    assert np.allclose(*ratios, atol=1e-5)
    assert np.allclose(densities[0] - densities[1], np.log(1e3), atol=1e-5)


def test_the_synthetic_likelihood_has_mass_one_with_outliers_too():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(5_000, 1))
    x[:50] *= 30
    theta = generator.normal(size=(5_000, 1))
    model = SyntheticLikelihood.fit(LevelArrays(theta, x))
    grid = np.linspace(-1_000, 1_000, 400_001)[:, None]
    density = np.exp(model.log_prob(grid, np.zeros((len(grid), 1))))
    assert trapezoid(density, grid[:, 0]) == pytest.approx(1, abs=0.03)
    far = model.log_prob(np.array([[1e4], [1e5]]), np.zeros((2, 1)))
    assert far[0] >= far[1]
