"""Maps that know theta, and the synthetic likelihood, against what is known exactly."""

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from scipy.stats import multivariate_normal, norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import Ridge

from sbi_multilevel import LevelSimulations
from sbi_multilevel.alignment.conditional import LowMean, fit_conditional, transport
from sbi_multilevel.alignment.paired import fit_paired, paired_features
from sbi_multilevel.alignment.process import _leave_one_out, fit_process
from sbi_multilevel.alignment.regression import Regression, polynomials
from sbi_multilevel.alignment.rows import Rows
from sbi_multilevel.alignment.synthetic import SyntheticLikelihood

LOW_COVARIANCE = np.array([[1.0, 0.3], [0.3, 0.5]])
HIGH_COVARIANCE = np.array([[0.6, -0.4], [-0.4, 2.0]])
LOW_SLOPE = np.array([[1.0, 0.0], [0.5, 1.0]])
HIGH_SLOPE = np.array([[1.4, -0.3], [0.2, 1.0]])
HIGH_SHIFT = np.array([2.0, -1.0])


def gaussian_rows(n, slope, shift, covariance, seed):
    generator = np.random.default_rng(seed)
    theta = generator.normal(size=(n, 2))
    noise = generator.multivariate_normal(np.zeros(2), covariance, n)
    return Rows(theta, theta @ slope.T + shift + noise)


def low_rows(n=4_000):
    return gaussian_rows(n, LOW_SLOPE, np.zeros(2), LOW_COVARIANCE, seed=0)


def high_rows(n):
    return gaussian_rows(n, HIGH_SLOPE, HIGH_SHIFT, HIGH_COVARIANCE, seed=1)


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
    rows = Rows.of(level)
    chosen = rows[np.array([4, 1])]
    assert rows.x.shape == (6, 12) and rows.x.dtype == np.float64
    assert chosen.x_coarse is not None and level.x_coarse is not None
    assert np.array_equal(chosen.theta, theta[[4, 1]].double().numpy())
    assert np.array_equal(
        chosen.x_coarse, level.x_coarse[[4, 1]].flatten(1).double().numpy()
    )
    assert len(chosen) == 2 and Rows.of(LevelSimulations(0, theta, x)).x_coarse is None


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
    low, n = low_rows(), 4_000
    move = fit_conditional("full", LowMean.fit(low), high_rows(n))
    shift, slope, covariance = regressed(Rows(low.theta, move(low.theta, low.x)))
    # errors of the dear and the cheap rows, both n of them, at four standard errors
    error = 4 * np.sqrt(2 * HIGH_COVARIANCE.max() / n)
    assert np.allclose(shift, HIGH_SHIFT, atol=error)
    assert np.allclose(slope, HIGH_SLOPE, atol=error)
    of_covariance = 4 * np.sqrt(2 * 2 / n) * HIGH_COVARIANCE.max()
    assert np.allclose(covariance, HIGH_COVARIANCE, atol=of_covariance)


def test_shift_leaves_the_covariance_of_the_residuals():
    low = low_rows()
    move = fit_conditional("shift", LowMean.fit(low), high_rows(4_000))
    _, slope, covariance = regressed(Rows(low.theta, move(low.theta, low.x)))
    assert np.allclose(slope, HIGH_SLOPE, atol=0.13)
    assert np.allclose(covariance, regressed(low)[2], atol=1e-3)


def test_shift_recovers_an_additive_linear_change_without_noise():
    theta = np.random.default_rng(0).normal(size=(500, 2))
    low = Rows(theta, theta @ LOW_SLOPE.T + theta**2)
    change = lambda theta: theta @ HIGH_SLOPE.T + HIGH_SHIFT
    dear = np.random.default_rng(1).normal(size=(20, 2))
    high = Rows(dear, dear @ LOW_SLOPE.T + dear**2 + change(dear))
    move = fit_conditional("shift", LowMean.fit(low), high)
    moved = move(low.theta, low.x)
    assert np.allclose(moved, low.x + change(low.theta), atol=2e-3)


