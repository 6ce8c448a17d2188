"""Maps fitted to pairs, against relations that are known exactly."""

import numpy as np
import pytest
from scipy.optimize import check_grad
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import (
    RBF,
    ConstantKernel,
    DotProduct,
    WhiteKernel,
)

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.base import level_map_kind
from sbi_multilevel.level_maps.fitting import MapChoice, MapFitter
from sbi_multilevel.level_maps.process import Kernel, Process, posterior_loss
from tests.gaussian_simulations import (
    HIGH_SHIFT,
    HIGH_SLOPE,
    LOW_SLOPE,
    correlation,
    low_simulations,
    normal_noise,
)

# ------------------------------------------------------------- paired maps

MIX = np.array([[0.8, 0.3], [-0.2, 1.1]])


def fitted(kind, low, high, seed=0):
    return level_map_kind(kind).fit(low, high, seed)


def pairs(n, residual=None, seed=2):
    generator = np.random.default_rng(seed)
    theta = generator.normal(size=(n, 2))
    coarse = theta @ LOW_SLOPE.T + generator.normal(size=(n, 2))
    x = high_from(coarse, theta)
    if residual is not None:
        x = x + normal_noise(generator, residual, n)
    return LevelArrays(theta, x, coarse)


def high_from(coarse, theta):
    return coarse @ MIX.T + theta @ HIGH_SLOPE.T + HIGH_SHIFT


@pytest.mark.parametrize("kind", ("paired", "paired_quadratic"))
def test_paired_maps_are_exact_for_a_linear_relation(kind):
    low = low_simulations(500)
    move = fitted(kind, low, pairs(200))
    moved = move(low.theta, low.x)
    assert np.allclose(moved, high_from(low.x, low.theta), atol=2e-3)


def test_only_the_quadratic_map_finds_a_product():
    low, high = low_simulations(500), pairs(200)
    assert high.x_coarse is not None
    product = lambda x, theta: x + x[:, :1] * theta[:, 1:]
    high = LevelArrays(high.theta, product(high.x_coarse, high.theta), high.x_coarse)
    errors = []
    for kind in ("paired", "paired_quadratic"):
        move = fitted(kind, low, high)
        gaps = move(low.theta, low.x) - product(low.x, low.theta)
        errors.append(np.sqrt((gaps**2).mean()))
    assert errors[0] > 0.5 and errors[1] < 5e-3


@pytest.mark.parametrize("kind", ("paired", "paired_process"))
def test_a_curvature_that_high_fidelity_lacks_is_removed(kind):
    """The levels share noise; the mean of low fidelity is quadratic in theta."""
    slope = np.random.default_rng(9).normal(size=(3, 4))

    def simulations(n, seed):
        generator = np.random.default_rng(seed)
        theta, noise = generator.normal(size=(n, 3)), generator.normal(size=(n, 4))
        return theta, theta**2 @ slope + 0.3 * noise, theta @ slope + 0.3 * noise

    theta, coarse, fine = simulations(40, 0)
    high = LevelArrays(theta, fine, coarse)
    theta, coarse, fine = simulations(2_000, 1)
    low = LevelArrays(theta, coarse)
    gaps = fitted(kind, low, high)(theta, coarse) - fine
    assert np.sqrt((gaps**2).mean()) < 0.15
    assert np.sqrt(((coarse - fine) ** 2).mean()) > 1


def test_noise_of_paired_maps_has_the_covariance_of_what_pairs_leave():
    n = 4_000
    low = low_simulations(n)
    residual = np.array([[0.5, 0.3], [0.3, 0.4]])
    move = fitted("paired", low, pairs(n, residual))
    noise = move(low.theta, low.x) - high_from(low.x, low.theta)
    error = 4 * np.sqrt(2 * 2 / n) * residual.max()
    assert np.allclose(np.cov(noise.T), residual, atol=error)
    assert np.allclose(noise.mean(axis=0), 0.0, atol=4 * np.sqrt(2 * 0.5 / n))


