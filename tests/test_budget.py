"""Budgets: never exceeded, resumed without repetition, with advice about levels."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sbi.inference import NLE

from sbi_multilevel.allocation.optimal import simulation_costs
from sbi_multilevel.allocation.spending import simulate_budget
from tests.exact_likelihood import trained
from tests.linear_gaussian import SIMULATORS, SilentTracker, noise, prior

COSTS = (1.0, 5.0, 20.0)
PILOT = (60, 30, 20)
# 60 + 30 (5 + 1) + 20 (20 + 5), and level 0 at theta of level 2
PILOT_COST = 760.0


def run(budget=4_000.0, rows=PILOT, **options):
    arguments = dict(
        simulators=SIMULATORS,
        prior=prior(),
        noise=noise,
        inference=trained(),
        costs=COSTS,
        show_progress_bars=False,
    )
    with warnings.catch_warnings():
        # level 0 of this problem is not useful
        warnings.filterwarnings("ignore", message="Level 0 is not useful")
        warnings.filterwarnings("ignore", message="Plain high-fidelity")
        return simulate_budget(
            budget=budget, pilot_simulations=rows, **{**arguments, **options}
        )


class Counting:
    """Counts its simulations, and can raise an interrupt."""

    def __init__(self, level, stop_after=None):
        self.level, self.rows, self.stop_after = level, 0, stop_after
        self.__name__ = f"level {level}"

    def __call__(self, theta, u):
        if self.stop_after is not None and self.rows >= self.stop_after:
            raise KeyboardInterrupt
        self.rows += len(theta)
        return SIMULATORS[self.level](theta, u)


def counting(**stops):
    return tuple(Counting(level, stops.get(f"level_{level}")) for level in range(3))


def assert_same(a, b):
    for left, right in zip(a.simulations, b.simulations, strict=True):
        assert torch.equal(left.theta, right.theta) and torch.equal(left.x, right.x)


@settings(max_examples=6, deadline=None)
@given(
    budget=st.floats(800.0, 5_000.0),
    costs=st.tuples(st.floats(0.1, 3), st.floats(0.1, 5), st.floats(1, 20)),
)
def test_a_budget_is_never_exceeded_and_mostly_spent(budget, costs):
    rows = (10, 10, 10)
    pilot_cost = np.dot(simulation_costs(costs), rows) + 10 * costs[0]
    if budget < pilot_cost:
        with pytest.raises(ValueError, match="below the cost of the pilot"):
            run(budget, rows, costs=costs)
        return
    done = run(budget, rows, costs=costs)
    n = np.array(done.num_simulations)
    assert (n >= 10).all() and n.tolist() == list(done.simulations.num_simulations)
    spent = np.dot(simulation_costs(costs), n) + 10 * costs[0]
    assert done.spent == pytest.approx(spent)
    assert done.spent <= budget * (1 + 1e-9)
    assert budget - done.spent < max(simulation_costs(costs))


def test_the_spent_budget_is_the_cost_of_all_runs():
    simulators = counting()
    done = run(simulators=simulators)
    calls = np.array([simulator.rows for simulator in simulators])
    assert done.spent == pytest.approx(float(calls @ COSTS))
    # no simulation is repeated in memory either
    n = done.num_simulations
    assert calls.tolist() == [n[0] + n[1] + PILOT[2], n[1] + n[2], n[2]]
    assert len(done.steps) == 2 and done.steps[1].num_simulations == n
    halfway = np.dot(simulation_costs(COSTS), done.steps[0].num_simulations) + PILOT[2]
    assert halfway == pytest.approx((4_000 + PILOT_COST) / 2, abs=25)


def test_the_second_step_uses_all_simulations():
    done = run()
    assert done.steps[0].variances == done.pilot.variances
    assert done.steps[1].variances == done.estimates.variances != done.pilot.variances
    assert done.pilot.cost == PILOT_COST


def test_runs_are_the_same_by_seed():
    first = run()
    assert_same(first, run())
    assert run(seed=1).num_simulations != first.num_simulations


# the highest level is not simulated again unless the budget is large
@pytest.mark.parametrize(
    ("stop", "budget"),
    [(dict(level_1=40), 1_200), (dict(level_2=20), 4_000), (dict(level_0=90), 1_200)],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, stop, budget):
    pytest.importorskip("zarr")
    store = tmp_path / "run.zarr"
    options = dict(budget=budget, simulation_batch_size=20)
    first, second = counting(**stop), counting()
    with pytest.raises(KeyboardInterrupt):
        run(simulators=first, store=store, **options)
    resumed = run(simulators=second, store=store, **options)
    plain = run(**options)
    assert_same(resumed, plain)
    assert resumed.num_simulations == plain.num_simulations
    assert resumed.steps == plain.steps and resumed.spent == plain.spent
    # at most one batch and one extra run of the pilot are repeated
    expected = [n + m for n, m in zip(plain.num_simulations, plain.num_simulations[1:])]
    expected = [expected[0] + PILOT[2], expected[1], plain.num_simulations[2]]
    calls = [a.rows + b.rows for a, b in zip(first, second)]
    assert all(c <= e + max(20, PILOT[2]) for c, e in zip(calls, expected))


def test_a_finished_run_is_read_and_a_larger_budget_adds_simulations(tmp_path):
    pytest.importorskip("zarr")
    store = tmp_path / "run.zarr"
    done = run(1_500.0, store=store)
    again = run(1_500.0, store=store)
    assert_same(done, again)
    assert again.steps == done.steps
    more = run(3_000.0, store=store)
    n, m = np.array(done.num_simulations), np.array(more.num_simulations)
    assert (m >= n).all() and 2_975 < more.spent <= 3_000
    for few, many in zip(done.simulations, more.simulations):
        assert torch.equal(few.x, many.x[: len(few)])
    # a smaller budget keeps the existing simulations
    assert run(1_000.0, store=store).num_simulations == more.num_simulations


def test_measured_costs_are_updated_between_steps(clock):
    class Slow:
        def __init__(self, level, seconds):
            self.level, self.seconds = level, seconds

        def __call__(self, theta, u):
            clock.sleep(self.seconds * len(theta))
            return SIMULATORS[self.level](theta, u)

    simulators = (Slow(1, 2e-4), Slow(2, 2e-3))
    done = run(0.6, (20, 20), simulators=simulators, costs=None)
    assert len(done.steps) == 3 and done.simulations.costs == done.estimates.costs
    assert 0.45 < done.spent < 0.66
    with pytest.raises(ValueError, match="below the cost of the pilot"):
        run(0.03, (20, 20), simulators=simulators, costs=None)


def test_failed_simulations_count_as_spent():
    def failing(theta, u):
        x = SIMULATORS[2](theta, u)
        return torch.where(theta[:, :1] > 1.0, torch.nan, x)

    with pytest.warns(UserWarning, match="simulations of level 2: NaN"):
        done = run(simulators=(*SIMULATORS[:2], failing))
    assert done.simulations.num_simulations[2] < done.num_simulations[2]
    n = np.array(done.num_simulations)
    assert done.spent == np.dot(simulation_costs(COSTS), n) + PILOT[2] <= 4_000


class Off:
    """The highest level with an error in its matrix."""

    def __init__(self, gap):
        self.gap = gap

    def __call__(self, theta, u):
        return SIMULATORS[2](theta, u) + self.gap * theta


def test_only_a_useless_level_is_reported():
    def spend(*gaps, costs):
        return simulate_budget(
            (*(Off(gap) for gap in gaps), SIMULATORS[2]),
            prior(),
            20_000.0,
            (200, 60, 60),
            noise=noise,
            inference=trained(),
            costs=costs,
            show_progress_bars=False,
        )

    with pytest.warns(UserWarning, match="Level 1 is not useful"):
        done = spend(0.2, 0.19, costs=(1.0, 45.0, 50.0))
    # all levels are used in spite of the warning
    assert len(done.simulations) == 3 and "Level 1 is not useful" in str(done)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = spend(0.2, 0.04, costs=(0.1, 5.0, 50.0))
    assert "All levels are useful." in str(done)
    assert f"of 20000 on {done.num_simulations} simulations" in str(done)


def test_the_norm_method_needs_no_trainer():
    done = run(inference=None, method="norm")
    # every simulator once more at theta of the pilot
    extra = 60 + 30 * 6 + 20 * 26 + 20
    n = np.array(done.num_simulations)
    assert done.spent == np.dot(simulation_costs(COSTS), n) + extra <= 4_000
    assert done.estimates.variances == done.pilot.variances


def test_a_trainer_is_fitted_again_with_all_simulations():
    trainer = NLE(
        prior(),
        density_estimator="mdn",
        tracker=SilentTracker(),
        show_progress_bars=False,
    )
    with pytest.warns(UserWarning, match="max_num_epochs"):
        done = run(inference=trainer, train_options={"max_num_epochs": 3})
    assert done.steps[0].variances != done.steps[1].variances
    assert trainer._neural_net is None


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(budget=700.0), "budget=700 is below the cost of the pilot.*cost 760"),
        (dict(budget=float("nan")), "budget"),
        (dict(budget=-1.0), "budget"),
        (dict(rows=(20, 20)), "pilot_simulations"),
        (dict(rows=(20, 20, 2)), "pilot_simulations"),
        (dict(method="other"), "method"),
        (dict(costs=(1.0, 2.0)), "costs"),
        (dict(seed=-2), "seed"),
    ],
)
def test_bad_arguments_raise_with_their_name(options, named):
    with pytest.raises(ValueError, match=named):
        run(**options)


def test_simulations_recorded_without_a_cost_require_costs(tmp_path):
    from sbi_multilevel import SimulationStore

    pytest.importorskip("zarr")
    path = tmp_path / "run.zarr"
    store = SimulationStore.create(path, prior(), (40, 20))
    for level in (0, 1):
        rows = store.pending(level)
        store.record(rows.ids, rows.theta + 1, x_coarse=rows.theta if level else None)
    simulators = [lambda theta, seeds: theta, lambda theta, seeds: theta + 1]
    with pytest.raises(ValueError, match="recorded without it. Pass costs"):
        simulate_budget(
            simulators, prior(), 1e6, (40, 20), store=path, show_progress_bars=False
        )