def scaled_rows(n, log_scale, seed):
    generator = np.random.default_rng(seed)
    theta = generator.uniform(-1, 1, size=(n, 1))
    noise = generator.normal(size=(n, 2)) * [1.0, 10.0]
    return Rows(theta, theta + np.exp(log_scale(theta)) * noise)


def test_scaled_recovers_a_scale_that_is_log_linear_in_theta():
    low = scaled_rows(4_000, lambda theta: 0.3 * theta, seed=0)
    high = scaled_rows(4_000, lambda theta: -0.5 + 1.0 * theta, seed=1)
    move = fit_conditional("scaled", LowMean.fit(low), high)
    place = np.array([[-0.8], [0.0], [0.8]]).repeat(2, axis=0)
    unit = np.tile([[0.0, 0.0], [1.0, 10.0]], (3, 1))
    ends = move(place, place + unit)
    growth = (ends[1::2] - ends[::2]) / [1.0, 10.0]
    expected = np.exp(-0.5 + 0.7 * np.array([[-0.8], [0.0], [0.8]]))
    assert np.allclose(np.log(growth), np.log(expected), atol=0.12)


def test_scaled_bounds_what_few_rows_may_claim():
    low = scaled_rows(2_000, lambda theta: 0.0 * theta, seed=0)
    high = scaled_rows(200, lambda theta: 4.0 * theta, seed=1)
    move = fit_conditional("scaled", LowMean.fit(low), high)
    growth = move.log_scale_change
    assert growth is not None
    ends = growth(np.array([[-5.0], [5.0]]))
    assert np.array_equal(ends, [[-2.0, -2.0], [2.0, 2.0]])


def test_the_spread_from_few_dear_rows_is_right_on_average():
    """Residuals of a mean fitted to eight rows are too small by three degrees."""
    low = LowMean.fit(gaussian_rows(1_000, 0 * LOW_SLOPE, np.zeros(2), np.eye(2), 0))
    variances = []
    for seed in range(100):
        high = gaussian_rows(8, 20 * np.eye(2), np.zeros(2), np.eye(2), seed + 1)
        turn = fit_conditional("full", low, high).turn
        assert turn is not None
        variances.append(np.diag(turn @ turn.T))
    error = np.std(variances) / np.sqrt(np.size(variances))
    assert np.mean(variances) == pytest.approx(1.0, abs=4 * error)
    assert error < 0.06


@pytest.mark.parametrize("kind", ("shift", "full", "scaled"))
def test_conditional_maps_use_no_pairs(kind):
    low, high = low_rows(500), high_rows(30)
    paired = Rows(high.theta, high.x, np.full_like(high.x, np.nan))
    moved = [
        fit_conditional(kind, LowMean.fit(low), rows)(low.theta, low.x)
        for rows in (high, paired)
    ]
    assert np.array_equal(*moved)


@pytest.mark.parametrize("kind", ("shift", "full", "scaled"))
@pytest.mark.parametrize("n", (2, 3, 5))
def test_few_dear_rows_give_moderate_maps(kind, n):
    low, high = low_rows(500), high_rows(n)
    moved = fit_conditional(kind, LowMean.fit(low), high)(low.theta, low.x)
    assert np.isfinite(moved).all()
    assert np.abs(moved).max() < 10 * np.abs(np.concatenate((low.x, high.x))).max()


@pytest.mark.parametrize("kind", ("shift", "full", "scaled"))
def test_a_constant_feature_stays_constant(kind):
    low, high = low_rows(500), high_rows(30)
    low.x[:, 1], high.x[:, 1] = 3.0, 3.0
    moved = fit_conditional(kind, LowMean.fit(low), high)(low.theta, low.x)
    assert np.isfinite(moved).all() and np.allclose(moved[:, 1], 3.0)


# ------------------------------------------------------------- transport


