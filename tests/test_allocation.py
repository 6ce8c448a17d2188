"""Allocation against brute force, and the advice about levels."""

import time
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbi_multilevel.allocation.advice import advise
from sbi_multilevel.allocation.optimal import (
    allocate,
    real_allocation,
    simulation_costs,
)


def best_by_brute_force(unit, variances, budget, least):
    """Least variance over all integers; level 0 gets the remaining budget."""
    ranges = [
        range(m, int((budget - unit @ least) / c + m + 1e-9) + 1)
        for m, c in zip(least[1:], unit[1:])
    ]
    best = np.inf
    for upper in product(*ranges):
        n_0 = int((budget - unit[1:] @ np.array(upper, float)) / unit[0] + 1e-9)
        if n_0 >= least[0]:
            rows = np.array([n_0, *upper])
            best = min(best, float((variances / rows).sum()))
    return best


def small_problem(rng, trial):
    """Costs, variances, budget and minimum of a problem for exhaustive search."""
    levels = int(rng.integers(1, 5))
    costs = np.sort(rng.exponential(size=levels) * 10 ** rng.uniform(-1, 1) + 0.05)
    if trial % 3 == 0:  # ties and exact sums
        costs = np.sort(rng.integers(1, 8, levels)).astype(float)
    variances = 10 ** rng.uniform(-3, 1, levels) * (rng.random(levels) > 0.1)
    least = rng.integers(1, 5, levels)
    needed = float(np.array(simulation_costs(costs)) @ least)
    budget = needed * rng.uniform(1, (200, 40, 8, 4)[levels - 1])
    return costs, variances, budget, least


def test_allocation_is_within_one_percent_of_brute_force():
    rng = np.random.default_rng(0)
    ratios = [1.0]
    for trial in range(200):
        costs, variances, budget, least = small_problem(rng, trial)
        unit = np.array(simulation_costs(costs))
        numbers = np.array(allocate(costs, variances, budget, least))
        assert (numbers >= least).all() and unit @ numbers <= budget * (1 + 1e-9)
        expected = best_by_brute_force(unit, variances, budget, least)
        if expected > 0:
            ratios.append((variances / numbers).sum() / expected)
    assert max(ratios) < 1.01
    # in these problems it is the best one, but for rounding
    assert max(ratios) < 1 + 1e-9


def test_many_simulations_follow_the_closed_form():
    # n_l = B sqrt(V_l / c_l) / sum sqrt(V_k c_k), with the cost of a pair
    costs, variances, budget = (1.0, 10.0, 100.0), (4.0, 1.0, 0.25), 1e7
    unit = np.array(simulation_costs(costs))
    assert unit.tolist() == [1.0, 11.0, 110.0]
    rule = budget * np.sqrt(variances / unit) / np.sqrt(unit * variances).sum()
    assert np.allclose(allocate(costs, variances, budget), rule, rtol=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    costs=st.lists(st.floats(0.1, 100), min_size=1, max_size=5),
    variances=st.lists(st.floats(0, 10), min_size=5, max_size=5),
    factor=st.floats(1, 1_000),
)
def test_budget_is_never_exceeded_and_mostly_spent(costs, variances, factor):
    unit = np.array(simulation_costs(costs))
    budget = 2 * unit.sum() * factor
    rows = np.array(allocate(costs, variances[: len(costs)], budget))
    assert (rows >= 2).all() and unit @ rows <= budget * (1 + 1e-9)
    useful = np.array(variances[: len(costs)]) > 0
    if useful.any():
        assert budget - unit @ rows < unit[useful].min() * (1 + 1e-9)


def test_water_filling_agrees_with_a_hand_calculation():
    # level 1 would get 5, but has 8: level 0 gets the remaining budget, 20 - 16
    rows = real_allocation(
        np.array([1.0, 2.0]), np.array([4.0, 0.5]), np.array([2, 8]), 20.0
    )
    assert rows.tolist() == [4.0, 8.0]


def test_levels_without_variance_get_the_minimum():
    assert allocate((1.0, 10.0), (1.0, 0.0), 100.0) == (78, 2)
    assert allocate((1.0, 10.0), (0.0, 0.0), 100.0, minimum=(7, 3)) == (7, 3)


