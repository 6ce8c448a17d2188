"""Conditional maps, against what is known exactly."""

import numpy as np
import pytest

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.base import level_map_kind
from sbi_multilevel.level_maps.conditional import (
    LowMoments,
    coefficients_of_mean,
    regress_on_mean,
)
from sbi_multilevel.level_maps.regression import (
    Regression,
    polynomials,
)
from sbi_multilevel.level_maps.unpaired import ScaledTurn, transport
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

CONDITIONAL = ("gain", "shift", "full", "scaled", "homoscedastic", "normal")


def square_root(covariance):
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values)) @ vectors.T


def fitted(kind, low, high):
    return level_map_kind(kind).fit(low, high, seed=0)


def regressed(sample):
    """Intercept, slope and covariance of the residuals by least squares."""
    inputs = np.column_stack((np.ones(len(sample)), sample.theta))
    coefficients = np.linalg.lstsq(inputs, sample.x, rcond=None)[0]
    residuals = sample.x - inputs @ coefficients
    return coefficients[0], coefficients[1:].T, np.cov(residuals.T)


@pytest.mark.parametrize("kind", ("gain", "full", "normal", "paired"))
def test_mapped_simulations_are_as_wide_as_the_posterior_predictive(kind):
    """Of high-fidelity simulations, also far from those that a map was fitted to."""
    gain, place, n = -0.5, 3.0, 12
    normal = lambda n, seed: np.random.default_rng(seed).normal(size=(n, 1))
    theta = normal(4_000, 0)
    low = LevelArrays(theta, 3 * theta + normal(4_000, 1))
    there = np.full((4_000, 1), place)
    x = 3 * there + normal(4_000, 2)
    errors, variances = [], []
    for seed in range(3, 303):
        few, coarse = normal(n, seed), normal(n, seed + 1_000)
        fine = gain * (3 * few + normal(n, seed + 2_000))
        moved = fitted(kind, low, LevelArrays(few, fine, 3 * few + coarse))(there, x)
        errors.append((moved.mean() - 3 * gain * place) ** 2)
        variances.append(moved.var())
    excess = np.array(variances) - gain**2  # of the noise
    assert np.mean(excess) > 0.5 * gain**2
    error = np.std(errors - excess) / np.sqrt(len(errors))
    assert np.mean(excess) == pytest.approx(np.mean(errors), abs=4 * error)


@pytest.mark.parametrize("multiple, factor", ((8.0, 0.0), (12.0, 1 - 1 / 12)))
def test_coefficients_are_kept_if_ten_times_as_large_as_by_chance(multiple, factor):
    """The t-statistic is set by noise of exact size, orthogonal to everything else."""
    draw = np.random.default_rng(0).normal
    inputs, mean, noise = draw(size=(20, 2)), draw(size=(20, 1)), draw(size=(20, 1))
    basis = np.column_stack((np.ones(20), inputs))
    orthogonal = lambda y, basis: y - basis @ np.linalg.lstsq(basis, y, rcond=None)[0]
    curved = orthogonal(mean, basis)
    noise = orthogonal(noise, np.column_stack((basis, mean)))
    freedom, coefficient = 20 - 4, -1.0
    # t^2 = freedom * coefficient^2 |curved|^2 / |noise|^2
    square = multiple * freedom / (freedom - 2)
    size = np.sqrt(freedom / square) * np.linalg.norm(curved)
    gaps = coefficient * mean + size * noise / np.linalg.norm(noise)
    found = coefficients_of_mean(inputs, mean, gaps)
    assert found == pytest.approx(factor * coefficient, abs=1e-9)


def test_full_map_reproduces_mean_and_covariance_given_theta():
    low, n = low_simulations(), 4_000
    move = fitted("full", low, high_simulations(n))
    shift, slope, covariance = regressed(LevelArrays(low.theta, move(low.theta, low.x)))
    # four standard errors, from n simulations of both levels
    error = 4 * np.sqrt(2 * HIGH_COVARIANCE.max() / n)
    assert np.allclose(shift, HIGH_SHIFT, atol=error)
    assert np.allclose(slope, HIGH_SLOPE, atol=error)
    of_covariance = 4 * np.sqrt(2 * 2 / n) * HIGH_COVARIANCE.max()
    assert np.allclose(covariance, HIGH_COVARIANCE, atol=of_covariance)


def test_shift_leaves_the_covariance_of_the_residuals():
    low = low_simulations()
    move = fitted("shift", low, high_simulations(4_000))
    _, slope, covariance = regressed(LevelArrays(low.theta, move(low.theta, low.x)))
    assert np.allclose(slope, HIGH_SLOPE, atol=0.13)
    assert np.allclose(covariance, regressed(low)[2], atol=1e-3)