def centred(covariance, n, seed):
    """Rows whose sample covariance is exactly the one asked for, with mean 0."""
    rows = np.random.default_rng(seed).normal(size=(n, len(covariance)))
    rows = np.linalg.qr(rows - rows.mean(axis=0))[0] * np.sqrt(n - 1)
    return rows @ square_root(covariance)


def correlation(rho):
    return np.array([[1.0, rho], [rho, 1.0]])


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
    assert np.allclose(turn @ correlations[0] @ turn.T, correlations[1], atol=0.03)


def test_transport_carries_scales_of_features_exactly():
    cheap, dear = centred(correlation(0.5), 900, 0), centred(correlation(0.2), 900, 1)
    units, others = np.array([1e-4, 30.0]), np.array([5.0, 1e3])
    turn = transport(cheap, dear)
    in_units = transport(cheap * units, dear * others)
    assert np.allclose(in_units, others[:, None] * turn / units, rtol=1e-9)


def test_transport_shrinks_the_correlation_of_few_rows():
    cheap = centred(np.eye(2), 2_000, 0)
    dear = np.random.default_rng(3).multivariate_normal(
        np.zeros(2), correlation(0.8), 6
    )
    dear /= np.sqrt((dear**2).mean(axis=0))
    turn = transport(cheap, dear)
    of_rows = (dear.T @ dear / len(dear))[0, 1]
    of_turn = (turn @ turn.T)[0, 1]
    assert 0 < of_turn < 0.95 * of_rows


# ------------------------------------------------------------- paired maps

MIX = np.array([[0.8, 0.3], [-0.2, 1.1]])


def pairs(n, residual=None, seed=2):
    generator = np.random.default_rng(seed)
    theta = generator.normal(size=(n, 2))
    coarse = theta @ LOW_SLOPE.T + generator.normal(size=(n, 2))
    x = dear_from(coarse, theta)
    if residual is not None:
        x = x + generator.multivariate_normal(np.zeros(2), residual, n)
    return Rows(theta, x, coarse)


def dear_from(coarse, theta):
    return coarse @ MIX.T + theta @ HIGH_SLOPE.T + HIGH_SHIFT


@pytest.mark.parametrize("degree", (1, 2))
def test_paired_maps_are_exact_for_a_linear_relation(degree):
    low = low_rows(500)
    move = fit_paired(paired_features(low, degree), pairs(200), seed=0)
    moved = move(low.theta, low.x)
    assert np.allclose(moved, dear_from(low.x, low.theta), atol=2e-3)


def test_only_the_quadratic_map_finds_a_product():
    low, high = low_rows(500), pairs(200)
    assert high.x_coarse is not None
    product = lambda x, theta: x + x[:, :1] * theta[:, 1:]
    high = Rows(high.theta, product(high.x_coarse, high.theta), high.x_coarse)
    errors = []
    for degree in (1, 2):
        move = fit_paired(paired_features(low, degree), high, seed=0)
        gaps = move(low.theta, low.x) - product(low.x, low.theta)
        errors.append(np.sqrt((gaps**2).mean()))
    assert errors[0] > 0.5 and errors[1] < 5e-3


def test_noise_of_paired_maps_has_the_covariance_of_what_pairs_leave():
    n = 4_000
    low = low_rows(n)
    residual = np.array([[0.5, 0.3], [0.3, 0.4]])
    move = fit_paired(paired_features(low, 1), pairs(n, residual), seed=0)
    noise = move(low.theta, low.x) - dear_from(low.x, low.theta)
    error = 4 * np.sqrt(2 * 2 / n) * residual.max()
    assert np.allclose(np.cov(noise.T), residual, atol=error)
    assert np.allclose(noise.mean(axis=0), 0.0, atol=4 * np.sqrt(2 * 0.5 / n))


def test_noise_of_few_pairs_is_not_that_of_the_fit():
    """Residuals out of sample are larger than those of the rows fitted to."""
    low, high = low_rows(500), pairs(15, np.eye(2))
    move = fit_paired(paired_features(low, 1), high, seed=0)
    assert high.x_coarse is not None
    inputs = np.concatenate((high.x_coarse, high.theta), axis=1)
    fitted = high.x - high.x_coarse - move.difference(inputs)
    assert (move.residuals**2).sum() > 1.3 * (fitted**2).sum()