def test_noise_of_few_pairs_is_not_that_of_the_fit():
    """Residuals out of sample are larger than those of the fit."""
    low, squares = low_simulations(500), []
    for seed in range(10):
        high = pairs(15, np.eye(2), seed)
        move = fitted("paired", low, high)
        assert high.x_coarse is not None
        inputs = np.concatenate((high.x_coarse, high.theta), axis=1)
        in_sample = high.x - high.x_coarse - move.difference(inputs)
        squares.append([(move.residuals**2).sum(), (in_sample**2).sum()])
    left_out, in_sample = np.sum(squares, axis=0)
    assert left_out > 1.3 * in_sample


@pytest.mark.parametrize("kind", ("paired", "paired_process"))
def test_the_seed_sets_the_noise_of_paired_maps(kind):
    low, high = low_simulations(100), pairs(25, np.eye(2))

    def moved(seed):
        return fitted(kind, low, high, seed)(low.theta, low.x)

    first = moved(0)
    assert np.array_equal(first, moved(0))
    assert not np.allclose(first, moved(1))


# ------------------------------------------------------------- process maps


def one_dimensional_pairs(n, change, noise, seed):
    generator = np.random.default_rng(seed)
    theta = generator.uniform(-2, 2, size=(n, 1))
    coarse = theta + 0.3 * generator.normal(size=(n, 1))
    x = coarse + change(theta) + noise * generator.normal(size=(n, 1))
    return LevelArrays(theta, x, coarse)


def test_the_process_map_learns_a_nonlinear_difference():
    change = lambda theta: np.sin(3 * theta)
    high = one_dimensional_pairs(60, change, 0.0, seed=0)
    low = one_dimensional_pairs(300, change, 0.0, seed=1)
    x = low.x_coarse
    assert x is not None
    errors = {}
    for name, move in (
        ("process", fitted("paired_process", low, high)),
        ("quadratic", fitted("paired_quadratic", low, high)),
    ):
        gaps = move(low.theta, x) - x - change(low.theta)
        errors[name] = np.sqrt((gaps**2).mean())
    assert errors["process"] < 0.1 < 0.4 < errors["quadratic"]


def test_the_noise_of_the_process_map_is_that_of_the_pairs():
    high = one_dimensional_pairs(100, np.square, 0.4, seed=0)
    low = one_dimensional_pairs(2_000, np.square, 0.0, seed=1)
    x = low.x_coarse
    assert x is not None
    noise = fitted("paired_process", low, high)(low.theta, x) - low.x
    assert noise.std() == pytest.approx(0.4, rel=4 / np.sqrt(2 * 100))


def test_the_noise_of_the_process_map_keeps_what_features_have_in_common():
    residual = 0.5 * correlation(0.9)
    low, high = low_simulations(1_000), pairs(60, residual)
    noise = fitted("paired_process", low, high)(low.theta, low.x) - high_from(
        low.x, low.theta
    )
    # 0 if each feature had its own; what 60 pairs do not show of the mean is in it
    assert np.corrcoef(noise.T)[0, 1] > 0.4


def test_the_process_map_uses_at_most_400_pairs():
    high = one_dimensional_pairs(450, np.negative, 0.4, seed=0)
    move = fitted("paired_process", high, high)
    assert [len(each.inputs) for each in move.processes] == [400]
    assert len(move.residuals) == 400


def test_the_process_map_maps_each_simulation_whatever_the_others():
    """Many are mapped a part at a time."""
    high, low = pairs(25), low_simulations(4_500)
    move = fitted("paired_process", low, high)
    move.residuals[:] = 1.0
    parts = [slice(0, 1_000), slice(1_000, None)]
    moved = [move(low.theta[rows], low.x[rows]) for rows in parts]
    assert np.allclose(move(low.theta, low.x), np.concatenate(moved), atol=1e-9)


# ------------------------------------------------------------- processes

KERNEL = Kernel(np.array([1.0, 2.0]), 0.7, 0.3)


def process_data(n=12):
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(n, 2))
    targets = np.sin(inputs[:, 0]) + 0.3 * generator.normal(size=n)
    return inputs, targets - targets.mean()


def of_sklearn(amplitude=1.0):
    kernel = (
        ConstantKernel(amplitude) * RBF(KERNEL.lengths)
        + ConstantKernel(amplitude * KERNEL.linear) * DotProduct(1.0)
        + WhiteKernel(amplitude * KERNEL.noise)
    )
    return GaussianProcessRegressor(kernel, optimizer=None, alpha=0.0)


