"""Weighted simulations in hybrids: a weight of two is a simulation made twice."""

import numpy as np
import pytest
import torch

from sbi_multilevel.data.simulations import LevelSimulations
from sbi_multilevel.estimators.stacking import stacking_weights
from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.fitting import MapChoice
from sbi_multilevel.level_maps.selection.cross_validation import MapScores, best_map
from sbi_multilevel.level_maps.selection.synthetic_likelihood import SyntheticLikelihood
from sbi_multilevel.methods.hybrid.pool import MapSelector, split_folds
from sbi_multilevel.methods.hybrid.weights import mixture_sample_size, mixture_weights

TWICE = np.array([2.0, 2.0, 0.0, 0.0])
REPEATED = np.array([0, 0, 1, 1])


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def level(n, seed=0, weights=None):
    theta = random(n, 1, seed=seed)
    x = theta + 0.3 * random(n, 2, seed=seed + 1)
    return LevelArrays(theta, x + 0.2, x, weights)


def test_stacking_weights():
    log_densities = random(4, 3)
    weighted = stacking_weights(log_densities, (0.5, 0.5, 0.5), TWICE)
    expected = stacking_weights(log_densities[REPEATED], (0.5, 0.5, 0.5))
    assert np.allclose(weighted, expected, atol=1e-6)


def test_weights_of_the_mixture():
    names = ("with lower levels", "high fidelity alone", "prior")
    table = random(40, 3)
    weights, repeated = np.tile(TWICE, 10), np.repeat(np.arange(40), 2)
    repeated = repeated[np.tile(TWICE, 10)[repeated] > 0]
    losses = dict(zip(names, table.T))
    found = mixture_weights(losses, weights)
    expected = mixture_weights({name: each[repeated] for name, each in losses.items()})
    assert found == pytest.approx(expected, abs=1e-6)


def test_equal_weights_change_nothing():
    names = ("with lower levels", "high fidelity alone", "prior")
    losses = dict(zip(names, random(40, 3).T))
    folds = np.array_split(np.arange(40), 5)
    half = random(40, seed=1)
    plain = mixture_sample_size(losses, half, folds)
    weighted = mixture_sample_size(losses, half, folds, np.ones(40))
    assert repr(weighted) == repr(plain)  # values may be NaN


def test_the_best_map_is_that_of_the_weighted_mean():
    none, shift, paired, other = map(
        MapChoice, ("none", "shift", "paired", "paired_quadratic")
    )

    def scores_of(score, error=None):
        error = None if error is None else np.array(error)[:, None]
        return MapScores(np.array(score), np.zeros(4), error)

    # differences of the same size at all simulations that have weight
    scores = {none: scores_of([0.0, 0.0, 9.0, 9.0]), shift: scores_of([1.0] * 4)}
    assert best_map(scores) == none
    assert best_map(scores, np.array([2.0, 2.0, 0.0, 0.0])) == shift
    scores = {
        paired: scores_of([0.0] * 4, [2.0, 2.0, 0.1, 0.1]),
        other: scores_of([0.0] * 4, [1.5, 1.5, 1.5, 1.5]),
    }
    assert best_map(scores) == paired
    assert best_map(scores, TWICE) == other


def test_the_evidence_is_that_of_weighted_draws():
    model, some = SyntheticLikelihood.fit(level(200)), level(7, seed=5)
    prior = random(4, 1, seed=3)
    weighted = model.log_posterior_ratio(some, prior, TWICE)
    expected = model.log_posterior_ratio(some, prior[REPEATED])
    assert np.allclose(weighted, expected)


def test_arrays_keep_their_weights():
    weights = np.arange(1.0, 6.0)
    arrays = level(5, weights=weights)
    assert np.array_equal(arrays[np.array([3, 1])].weights, [4.0, 2.0])
    assert np.array_equal(arrays.map_x(np.exp).weights, weights)
    assert sorted(arrays.shuffled(0).weights) == sorted(weights)
    joined = arrays.followed_by(level(2, seed=9))
    assert np.array_equal(joined.weights, [*weights, 1.0, 1.0])
    assert level(3).followed_by(level(2)).weights is None
    simulations = LevelSimulations(
        0, torch.rand(4, 1), torch.rand(4, 2), weights=torch.tensor([1.0, 1, 2, 4])
    )
    assert np.allclose(LevelArrays.of(simulations).weights, [0.5, 0.5, 1.0, 2.0])


def test_a_step_weights_held_out_simulations_in_the_order_of_their_scores():
    weights = np.random.default_rng(0).uniform(0.5, 1.5, size=20)
    low, high = level(300), level(20, seed=7, weights=weights)
    low = LevelArrays(low.theta, low.x, weights=np.ones(300))
    folds = split_folds(high.theta, 4, 0)
    step = MapSelector(("none", "shift", "paired"), "theta", None, 0).step(
        low, high, folds
    )
    assert np.array_equal(step.weights, weights[np.concatenate(folds)])
    mapped = step.map_low(high, range(4), unseen=high.theta[:0])
    assert np.array_equal(mapped.weights, low.weights)
    plain = LevelArrays(high.theta, high.x, high.x_coarse)
    assert MapSelector(("none",), "x", None, 0).step(low, plain, folds).weights is None
