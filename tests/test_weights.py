"""Weights of the components of a mixture, and its effective sample size."""

import numpy as np
import pytest

from sbi_multilevel.methods.hybrid.weights import (
    ALONE,
    POOLED,
    PRIOR,
    mixture_sample_size,
    mixture_weights,
)

NUM_HIGH = 40
FOLDS = np.array_split(np.arange(NUM_HIGH), 5)


def components(pooled, alone, prior=0.0, noise=1.0, seed=0):
    generator = np.random.default_rng(seed)
    means = {POOLED: pooled, ALONE: alone, PRIOR: prior}
    return {
        name: mean + noise * generator.normal(size=NUM_HIGH)
        for name, mean in means.items()
        if mean is not None
    }


def test_the_best_component_has_all_but_the_share_of_the_prior():
    weights = mixture_weights(components(pooled=-2.0, alone=0.0))
    assert weights == {
        POOLED: pytest.approx(NUM_HIGH / (NUM_HIGH + 1)),
        PRIOR: pytest.approx(1 / (NUM_HIGH + 1)),
    }


def test_without_a_prior_the_best_component_has_all_weight():
    weights = mixture_weights(components(pooled=-2.0, alone=0.0, prior=None))
    assert weights == {POOLED: pytest.approx(1.0)}


@pytest.mark.parametrize("better", (ALONE, PRIOR))
def test_harmful_lower_levels_lose_their_weight(better):
    losses = {"pooled": 3.0, "alone": 3.0, "prior": 3.0}
    losses["alone" if better == ALONE else "prior"] = 0.0
    weights = mixture_weights(components(**losses, noise=0.3))
    assert weights[better] > 0.9


def test_gains_within_their_standard_error_change_nothing():
    # the prior is better at one simulation only
    table = components(pooled=0.0, alone=5.0, prior=1.0, noise=0.0)
    table[POOLED][0] = 1.5
    weights = mixture_weights(table)
    assert weights[PRIOR] == pytest.approx(1 / (NUM_HIGH + 1))


def test_weights_sum_to_one():
    for seed in range(20):
        weights = mixture_weights(components(0.5, 0.0, 0.2, noise=2.0, seed=seed))
        assert sum(weights.values()) == pytest.approx(1.0)


def test_the_effective_sample_size_follows_from_the_gain():
    table = components(pooled=-1.0, alone=0.0, prior=None, noise=0.0)
    half = np.full(NUM_HIGH, 2.0)
    size = mixture_sample_size(table, half, FOLDS)
    assert size.gain == pytest.approx(1.0) and size.gain_error < 1e-9
    # a / n = 2, so the limit of the loss is -2, and the loss is 1 above it
    assert size.estimate == pytest.approx(2 * NUM_HIGH)


def test_harmful_lower_levels_do_not_change_the_effective_sample_size():
    table = components(pooled=3.0, alone=0.0, prior=1.0, noise=0.3)
    half = table[ALONE] + 0.5
    size = mixture_sample_size(table, half, FOLDS)
    assert abs(size.gain) < 0.15
    assert size.estimate == pytest.approx(NUM_HIGH, rel=0.3)