def curved_simulations(n, curvature, seed, num_features=4, noise=0.3):
    """Linear in two parameters, and quadratic by the curvature."""
    generator = np.random.default_rng(seed)
    theta = generator.normal(size=(n, 2))
    slope = np.random.default_rng(99).normal(size=(2, num_features))
    signal = theta @ slope + curvature * theta**2 @ np.abs(slope)
    return LevelArrays(theta, signal + noise * generator.normal(size=signal.shape))


@pytest.mark.parametrize("kind", CONDITIONAL[1:])
@pytest.mark.parametrize("curvature", (0.0, -0.5))
def test_curvature_of_low_fidelity_is_changed_where_high_fidelity_differs(
    kind, curvature
):
    low = curved_simulations(4_000, 1.0, seed=0)
    few = curved_simulations(40, curvature, seed=1)
    moved = fitted(kind, low, few)(low.theta, low.x)
    exact = curved_simulations(4_000, curvature, seed=0, noise=0.0)
    features = polynomials(low.theta, 2)
    left = Regression.fit(features, low.theta, moved - exact.x)
    assert np.abs(left.coefficients).max() < 0.35
    before = Regression.fit(features, low.theta, low.x - exact.x)
    assert np.abs(before.coefficients).max() > 1


def test_curvature_that_is_the_same_is_left_as_it_is():
    low, kept = curved_simulations(4_000, 1.0, seed=0), []
    for seed in range(1, 31):
        few = curved_simulations(30, 1.0, seed)
        mean = low.cached(LowMoments.fit).mean(few.theta)
        kept.append(not coefficients_of_mean(few.theta, mean, few.x - mean).any())
    assert np.mean(kept) > 0.7


def test_coefficients_of_the_mean_are_those_of_a_regression_on_it_and_theta():
    theta = np.random.default_rng(0).normal(size=(25, 2))
    mean = np.column_stack((theta[:, 0] ** 2, theta.prod(axis=1), theta[:, 1]))
    generator = np.random.default_rng(1)
    gaps = -mean + theta @ np.ones((2, 3)) + 0.01 * generator.normal(size=(25, 3))
    found = coefficients_of_mean(theta, mean, gaps)
    for j in range(2):
        design = np.column_stack((np.ones(25), theta, mean[:, j]))
        expected = np.linalg.lstsq(design, gaps[:, j], rcond=None)[0][-1]
        assert found[j] == pytest.approx(expected, rel=1e-3)
    assert found[2] == 0  # linear in theta
    assert not coefficients_of_mean(theta, 0.01 * mean, gaps).any()  # would be -100
    assert not coefficients_of_mean(theta[:7], mean[:7], gaps[:7]).any()


def test_a_mean_that_varies_by_rounding_has_no_coefficient():
    generator = np.random.default_rng(0)
    gaps, rounding = generator.normal(size=(2, 20, 1))
    constant = 3.0 + 1e-15 * rounding
    assert np.ptp(constant) > 0
    assert not np.any(regress_on_mean(np.empty((20, 0)), constant, gaps))


def test_shift_recovers_an_additive_linear_change_without_noise():
    theta = np.random.default_rng(0).normal(size=(500, 2))
    low = LevelArrays(theta, theta @ LOW_SLOPE.T + theta**2)
    change = lambda theta: theta @ HIGH_SLOPE.T + HIGH_SHIFT
    few = np.random.default_rng(1).normal(size=(20, 2))
    high = LevelArrays(few, few @ LOW_SLOPE.T + few**2 + change(few))
    move = fitted("shift", low, high)
    moved = move(low.theta, low.x)
    assert np.allclose(moved, low.x + change(low.theta), atol=2e-3)


def test_gain_recovers_gain_and_offset_of_each_feature():
    low, few = low_simulations(), low_simulations(40)
    gain, offset = np.array([-1.5, 0.7]), np.array([3.0, -2.0])
    move = fitted("gain", low, LevelArrays(few.theta, gain * few.x + offset))
    slopes = move(low.theta[:1], np.ones((1, 2))) - move(
        low.theta[:1], np.zeros((1, 2))
    )
    moved = move(low.theta, low.x)
    # the noise of forty simulations remains
    assert np.allclose(slopes, gain, atol=0.4)
    assert np.allclose(moved.mean(axis=0), (gain * low.x + offset).mean(axis=0), atol=1)


def test_gain_is_exact_without_noise():
    theta = np.random.default_rng(0).normal(size=(500, 2))
    signal = lambda theta: theta @ LOW_SLOPE.T + theta**2
    few = np.random.default_rng(1).normal(size=(4, 2))
    gain, offset = np.array([-1.5, 0.7]), np.array([3.0, -2.0])
    low = LevelArrays(theta, signal(theta))
    move = fitted("gain", low, LevelArrays(few, gain * signal(few) + offset))
    assert np.allclose(move(theta, low.x), gain * low.x + offset, atol=1e-2)


