"""Formulas of bias and variance against repeated draws, and exact values."""

import math

import numpy as np
import pytest
from scipy.integrate import dblquad
from scipy.stats import norm

from sbi_multilevel_benchmarks.records import over_seeds
from sbi_multilevel_benchmarks.worked_example import (
    METHODS,
    Levels,
    compare,
    example_table,
    excess,
    fit,
    formulas,
    minimum,
)

EXACT = np.array([0.5, 0.0, 0.5 * math.log(0.5)])  # theta | x ~ N(x / 2, 1 / 2)


def test_the_exact_posterior_has_no_excess():
    assert excess(EXACT) == pytest.approx(0, abs=1e-12)
    assert excess(EXACT + 0.1) > 0.01


def test_the_excess_is_the_expected_divergence():
    phi = np.array([0.6, 0.2, -0.1])

    def divergence(theta, x):
        exact = norm.logpdf(theta, x / 2, math.sqrt(0.5))
        other = norm.logpdf(theta, phi[0] * x + phi[1], math.exp(phi[2]))
        density = norm.pdf(theta) * norm.pdf(x, theta)
        return density * (exact - other)

    expected, _ = dblquad(divergence, -9, 9, -7, 7, epsabs=1e-6)
    assert excess(phi) == pytest.approx(expected, abs=1e-4)


def test_the_minimum_of_the_moments_is_a_regression():
    # moments of (1, x, theta) at level 1
    found = minimum(np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 1.0], [0.0, 1.0, 1.0]]))
    assert found == pytest.approx(EXACT)


@pytest.mark.parametrize("variance_of_x, cross", [(-0.1, 0.0), (2.0, 1.5)])
def test_moments_of_no_distribution_have_no_minimum(variance_of_x, cross):
    of = np.array([[1.0, 0.0, 0.0], [0.0, variance_of_x, cross], [0.0, cross, 1.0]])
    assert minimum(of) is None


LEVELS = [
    Levels(),
    Levels(offset=0.3),
    Levels(offset=0.3, correlation=0.5),
    Levels(gain=0.8, correlation=0.0),
]


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_formulas_agree_with_repeated_draws(levels):
    found = compare(levels, num_low=2_000, num_high=500, repeats=1_500)
    expected = formulas(levels, 2_000, 500)
    for method in ("plain", "low", "multilevel"):
        mean = over_seeds(found[method])
        # first order in 1 / n, so that a tenth remains
        tolerance = 4 * mean.standard_error + 0.1 * expected[method]
        assert mean.mean == pytest.approx(expected[method], abs=tolerance), method
    assert all(len(found[method]) == 1_500 for method in METHODS)


def test_a_map_of_levels_that_determine_each_other_needs_few_pairs():
    rng = np.random.default_rng(0)
    levels = Levels(gain=-2.0, offset=5.0)  # x_1 is a function of x_0 and theta
    draws = [
        fit(levels.simulate(20_000, rng), levels.simulate(4, rng), rng)
        for _ in range(20)
    ]
    assert max(excess(each["map"]) for each in draws) < 0.003
    assert min(excess(each["low"]) for each in draws) > 1


def test_few_pairs_of_reversed_levels_leave_the_multilevel_loss_unbounded():
    rng, levels = np.random.default_rng(0), Levels(gain=-1.0)
    found = [
        fit(levels.simulate(1_000, rng), levels.simulate(10, rng), rng)
        for _ in range(100)
    ]
    missing = sum(each["multilevel"] is None for each in found)
    assert 20 < missing < 100
    assert all(each["plain"] is not None for each in found)


def test_the_table_counts_draws_without_a_minimum():
    levels = {"same": Levels(), "reversed": Levels(gain=-1.0)}
    table = example_table(1_000, 10, 50, levels)
    assert table.header == ("level 0", *METHODS)
    same, other = table.rows
    assert "without minimum" not in " ".join(same)
    assert "without minimum" in other[1 + METHODS.index("multilevel")]
