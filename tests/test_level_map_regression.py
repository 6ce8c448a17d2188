"""Arrays and regressions of level maps, against what is known exactly."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeCV

from sbi_multilevel import LevelSimulations
from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.regression import (
    PENALTIES,
    Design,
    Regression,
    polynomials,
)


def test_arrays_are_flat_doubles_with_their_pairs():
    theta, x = torch.rand(6, 2), torch.randn(6, 3, 4)
    level = LevelSimulations(1, theta, x, x + 0.1 * torch.randn(6, 3, 4))
    sample = LevelArrays.of(level)
    chosen = sample[np.array([4, 1])]
    assert sample.x.shape == (6, 12) and sample.x.dtype == np.float64
    assert chosen.x_coarse is not None and level.x_coarse is not None
    assert np.array_equal(chosen.theta, theta[[4, 1]].double().numpy())
    assert np.array_equal(
        chosen.x_coarse, level.x_coarse[[4, 1]].flatten(1).double().numpy()
    )
    assert (
        len(chosen) == 2
        and LevelArrays.of(LevelSimulations(0, theta, x)).x_coarse is None
    )


def test_simulations_at_other_parameters_are_kept():
    theta = np.array([[0.1, 1.0], [0.1, 2.0], [0.3, 1.0], [0.1, 2.0], [-0.0, 5.0]])
    sample = LevelArrays(theta, np.arange(5.0)[:, None])
    known = np.array([[0.1, 2.0], [0.3, 2.0], [0.0, 5.0]])
    # not 0.3, of which the second parameter is another one; -0 is not 0
    assert sample.apart_from(known).x.ravel().tolist() == [0.0, 2.0, 4.0]
    assert sample.apart_from(known[1:]) is sample
    assert sample.apart_from(theta) is sample
    assert sample.apart_from(theta[:0]) is sample


def test_what_is_known_of_theta_is_shared_by_other_outputs():
    sample, calls = LevelArrays(np.ones((3, 1)), np.ones((3, 2))), []
    total = lambda theta, power: calls.append(power) or (theta**power).sum()
    for each in (sample, sample.with_x(np.zeros((3, 2))), sample.map_x(np.negative)):
        assert each.of_theta(total, 2) == 3.0
    assert calls == [2]
    assert sample[np.array([0])].of_theta(total, 2) == 1.0


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


def test_regression_on_fewer_than_four_simulations_is_their_mean():
    inputs, targets = np.arange(6.0).reshape(3, 2), np.array([[1.0], [2.0], [6.0]])
    fit = Regression.fit(polynomials(inputs, 1), inputs, targets)
    assert np.allclose(fit(np.zeros((5, 2))), np.full((5, 1), 3.0))


def many_rows(n, noise):
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(n, 3))
    slopes = generator.normal(size=(3, 4))
    return inputs, inputs @ slopes + noise * generator.normal(size=(n, 4)) + 7.0


@pytest.mark.parametrize("noise", (0.1, 3.0, 300.0))
def test_many_rows_give_the_ridge_regression_of_sklearn(noise):
    inputs, targets = many_rows(3_000, noise)
    features = polynomials(inputs, 2)
    design, scale = features.transform(inputs), targets.std(axis=0)
    fit = Regression.fit(features, inputs, targets)
    expected = Ridge(fit.penalty).fit(design, targets)
    assert np.allclose(fit(inputs), expected.predict(design))
    # generalized cross-validation and leave-one-out differ by a step at most
    chosen = RidgeCV(PENALTIES).fit(design, targets / scale).alpha_
    assert abs(np.log(fit.penalty / chosen)) < 1.1 * np.log(PENALTIES[1] / PENALTIES[0])


def test_the_score_of_a_penalty_is_that_of_generalized_cross_validation():
    inputs, targets = many_rows(2_500, 300.0)
    features = polynomials(inputs, 2)
    targets = (targets - targets.mean(axis=0)) / targets.std(axis=0)
    design = features.transform(inputs)
    centered = design - design.mean(axis=0)
    scores = []
    for penalty in PENALTIES:
        inverse = np.linalg.inv(centered.T @ centered + penalty * np.eye(9))
        freedom = 1 + np.trace(centered @ inverse @ centered.T)
        residuals = targets - Ridge(penalty).fit(design, targets).predict(design)
        scores.append((residuals**2).sum() / (1 - freedom / 2_500) ** 2)
    chosen = Regression.fit(features, inputs, targets).penalty
    assert chosen == PENALTIES[np.argmin(scores)]


def test_features_of_many_rows_are_computed_a_block_at_a_time(monkeypatch):
    inputs, targets = many_rows(3_000, 1.0)
    whole = Design.of(inputs, 2)
    fit = whole.fit(targets)
    monkeypatch.setattr("sbi_multilevel.level_maps.regression._BLOCK", 700)
    parts = Design.of(inputs, 2)
    again = parts.fit(targets)
    assert again.penalty == fit.penalty
    assert np.allclose(parts.predict(again), whole.predict(fit), rtol=1e-9)
    assert "_matrix" not in vars(parts)


# ------------------------------------------------------------- conditional maps


def test_leave_one_out_residuals_of_a_regression_are_those_of_refits():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(12, 2))
    targets = inputs @ generator.normal(size=(2, 3)) + generator.normal(size=(12, 3))
    features = polynomials(inputs, 2)
    regression = Regression.fit(features, inputs, targets)
    residuals = regression.left_out(inputs, targets)
    design = features.transform(inputs)
    for row in range(12):
        kept = np.arange(12) != row
        refit = Ridge(regression.penalty).fit(design[kept], targets[kept])
        expected = targets[row] - refit.predict(design[[row]])[0]
        assert residuals[row] == pytest.approx(expected, rel=1e-6)


def test_leverages_are_the_diagonal_of_the_hat_matrix():
    generator = np.random.default_rng(0)
    inputs, targets = generator.normal(size=(12, 2)), generator.normal(size=(12, 3))
    features = polynomials(inputs, 2)
    regression = Regression.fit(features, inputs, targets)
    hat = Ridge(regression.penalty).fit(features.transform(inputs), np.eye(12))
    leverages = regression.leverage(inputs)(inputs)
    assert np.allclose(leverages, np.diag(hat.predict(features.transform(inputs))))


@pytest.mark.parametrize("num_features", (3, 20))
def test_leverages_are_those_of_the_inverse_matrix(num_features):
    """Also in directions in which the simulations do not vary."""
    draw = np.random.default_rng(0).normal
    inputs, others = draw(size=(12, num_features)), draw(size=(5, num_features))
    features = polynomials(draw(size=(50, num_features)), 1)
    regression = Regression.fit(features, inputs, draw(size=(12, 2)) + inputs[:, :2])
    design, new = features.transform(inputs), features.transform(others)
    new, design = new - design.mean(axis=0), design - design.mean(axis=0)
    matrix = design.T @ design + regression.penalty * np.eye(num_features)
    expected = 1 / 12 + np.diag(new @ np.linalg.inv(matrix) @ new.T)
    assert np.allclose(regression.leverage(inputs)(others), expected)


def test_leverages_of_a_mean_are_one_over_the_number():
    inputs, targets = np.arange(6.0).reshape(3, 2), np.array([[1.0], [2.0], [6.0]])
    regression = Regression.fit(polynomials(inputs, 1), inputs, targets)
    assert np.allclose(regression.leverage(inputs)(100 * inputs), 1 / 3)


def test_leverages_of_many_inputs_are_computed_in_blocks():
    inputs, targets = many_rows(30, 1.0)
    leverage = Regression.fit(polynomials(inputs, 1), inputs, targets).leverage(inputs)
    repeated = leverage(np.tile(inputs, (1_000, 1)))
    assert np.allclose(repeated, np.tile(leverage(inputs), 1_000))