def test_gains_of_three_simulations_are_one():
    low, few = low_simulations(500), low_simulations(3)
    move = fitted("gain", low, LevelArrays(few.theta, 5 * few.x))
    assert np.array_equal(move.gain, [1.0, 1.0])


def test_a_gain_that_does_not_differ_from_one_by_its_error_stays():
    """The mean of low fidelity hardly depends on theta, so that its slope is noise."""
    low = gaussian_simulations(4_000, 1e-3 * LOW_SLOPE, np.zeros(2), np.eye(2), 0)
    kept = []
    for seed in range(1, 41):
        high = gaussian_simulations(20, 0 * LOW_SLOPE, np.ones(2), np.eye(2), seed)
        kept += np.isclose(fitted("gain", low, high).gain, 1.0, atol=1e-9).tolist()
    # |t| < 1 in two of three cases
    assert 0.45 < np.mean(kept) < 0.85


def test_scaled_recovers_a_scale_that_is_log_linear_in_theta():
    low = scaled_simulations(4_000, lambda theta: 0.3 * theta, seed=0)
    high = scaled_simulations(4_000, lambda theta: -0.5 + 1.0 * theta, seed=1)
    move = fitted("scaled", low, high)
    place = np.array([[-0.8], [0.0], [0.8]]).repeat(2, axis=0)
    unit = np.tile([[0.0, 0.0], [1.0, 10.0]], (3, 1))
    ends = move(place, place + unit)
    growth = (ends[1::2] - ends[::2]) / [1.0, 10.0]
    expected = np.exp(-0.5 + 0.7 * np.array([[-0.8], [0.0], [0.8]]))
    assert np.allclose(np.log(growth), np.log(expected), atol=0.15)


def test_scaled_bounds_the_change_of_scale():
    low = scaled_simulations(2_000, lambda theta: 0.0 * theta, seed=0)
    high = scaled_simulations(200, lambda theta: 4.0 * theta, seed=1)
    move = fitted("scaled", low, high)
    assert isinstance(move.turn, ScaledTurn)
    ends = move.turn.log_change(np.array([[-5.0], [5.0]]))
    assert np.array_equal(ends, [[-2.0, -2.0], [2.0, 2.0]])


def test_the_spread_from_few_simulations_is_right_on_average():
    """Residuals of a mean fitted to eight simulations lack three degrees of freedom."""
    low = gaussian_simulations(1_000, 0 * LOW_SLOPE, np.zeros(2), np.eye(2), 0)
    variances = []
    for seed in range(100):
        high = gaussian_simulations(8, 20 * np.eye(2), np.zeros(2), np.eye(2), seed + 1)
        move = fitted("full", low, high)
        assert move.turn is not None
        turn = move.turn(high.theta, np.eye(2)).T
        variances.append(np.diag(turn @ turn.T))
    error = np.std(variances) / np.sqrt(np.size(variances))
    assert np.mean(variances) == pytest.approx(1.0, abs=4 * error)
    assert error < 0.06


@pytest.mark.parametrize("kind", CONDITIONAL)
def test_conditional_maps_use_no_pairs(kind):
    low, high = low_simulations(500), high_simulations(30)
    paired = LevelArrays(high.theta, high.x, np.full_like(high.x, np.nan))
    moved = [fitted(kind, low, sample)(low.theta, low.x) for sample in (high, paired)]
    assert np.array_equal(*moved)


def test_homoscedastic_noise_depends_neither_on_theta_nor_on_low_fidelity():
    low = scaled_simulations(4_000, lambda theta: 1.0 * theta, seed=0)
    high = scaled_simulations(4_000, lambda theta: 0.0 * theta, seed=1)
    move = fitted("homoscedastic", low, high)
    moved = move(low.theta, low.x)
    assert np.array_equal(moved, move(low.theta, np.zeros_like(low.x)))
    noise = moved - low.theta
    at_ends = [noise[low.theta[:, 0] < -0.5], noise[low.theta[:, 0] > 0.5]]
    for each in at_ends:
        error = np.sqrt(1 / (2 * len(each)) + 1 / (2 * len(high)))
        # normal noise of standard deviations 1 and 10
        assert np.allclose(each.std(axis=0) / [1.0, 10.0], 1.0, atol=4 * error)
    # 3 of a normal, 6 if scales of low fidelity that depend on theta were mixed
    kurtosis = (noise**4).mean(axis=0) / (noise**2).mean(axis=0) ** 2
    assert np.allclose(kurtosis, 3.0, atol=1.0)