def test_decimal_costs_are_not_lost_to_rounding():
    assert allocate((0.1,), (1.0,), 10.0) == (100,)


@pytest.mark.parametrize(
    "costs, variances",
    [
        ((1, 10), (4, 1)),
        ((1, 10, 100), (4, 1, 0.1)),
        ((1, 1, 1), (1, 1, 1)),
        ((1, 4, 16, 64, 256), (4, 1, 0.25, 0.06, 0.015)),
    ],
)
def test_ten_million_simulations_are_allocated_quickly(costs, variances):
    start = time.perf_counter()
    rows = allocate(costs, variances, 3e7)
    assert time.perf_counter() - start < 2 and max(rows) > 2e6


@pytest.mark.parametrize(
    "changes, named",
    [
        (dict(budget=23.9), "minimum of .* simulations costs 24"),
        (dict(budget=float("nan")), "budget=nan"),
        (dict(costs=(0.0, 10.0)), "costs"),
        (dict(costs=()), "costs"),
        (dict(variances=(1.0,)), "variances must hold 2"),
        (dict(variances=(1.0, -1.0)), "variances"),
        (dict(variances=(1.0, float("nan"))), "more pilot simulations"),
        (dict(minimum=0), "minimum"),
        (dict(minimum=2.5), "minimum"),
    ],
)
def test_bad_arguments_raise_with_their_name(changes, named):
    arguments = dict(costs=(1.0, 10.0), variances=(1.0, 1.0), budget=100.0, minimum=2)
    with pytest.raises(ValueError, match=named):
        allocate(**{**arguments, **changes})


# Advice

HEALTHY = ((1.0,), (0.1, 1.0), (0.1, 0.01, 1.0))
USELESS_MIDDLE = ((1.0,), (0.01, 1.0), (0.01, 0.01, 1.0))
USELESS_BELOW = ((1.0,), (2.0, 1.0), (2.0, 2.0, 1.0))


def test_advice_is_silent_where_all_levels_help():
    advice = advise((1.0, 10.0, 100.0), HEALTHY, 1e4)
    assert advice.warning is None and advice.best is advice.full
    assert "All levels are useful." in str(advice)
    assert advice.gain > 5 and advice.loss == 1


def test_advice_reports_a_useless_middle_level():
    advice = advise((1.0, 90.0, 100.0), USELESS_MIDDLE, 1e4)
    assert advice.best.levels == (0, 2)
    assert advice.warning.startswith("Level 1 is not useful: at equal cost")


def test_advice_reports_plain_simulation():
    advice = advise((1.0, 10.0, 100.0), USELESS_BELOW, 1e4, support=0.97)
    assert advice.best is advice.plain and advice.gain < 1
    assert "Plain high-fidelity simulation is best (97% of resamples agree)" in (
        advice.warning
    )
    assert "100 simulations of level 2" in advice.warning


def test_uncertain_advice_does_not_warn():
    advice = advise((1.0, 90.0, 100.0), USELESS_MIDDLE, 1e4, support=0.7)
    assert advice.warning is None
    assert "Uncertain, use more pilot simulations: Level 1 is not" in str(advice)


def test_advice_agrees_with_allocations():
    costs, budget = (1.0, 10.0, 100.0), 1e7
    for plan in advise(costs, HEALTHY, budget).plans:
        chosen = [costs[level] for level in plan.levels]
        rows = allocate(chosen, plan.variances, budget)
        reached = (np.array(plan.variances) / rows).sum()
        assert reached == pytest.approx(plan.error_variance, rel=1e-3)
        assert plan.costs == simulation_costs(chosen)


@pytest.mark.parametrize(
    "changes, named",
    [
        (dict(difference_variances=HEALTHY[:2]), "difference_variances has 2 entries"),
        (
            dict(difference_variances=((1.0,),) * 3),
            "difference_variances\\[1\\] must hold 2",
        ),
        (dict(budget=0.0), "budget"),
        (dict(costs=(1.0, 2.0, -1.0)), "costs"),
    ],
)
def test_bad_arguments_of_advice_raise_with_their_name(changes, named):
    arguments = dict(costs=(1.0, 2.0, 3.0), difference_variances=HEALTHY, budget=100.0)
    with pytest.raises(ValueError, match=named):
        advise(**{**arguments, **changes})