@pytest.mark.parametrize("process", (False, True))
def test_the_seed_sets_the_noise_of_paired_maps(process):
    low, high = low_rows(100), pairs(25, np.eye(2))

    def moved(seed):
        if process:
            return fit_process(low, high, seed)(low.theta, low.x)
        return fit_paired(paired_features(low, 1), high, seed)(low.theta, low.x)

    first = moved(0)
    assert np.array_equal(first, moved(0))
    assert not np.allclose(first, moved(1))


# ------------------------------------------------------------- process maps


def one_dimensional_pairs(n, change, noise, seed):
    generator = np.random.default_rng(seed)
    theta = generator.uniform(-2, 2, size=(n, 1))
    coarse = theta + 0.3 * generator.normal(size=(n, 1))
    x = coarse + change(theta) + noise * generator.normal(size=(n, 1))
    return Rows(theta, x, coarse)


def test_the_process_map_learns_a_crooked_difference():
    change = lambda theta: np.sin(3 * theta)
    high = one_dimensional_pairs(60, change, 0.0, seed=0)
    low = one_dimensional_pairs(300, change, 0.0, seed=1)
    x = low.x_coarse
    assert x is not None
    errors = {}
    for name, move in (
        ("process", fit_process(low, high, 0)),
        ("quadratic", fit_paired(paired_features(low, 2), high, 0)),
    ):
        gaps = move(low.theta, x) - x - change(low.theta)
        errors[name] = np.sqrt((gaps**2).mean())
    assert errors["process"] < 0.1 < 0.4 < errors["quadratic"]


def test_the_noise_of_the_process_map_is_that_of_the_pairs():
    high = one_dimensional_pairs(100, np.square, 0.4, seed=0)
    low = one_dimensional_pairs(2_000, np.square, 0.0, seed=1)
    x = low.x_coarse
    assert x is not None
    noise = fit_process(low, high, 0)(low.theta, x) - low.x
    assert noise.std() == pytest.approx(0.4, rel=4 / np.sqrt(2 * 100))


def test_the_noise_of_the_process_map_keeps_what_features_have_in_common():
    residual = 0.5 * correlation(0.9)
    low, high = low_rows(1_000), pairs(60, residual)
    noise = fit_process(low, high, 0)(low.theta, low.x) - dear_from(low.x, low.theta)
    assert np.corrcoef(noise.T)[0, 1] == pytest.approx(0.9, abs=0.1)


def test_the_process_map_uses_at_most_400_pairs(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "sbi_multilevel.alignment.process._fit_one",
        lambda inputs, column: (
            seen.append(len(inputs))
            or GaussianProcessRegressor(
                RBF() + WhiteKernel(), optimizer=None, alpha=1e-8
            ).fit(inputs, column)
        ),
    )
    move = fit_process(low_rows(50), pairs(450), 0)
    assert seen == [400, 400] and len(move.residuals) == 400


def test_leave_one_out_residuals_are_those_of_refits():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(12, 2))
    targets = np.sin(inputs[:, 0]) + 0.3 * generator.normal(size=12)
    kernel = ConstantKernel(1.5) * RBF([1.0, 2.0]) + WhiteKernel(0.2)
    make = lambda: GaussianProcessRegressor(kernel, optimizer=None, alpha=1e-8)
    expected = []
    for row in range(12):
        others = np.arange(12) != row
        fit = make().fit(inputs[others], targets[others])
        mean, deviation = fit.predict(inputs[[row]], return_std=True)
        expected.append((targets[row] - mean[0]) / deviation[0])
    assert np.allclose(_leave_one_out(make().fit(inputs, targets)), expected, rtol=1e-6)


# ------------------------------------------------------------- synthetic likelihood


