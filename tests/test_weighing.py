"""Weights of the components of a hybrid, and what its lower levels were worth."""

import numpy as np
import pytest

from sbi_multilevel.methods.hybrid.weights import (
    ALONE,
    POOLED,
    PRIOR,
    weigh,
    worth_of_lower_levels,
)

NUM_ROWS = 40
FOLDS = np.array_split(np.arange(NUM_ROWS), 5)


def components(pooled, alone, prior=0.0, noise=1.0, seed=0):
    generator = np.random.default_rng(seed)
    means = {POOLED: pooled, ALONE: alone, PRIOR: prior}
    return {
        name: mean + noise * generator.normal(size=NUM_ROWS)
        for name, mean in means.items()
        if mean is not None
    }


def test_the_best_component_has_all_but_the_share_of_the_prior():
    weights = weigh(components(pooled=-2.0, alone=0.0))
    assert weights == {
        POOLED: pytest.approx(NUM_ROWS / (NUM_ROWS + 1)),
        PRIOR: pytest.approx(1 / (NUM_ROWS + 1)),
    }


def test_likelihoods_have_no_prior_to_share_with():
    weights = weigh(components(pooled=-2.0, alone=0.0, prior=None))
    assert weights == {POOLED: pytest.approx(1.0)}


@pytest.mark.parametrize("better", (ALONE, PRIOR))
def test_lower_levels_that_are_seen_to_do_harm_lose_their_weight(better):
    losses = {"pooled": 3.0, "alone": 3.0, "prior": 3.0}
    losses["alone" if better == ALONE else "prior"] = 0.0
    weights = weigh(components(**losses, noise=0.3))
    assert weights[better] > 0.9


def test_gains_within_their_standard_error_change_nothing():
    # the prior is better on one row only
    table = components(pooled=0.0, alone=5.0, prior=1.0, noise=0.0)
    table[POOLED][0] = 1.5
    weights = weigh(table)
    assert weights[PRIOR] == pytest.approx(1 / (NUM_ROWS + 1))


def test_weights_sum_to_one_whatever_the_losses():
    for seed in range(20):
        weights = weigh(components(0.5, 0.0, 0.2, noise=2.0, seed=seed))
        assert sum(weights.values()) == pytest.approx(1.0)


def test_lower_levels_are_worth_the_log_score_that_they_add():
    table = components(pooled=-1.0, alone=0.0, prior=None, noise=0.0)
    half = np.full(NUM_ROWS, 2.0)
    worth = worth_of_lower_levels(table, half, FOLDS)
    assert worth.gain == pytest.approx(1.0) and worth.gain_error < 1e-9
    # l(n) = 2 n / 40 ... : a / n = 2, so that the limit is -2, and 1 is left of it
    assert worth.estimate == pytest.approx(2 * NUM_ROWS)


def test_lower_levels_that_do_harm_are_worth_nothing():
    table = components(pooled=3.0, alone=0.0, prior=1.0, noise=0.3)
    half = table[ALONE] + 0.5
    worth = worth_of_lower_levels(table, half, FOLDS)
    assert abs(worth.gain) < 0.15
    assert worth.estimate == pytest.approx(NUM_ROWS, rel=0.3)
