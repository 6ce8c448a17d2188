"""Weights of a mixture."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from sbi_multilevel.estimators.stacking import stacking_weights


def objective(weights, log_densities, counts):
    mixed = logsumexp(log_densities + np.log(weights), axis=1)
    return mixed.sum() + np.sum(np.asarray(counts) * np.log(weights))


def test_one_component_has_all_the_weight():
    assert stacking_weights(np.array([[-3.0], [-900.0]]), (0.5,)) == pytest.approx([1])


def test_equal_components_share_by_their_pseudo_counts():
    table = np.random.default_rng(0).normal(size=(30, 1)).repeat(3, axis=1)
    assert np.allclose(stacking_weights(table, (0.5, 0.5, 0.5)), 1 / 3)
    assert np.allclose(
        stacking_weights(table, (1.0, 2.0, 5.0)), np.array([1, 2, 5]) / 8
    )


def test_weights_without_simulations_are_the_mode_of_the_prior():
    assert np.allclose(stacking_weights(np.empty((0, 2)), (1.0, 3.0)), [0.25, 0.75])


def test_disjoint_components_share_by_counts():
    table = np.full((10, 2), -np.inf)
    table[:7, 0], table[7:, 1] = -3.0, -8.0
    assert np.allclose(stacking_weights(table, (0.5, 0.5)), [7.5 / 11, 3.5 / 11])


@pytest.mark.parametrize("counts", ((0.5, 0.5), (0.1, 2.0)))
@pytest.mark.parametrize("size", (4, 100))
def test_two_components_get_the_weights_of_the_optimum(counts, size):
    generator = np.random.default_rng(size)
    table = generator.normal([0.0, -0.3], [1.0, 1.5], size=(size, 2)) - 700.0
    table[0, 1] = -np.inf
    found = minimize_scalar(
        lambda w: -objective(np.array([w, 1 - w]), table, counts),
        bounds=(1e-9, 1 - 1e-9),
        method="bounded",
        options={"xatol": 1e-12},
    )
    assert stacking_weights(table, counts)[0] == pytest.approx(found.x, abs=1e-6)


def test_many_components_meet_the_conditions_of_the_optimum():
    """All derivatives of the objective are equal where weights are positive."""
    table = np.random.default_rng(0).normal(size=(50, 5))
    counts = np.array([0.5, 0.5, 1.0, 0.1, 2.0])
    weights = stacking_weights(table, counts)
    mixed = logsumexp(table + np.log(weights), axis=1, keepdims=True)
    slopes = np.exp(table - mixed).sum(axis=0) + counts / weights
    assert weights.sum() == pytest.approx(1.0)
    assert np.allclose(slopes, 50 + counts.sum(), rtol=1e-5)


def test_pseudo_counts_keep_the_worst_component_in_play():
    table = np.stack([np.zeros(20), np.full(20, -1e4)], axis=1)
    assert stacking_weights(table, (0.5, 0.5))[1] == pytest.approx(0.5 / 21)
    assert stacking_weights(table, (0.0, 0.0))[1] == 0.0


def test_log_densities_of_any_size_are_fine():
    table = np.random.default_rng(0).normal(size=(20, 2))
    shifts = np.linspace(-1e5, 1e5, 20)[:, None]
    expected = stacking_weights(table, (0.5, 0.5))
    assert np.allclose(stacking_weights(table + shifts, (0.5, 0.5)), expected)