def test_predictions_of_a_process_are_those_of_sklearn():
    inputs, targets = process_data()
    process = Process.conditioned(KERNEL, inputs, targets)
    places = np.random.default_rng(1).normal(size=(7, 2))
    expected = of_sklearn(process.amplitude).fit(inputs, targets)
    for own, other in zip(
        process.predict(places), expected.predict(places, return_std=True)
    ):
        assert np.allclose(own, other, rtol=1e-8)


def test_the_amplitude_of_a_process_has_the_most_evidence():
    inputs, targets = process_data()
    best = Process.conditioned(KERNEL, inputs, targets).amplitude
    evidence = [
        of_sklearn(factor * best).fit(inputs, targets).log_marginal_likelihood()
        for factor in (0.99, 1.0, 1.01)
    ]
    assert np.argmax(evidence) == 1


def test_the_loss_of_a_process_is_minus_evidence_and_prior():
    inputs, targets = process_data()
    losses, expected = [], []
    for length in (1.0, 3.0):
        parameters = np.log([length, 2.0, 0.7, 0.3])
        losses.append(posterior_loss(parameters, inputs, targets)[0])
        kernel = Kernel(np.array([length, 2.0]), 0.7, 0.3)
        amplitude = Process.conditioned(kernel, inputs, targets).amplitude
        fit = of_sklearn(amplitude)
        fit.kernel.k1.k1.k2.length_scale = kernel.lengths
        evidence = fit.fit(inputs, targets).log_marginal_likelihood()
        expected.append(0.5 * np.log(length / 20) ** 2 - evidence)
    assert losses[1] - losses[0] == pytest.approx(expected[1] - expected[0])


def test_the_gradient_of_the_loss_is_that_of_differences():
    inputs, targets = process_data()
    value, gradient = (
        lambda at, i=i: posterior_loss(at, inputs, targets)[i] for i in (0, 1)
    )
    for parameters in (np.zeros(4), np.log([0.5, 4.0, 0.1, 0.01])):
        assert check_grad(value, gradient, parameters) < 1e-4


def test_leave_one_out_residuals_are_those_of_refits():
    inputs, targets = process_data()
    process = Process.conditioned(KERNEL, inputs, targets)
    expected = []
    for row in range(12):
        others = np.arange(12) != row
        fit = of_sklearn(process.amplitude).fit(inputs[others], targets[others])
        mean, deviation = fit.predict(inputs[[row]], return_std=True)
        expected.append((targets[row] - mean[0]) / deviation[0])
    assert np.allclose(process.left_out(), expected, rtol=1e-6)


# ------------------------------------------------------------- pairs elsewhere


def of_region(n, low, high, seed):
    """Levels that differ by a wave in theta, on a part of its range."""
    rng = np.random.default_rng(seed)
    theta = rng.uniform(low, high, (n, 1))
    x_low = theta + 0.1 * rng.normal(size=(n, 1))
    return LevelArrays(theta, x_low + np.sin(2 * theta), x_low)


@pytest.mark.parametrize("kind", ["paired_process", "paired", "shift"])
def test_pairs_outside_of_the_region_help_maps_that_are_local(kind):
    inside, test = of_region(5, 0.0, 0.6, 0), of_region(500, 0.0, 0.6, 1)
    outside = of_region(40, -2.0, 2.0, 2)
    low = LevelArrays(test.theta, test.x_coarse)
    choice, errors = MapChoice(kind), []
    for elsewhere in (None, outside):
        level_map = MapFitter(low, elsewhere=elsewhere).fit(choice, inside)
        moved = level_map(low.theta, low.x)
        errors.append(np.abs(moved - test.x).mean())
    if kind == "paired_process":
        assert errors[1] < 0.5 * errors[0]
    else:
        assert errors[1] == errors[0]


def test_pairs_elsewhere_stay_where_low_fidelity_simulations_are_left_out():
    low, outside = of_region(20, 0.0, 0.6, 0), of_region(4, -2.0, 2.0, 2)
    fitter = MapFitter(low, elsewhere=outside).apart_from(low.theta[:3])
    assert len(fitter.low) == 17
    assert fitter.elsewhere is outside
