"""Regressions and conditional maps, against what is known exactly."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from sbi_multilevel import LevelSimulations
from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.conditional import LowMean, fit_conditional, transport
from sbi_multilevel.level_maps.regression import Regression, polynomials
from tests.gaussian_simulations import (
    HIGH_COVARIANCE,
    HIGH_SHIFT,
    HIGH_SLOPE,
    LOW_SLOPE,
    correlation,
    gaussian_simulations,
    high_simulations,
    low_simulations,
    normal_noise,
    scaled_simulations,
)


def square_root(covariance):
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values)) @ vectors.T


def regressed(rows):
    """Intercept, slope and covariance of the residuals by least squares."""
    inputs = np.column_stack((np.ones(len(rows)), rows.theta))
    coefficients = np.linalg.lstsq(inputs, rows.x, rcond=None)[0]
    residuals = rows.x - inputs @ coefficients
    return coefficients[0], coefficients[1:].T, np.cov(residuals.T)


# ------------------------------------------------------------- rows and regression


def test_rows_are_flat_doubles_with_their_pairs():
    theta, x = torch.rand(6, 2), torch.randn(6, 3, 4)
    level = LevelSimulations(1, theta, x, x + 0.1 * torch.randn(6, 3, 4))
    rows = LevelArrays.of(level)
    chosen = rows[np.array([4, 1])]
    assert rows.x.shape == (6, 12) and rows.x.dtype == np.float64
    assert chosen.x_coarse is not None and level.x_coarse is not None
    assert np.array_equal(chosen.theta, theta[[4, 1]].double().numpy())
    assert np.array_equal(
        chosen.x_coarse, level.x_coarse[[4, 1]].flatten(1).double().numpy()
    )
    assert (
        len(chosen) == 2
        and LevelArrays.of(LevelSimulations(0, theta, x)).x_coarse is None
    )


@pytest.mark.parametrize("num_targets", (1, 3))
def test_regression_finds_a_quadratic_in_any_units(num_targets):
    inputs = np.random.default_rng(0).normal(50.0, 20.0, size=(300, 2))
    units = 10.0 ** np.arange(-3, num_targets - 3)
    targets = (inputs[:, :1] * inputs[:, 1:] - 3 * inputs[:, :1] + 7) * units
    fit = Regression.fit(polynomials(inputs, 2), inputs, targets)
    assert fit(inputs[:9]).shape == (9, num_targets)
    assert np.allclose(fit(inputs) / units, targets / units, atol=0.1)


def test_regression_shrinks_pure_noise_to_its_mean():
    generator = np.random.default_rng(0)
    inputs, targets = generator.normal(size=(30, 5)), generator.normal(size=(30, 4))
    fit = Regression.fit(polynomials(inputs, 2), inputs, targets + 10.0)
    least_squares = np.linalg.lstsq(
        polynomials(inputs, 2).transform(inputs), targets, rcond=None
    )[0]
    ambitious = polynomials(inputs, 2).transform(inputs) @ least_squares
    assert fit(inputs).std() < 0.5 * ambitious.std()
    assert np.allclose(fit(inputs).mean(axis=0), targets.mean(axis=0) + 10.0)


def test_regression_on_fewer_than_four_rows_is_their_mean():
    inputs, targets = np.arange(6.0).reshape(3, 2), np.array([[1.0], [2.0], [6.0]])
    fit = Regression.fit(polynomials(inputs, 1), inputs, targets)
    assert np.allclose(fit(np.zeros((5, 2))), np.full((5, 1), 3.0))


# ------------------------------------------------------------- conditional maps


def test_rows_left_out_of_a_regression_are_judged_as_by_a_refit():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(12, 2))
    targets = inputs @ generator.normal(size=(2, 3)) + generator.normal(size=(12, 3))
    features = polynomials(inputs, 2)
    regression = Regression.fit(features, inputs, targets)
    residuals = regression.left_out(inputs, targets)
    design = features.transform(inputs)
    for row in range(12):
        kept = np.arange(12) != row
        refit = Ridge(regression.model.alpha_).fit(design[kept], targets[kept])
        expected = targets[row] - refit.predict(design[[row]])[0]
        assert residuals[row] == pytest.approx(expected, rel=1e-6)


def test_full_map_reproduces_mean_and_covariance_given_theta():
    low, n = low_simulations(), 4_000
    move = fit_conditional("full", LowMean.fit(low), high_simulations(n))
    shift, slope, covariance = regressed(LevelArrays(low.theta, move(low.theta, low.x)))
    # errors of the dear and the cheap rows, both n of them, at four standard errors
    error = 4 * np.sqrt(2 * HIGH_COVARIANCE.max() / n)
    assert np.allclose(shift, HIGH_SHIFT, atol=error)
    assert np.allclose(slope, HIGH_SLOPE, atol=error)
    of_covariance = 4 * np.sqrt(2 * 2 / n) * HIGH_COVARIANCE.max()
    assert np.allclose(covariance, HIGH_COVARIANCE, atol=of_covariance)


def test_shift_leaves_the_covariance_of_the_residuals():
    low = low_simulations()
    move = fit_conditional("shift", LowMean.fit(low), high_simulations(4_000))
    _, slope, covariance = regressed(LevelArrays(low.theta, move(low.theta, low.x)))
    assert np.allclose(slope, HIGH_SLOPE, atol=0.13)
    assert np.allclose(covariance, regressed(low)[2], atol=1e-3)


def test_shift_recovers_an_additive_linear_change_without_noise():
    theta = np.random.default_rng(0).normal(size=(500, 2))
    low = LevelArrays(theta, theta @ LOW_SLOPE.T + theta**2)
    change = lambda theta: theta @ HIGH_SLOPE.T + HIGH_SHIFT
    dear = np.random.default_rng(1).normal(size=(20, 2))
    high = LevelArrays(dear, dear @ LOW_SLOPE.T + dear**2 + change(dear))
    move = fit_conditional("shift", LowMean.fit(low), high)
    moved = move(low.theta, low.x)
    assert np.allclose(moved, low.x + change(low.theta), atol=2e-3)


def test_scaled_recovers_a_scale_that_is_log_linear_in_theta():
    low = scaled_simulations(4_000, lambda theta: 0.3 * theta, seed=0)
    high = scaled_simulations(4_000, lambda theta: -0.5 + 1.0 * theta, seed=1)
    move = fit_conditional("scaled", LowMean.fit(low), high)
    place = np.array([[-0.8], [0.0], [0.8]]).repeat(2, axis=0)
    unit = np.tile([[0.0, 0.0], [1.0, 10.0]], (3, 1))
    ends = move(place, place + unit)
    growth = (ends[1::2] - ends[::2]) / [1.0, 10.0]
    expected = np.exp(-0.5 + 0.7 * np.array([[-0.8], [0.0], [0.8]]))
    assert np.allclose(np.log(growth), np.log(expected), atol=0.15)


def test_scaled_bounds_what_few_rows_may_claim():
    low = scaled_simulations(2_000, lambda theta: 0.0 * theta, seed=0)
    high = scaled_simulations(200, lambda theta: 4.0 * theta, seed=1)
    move = fit_conditional("scaled", LowMean.fit(low), high)
    growth = move.log_scale_change
    assert growth is not None
    ends = growth(np.array([[-5.0], [5.0]]))
    assert np.array_equal(ends, [[-2.0, -2.0], [2.0, 2.0]])


def test_the_spread_from_few_dear_rows_is_right_on_average():
    """Residuals of a mean fitted to eight rows are too small by three degrees."""
    low = LowMean.fit(
        gaussian_simulations(1_000, 0 * LOW_SLOPE, np.zeros(2), np.eye(2), 0)
    )
    variances = []
    for seed in range(100):
        high = gaussian_simulations(8, 20 * np.eye(2), np.zeros(2), np.eye(2), seed + 1)
        turn = fit_conditional("full", low, high).turn
        assert turn is not None
        variances.append(np.diag(turn @ turn.T))
    error = np.std(variances) / np.sqrt(np.size(variances))
    assert np.mean(variances) == pytest.approx(1.0, abs=4 * error)
    assert error < 0.06


@pytest.mark.parametrize("kind", ("shift", "full", "scaled"))
def test_conditional_maps_use_no_pairs(kind):
    low, high = low_simulations(500), high_simulations(30)
    paired = LevelArrays(high.theta, high.x, np.full_like(high.x, np.nan))
    moved = [
        fit_conditional(kind, LowMean.fit(low), rows)(low.theta, low.x)
        for rows in (high, paired)
    ]
    assert np.array_equal(*moved)


@pytest.mark.parametrize("kind", ("shift", "full", "scaled"))
@pytest.mark.parametrize("n", (2, 3, 5))
def test_few_dear_rows_give_moderate_maps(kind, n):
    low, high = low_simulations(500), high_simulations(n)
    moved = fit_conditional(kind, LowMean.fit(low), high)(low.theta, low.x)
    assert np.isfinite(moved).all()
    assert np.abs(moved).max() < 10 * np.abs(np.concatenate((low.x, high.x))).max()


@pytest.mark.parametrize("kind", ("shift", "full", "scaled"))
def test_a_constant_feature_stays_constant(kind):
    low, high = low_simulations(500), high_simulations(30)
    low.x[:, 1], high.x[:, 1] = 3.0, 3.0
    moved = fit_conditional(kind, LowMean.fit(low), high)(low.theta, low.x)
    assert np.isfinite(moved).all() and np.allclose(moved[:, 1], 3.0)


# ------------------------------------------------------------- transport


def centred(covariance, n, seed):
    """LevelArrays whose sample covariance is exactly the one asked for, with mean 0."""
    rows = np.random.default_rng(seed).normal(size=(n, len(covariance)))
    rows = np.linalg.qr(rows - rows.mean(axis=0))[0] * np.sqrt(n - 1)
    return rows @ square_root(covariance)


def test_transport_between_commuting_covariances_is_the_ratio_of_roots():
    source, target = correlation(0.6), correlation(-0.3)
    n = 20_000
    turn = transport(centred(source, n, 0), centred(target, n, 1))
    closed = square_root(target) @ np.linalg.inv(square_root(source))
    # Ledoit and Wolf shrink by O(1/n)
    assert np.allclose(turn, closed, atol=1e-3)


def test_transport_at_unit_scales_is_symmetric_positive_definite():
    generator = np.random.default_rng(0)
    correlations = [np.corrcoef(generator.normal(size=(4, 8))) for _ in range(2)]
    turn = transport(*(centred(c, 500, i) for i, c in enumerate(correlations)))
    assert np.allclose(turn, turn.T, atol=2e-3)
    assert np.linalg.eigvalsh((turn + turn.T) / 2).min() > 0.1
    assert np.allclose(turn @ correlations[0] @ turn.T, correlations[1], atol=0.06)


def test_transport_carries_scales_of_features_exactly():
    cheap, dear = centred(correlation(0.5), 900, 0), centred(correlation(0.2), 900, 1)
    units, others = np.array([1e-4, 30.0]), np.array([5.0, 1e3])
    turn = transport(cheap, dear)
    in_units = transport(cheap * units, dear * others)
    assert np.allclose(in_units, others[:, None] * turn / units, rtol=1e-9)


def test_transport_shrinks_the_correlation_of_few_rows():
    cheap = centred(np.eye(2), 2_000, 0)
    of_rows, of_turn = [], []
    for seed in range(50):
        dear = normal_noise(np.random.default_rng(seed), correlation(0.8), 6)
        dear /= np.sqrt((dear**2).mean(axis=0))
        turn = transport(cheap, dear)
        of_rows.append((dear.T @ dear / len(dear))[0, 1])
        of_turn.append((turn @ turn.T)[0, 1])
    assert 0.3 < np.mean(of_turn) / np.mean(of_rows) < 0.9