@pytest.mark.parametrize("kind, expected", (("homoscedastic", 2.0), ("normal", 0.0)))
def test_noise_has_the_shape_of_low_fidelity_or_of_a_normal(kind, expected):
    generator = np.random.default_rng(0)
    theta, noise = generator.normal(size=(4_000, 1)), generator.exponential(size=4_000)
    low = LevelArrays(theta, theta + noise[:, np.newaxis])
    high = LevelArrays(theta[:100], low.x[:100] + 5.0)
    moved = fitted(kind, low, high)(theta, low.x) - theta
    skewness = ((moved - moved.mean()) ** 3).mean() / moved.std() ** 3
    assert skewness == pytest.approx(expected, abs=0.5)


def test_normal_noise_has_the_covariance_of_high_fidelity():
    low, n = low_simulations(), 4_000
    move = fitted("normal", low, high_simulations(n))
    *_, covariance = regressed(LevelArrays(low.theta, move(low.theta, low.x)))
    of_covariance = 4 * np.sqrt(2 * 2 / n) * HIGH_COVARIANCE.max()
    assert np.allclose(covariance, HIGH_COVARIANCE, atol=of_covariance)


@pytest.mark.parametrize("kind", ("full", "scaled", "homoscedastic", "normal"))
def test_a_feature_that_is_constant_at_high_fidelity_becomes_so(kind):
    low, high = low_simulations(500), high_simulations(30)
    low.x[:, 1] = low.theta[:, 0] + np.random.default_rng(3).normal(size=500)
    high.x[:, 1] = 3.0
    moved = fitted(kind, low, high)(low.theta, low.x)
    assert np.allclose(moved[:, 1], 3.0, atol=0.2)


@pytest.mark.parametrize("kind", CONDITIONAL)
@pytest.mark.parametrize("n", (2, 3, 5))
def test_few_simulations_give_moderate_maps(kind, n):
    low, high = low_simulations(500), high_simulations(n)
    moved = fitted(kind, low, high)(low.theta, low.x)
    assert np.isfinite(moved).all()
    assert np.abs(moved).max() < 10 * np.abs(np.concatenate((low.x, high.x))).max()


@pytest.mark.parametrize("kind", CONDITIONAL)
def test_a_constant_feature_stays_constant(kind):
    low, high = low_simulations(500), high_simulations(30)
    low.x[:, 1], high.x[:, 1] = 3.0, 3.0
    moved = fitted(kind, low, high)(low.theta, low.x)
    assert np.isfinite(moved).all() and np.allclose(moved[:, 1], 3.0)


# ------------------------------------------------------------- transport


def centered(covariance, n, seed):
    """A sample of exactly this covariance, with mean 0."""
    sample = np.random.default_rng(seed).normal(size=(n, len(covariance)))
    sample = np.linalg.qr(sample - sample.mean(axis=0))[0] * np.sqrt(n - 1)
    return sample @ square_root(covariance)


def test_transport_between_commuting_covariances_is_the_ratio_of_roots():
    source, target = correlation(0.6), correlation(-0.3)
    n = 20_000
    turn = transport(centered(source, n, 0), centered(target, n, 1))
    closed = square_root(target) @ np.linalg.inv(square_root(source))
    # Ledoit and Wolf shrink by O(1/n)
    assert np.allclose(turn, closed, atol=1e-3)


def test_transport_at_unit_scales_is_symmetric_positive_definite():
    generator = np.random.default_rng(0)
    correlations = [np.corrcoef(generator.normal(size=(4, 8))) for _ in range(2)]
    turn = transport(*(centered(c, 500, i) for i, c in enumerate(correlations)))
    assert np.allclose(turn, turn.T, atol=2e-3)
    assert np.linalg.eigvalsh((turn + turn.T) / 2).min() > 0.1
    assert np.allclose(turn @ correlations[0] @ turn.T, correlations[1], atol=0.06)


def test_transport_carries_scales_of_features_exactly():
    source, target = (
        centered(correlation(0.5), 900, 0),
        centered(correlation(0.2), 900, 1),
    )
    units, others = np.array([1e-4, 30.0]), np.array([5.0, 1e3])
    turn = transport(source, target)
    in_units = transport(source * units, target * others)
    assert np.allclose(in_units, others[:, None] * turn / units, rtol=1e-9)


def test_transport_shrinks_the_correlation_of_few_simulations():
    source = centered(np.eye(2), 2_000, 0)
    of_sample, of_turn = [], []
    for seed in range(50):
        target = normal_noise(np.random.default_rng(seed), correlation(0.8), 6)
        target /= np.sqrt((target**2).mean(axis=0))
        turn = transport(source, target)
        of_sample.append((target.T @ target / len(target))[0, 1])
        of_turn.append((turn @ turn.T)[0, 1])
    assert 0.3 < np.mean(of_turn) / np.mean(of_sample) < 0.9