def test_the_synthetic_likelihood_of_gaussian_rows_is_their_density():
    rows = gaussian_rows(8_000, HIGH_SLOPE, HIGH_SHIFT, HIGH_COVARIANCE, seed=3)
    fresh = high_rows(400)
    model = SyntheticLikelihood.fit(rows)
    residuals = fresh.x - fresh.theta @ HIGH_SLOPE.T - HIGH_SHIFT
    exact = multivariate_normal(np.zeros(2), HIGH_COVARIANCE).logpdf(residuals)
    gaps = model.log_likelihood(fresh) - exact
    # 2 % of a wide normal in each of two dimensions costs some 0.03 nats
    assert abs(gaps.mean()) < 0.05
    distances = (residuals @ np.linalg.inv(HIGH_COVARIANCE) * residuals).sum(axis=1)
    assert np.abs(gaps[distances < 4]).max() < 0.2


def test_the_synthetic_likelihood_follows_a_scale_that_depends_on_theta():
    log_scale = lambda theta: 0.8 * theta
    model = SyntheticLikelihood.fit(scaled_rows(8_000, log_scale, seed=0))
    fresh = scaled_rows(400, log_scale, seed=1)
    scale = np.exp(log_scale(fresh.theta)) * [1.0, 10.0]
    exact = norm.logpdf(fresh.x, fresh.theta, scale).sum(axis=1)
    assert abs((model.log_likelihood(fresh) - exact).mean()) < 0.05


def test_the_synthetic_likelihood_integrates_to_one():
    rows = scaled_rows(1_000, lambda theta: 0.5 * theta, seed=0)
    rows = Rows(rows.theta, np.exp(0.3 * rows.x[:, :1]))
    model = SyntheticLikelihood.fit(rows)
    grid = np.linspace(-60, 60, 24_001)[:, None]
    for place in (-0.7, 0.4):
        density = np.exp(model.log_prob(grid, np.full_like(grid, place)))
        assert trapezoid(density, grid[:, 0]) == pytest.approx(1.0, abs=5e-3)


def test_rows_beyond_all_that_were_seen_have_a_finite_density_that_falls():
    model = SyntheticLikelihood.fit(low_rows(500))
    far = np.array([[9.0, 9.0], [12.0, 12.0], [15.0, 15.0]])
    values = model.log_prob(far, np.zeros((3, 2)))
    assert np.isfinite(values).all() and (np.diff(values) < -2).all()


def linear_1d(n, seed):
    generator = np.random.default_rng(seed)
    theta = generator.normal(size=(n, 1))
    return Rows(theta, 1.5 * theta + 0.7 * generator.normal(size=(n, 1)))


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
    assert np.abs(gaps[near]).max() < 0.25


def test_the_posterior_it_implies_does_not_depend_on_units_of_x():
    many, fresh = linear_1d(1_000, 0), linear_1d(20, 1)
    ratios, densities = [], []
    for unit in (1.0, 1e3):
        model = SyntheticLikelihood.fit(Rows(many.theta, unit * many.x))
        moved = Rows(fresh.theta, unit * fresh.x)
        ratios.append(model.log_posterior_ratio(moved, many.theta))
        densities.append(model.log_likelihood(moved))
    assert np.allclose(*ratios, atol=1e-5)
    assert np.allclose(densities[0] - densities[1], np.log(1e3), atol=1e-5)


def test_the_synthetic_likelihood_has_mass_one_with_outliers_too():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(5_000, 1))
    x[:50] *= 30
    theta = generator.normal(size=(5_000, 1))
    model = SyntheticLikelihood.fit(Rows(theta, x))
    grid = np.linspace(-1_000, 1_000, 400_001)[:, None]
    density = np.exp(model.log_prob(grid, np.zeros((len(grid), 1))))
    assert trapezoid(density, grid[:, 0]) == pytest.approx(1, abs=0.03)
    far = model.log_prob(np.array([[1e4], [1e5]]), np.zeros((2, 1)))
    assert far[0] >= far[1]
