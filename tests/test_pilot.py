"""Pilots: variances against closed forms, intervals, extra runs and advice."""

import numpy as np
import pytest
import torch
from sbi.inference import NLE, NPE, NRE
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.utils import BoxUniform

from sbi_multilevel import MLNLE, MLNPE, MultilevelConfig, simulate_multilevel
from sbi_multilevel.allocation.measuring import ExtraRuns
from sbi_multilevel.allocation.pilot import pilot
from sbi_multilevel.allocation.variances import (
    Measurements,
    loss_measurements,
    norm_measurements,
)
from sbi_multilevel.simulate import GrowingSimulations
from sbi_multilevel.simulation.filling import RunOptions
from tests.exact_likelihood import difference_variance, trained
from tests.linear_gaussian import MATRICES, SIMULATORS, SilentTracker, noise, prior

COSTS = (1.0, 5.0, 20.0)


def run(rows=(300, 100, 100), **options):
    arguments = dict(
        simulators=SIMULATORS,
        prior=prior(),
        num_simulations=rows,
        noise=noise,
        inference=trained(),
        costs=COSTS,
        show_progress_bars=False,
    )
    return pilot(**{**arguments, **options})


def growing_simulations(simulators, prior):
    options = RunOptions((1_000,) * len(simulators), show_progress_bars=False)
    return GrowingSimulations(simulators, prior, noise, 0, None, options)


def quick(cls, **options):
    return cls(
        prior(),
        density_estimator="mdn",
        tracker=SilentTracker(),
        show_progress_bars=False,
        **options,
    )


def test_variances_of_an_exact_likelihood_are_those_of_the_closed_form():
    found = run(rows=(4_000, 3_000, 2_000))
    for high in range(3):
        for low in (*range(high), None):
            pair = high, high if low is None else low
            rows = found.measurements._pooled(pair, None)[0]
            estimate = found.difference_variances[high][pair[1]]
            fourth = ((rows - rows.mean()) ** 4).mean()
            standard_error = ((fourth - estimate**2) / len(rows)) ** 0.5
            exact = difference_variance(high, low)
            assert abs(estimate - exact) < 4 * standard_error
            assert standard_error < 0.15 * exact
    table = found.difference_variances
    assert found.variances == (table[0][0], table[1][0], table[2][1])


def test_simulations_are_those_of_simulate_multilevel():
    found = run()
    expected = simulate_multilevel(
        SIMULATORS, prior(), (300, 100, 100), noise=noise, show_progress_bars=False
    )
    for a, b in zip(found.simulations, expected, strict=True):
        assert torch.equal(a.theta, b.theta) and torch.equal(a.x, b.x)
    assert found.costs == COSTS and found.num_simulations == (300, 100, 100)
    # 300 + 100 (5 + 1) + 100 (20 + 5), and level 0 at theta of level 2
    assert found.cost == 3_400 + 100


def test_levels_further_below_run_at_the_same_theta_and_noise():
    def failing(theta, u):
        x = SIMULATORS[2](theta, u)
        return torch.where(theta[:, :1] > 1.0, torch.nan, x)

    simulators = (*SIMULATORS[:2], failing)
    growing = growing_simulations(simulators, prior())
    with pytest.warns(UserWarning, match="simulations of level 2: NaN"):
        simulations = growing.simulate((20, 20, 60))
    outputs = ExtraRuns(growing, simulations, (20, 20, 60)).below()
    rows = simulations[2]
    assert len(rows) < 60 and len(outputs[2][0]) == len(rows)
    shared = rows.x_coarse - rows.theta @ MATRICES[1].T
    difference = outputs[2][0] - rows.theta @ MATRICES[0].T - shared
    assert difference.std(dim=0).max() < 1e-5  # only the shifts remain
    assert [len(sides) for sides in outputs] == [1, 2, 3]


@pytest.mark.parametrize("cls", [NPE, NLE, MLNPE, MLNLE])
def test_any_trainer_can_be_fitted_and_is_not_changed(cls):
    trainer = quick(cls)
    options = dict(inference=trainer, train_options={"max_num_epochs": 2})
    with pytest.warns(UserWarning, match="max_num_epochs"):
        found, again = run(**options), run(**options)
        other = run(seed=1, **options)
    assert np.isfinite(found.variances).all() and min(found.variances) > 0
    assert found.variances == again.variances != other.variances
    assert trainer._neural_net is None and not trainer._theta_roundwise


def test_a_function_of_the_prior_can_return_the_trainer():
    def make(prior):
        return quick(NLE)

    options = dict(train_options={"max_num_epochs": 2})
    with pytest.warns(UserWarning, match="max_num_epochs"):
        made = run(inference=make, **options)
        given = run(inference=quick(NLE), **options)
    assert made.variances == given.variances


def test_the_affine_alignment_of_the_trainer_is_applied():
    def shifted(theta, u):
        return 3.0 * SIMULATORS[1](theta, u) - 2.0

    aligned = trained()
    aligned._config = MultilevelConfig(alignment="affine")
    options = dict(simulators=(shifted, SIMULATORS[1]), costs=COSTS[:2])
    plain = run((300, 200), **options)
    moved = run((300, 200), inference=aligned, **options)
    assert moved.variances[1] < 1e-6 * plain.variances[1]


class _Memory(ConditionalDensityEstimator):
    """Records how many of its training simulations are evaluated."""

    seen: list[int] = []

    def __init__(self, x):
        super().__init__(torch.nn.Linear(1, 1), x.shape[1:], x.shape[1:])
        self.rows = x

    def log_prob(self, input, condition, **kwargs):
        flat = input.reshape(-1, 1, input.shape[-1])
        known = (flat == self.rows).all(dim=2).any(dim=1)
        if not torch.is_grad_enabled() and not self.training:
            self.seen.append(int(known.sum()))
        return 0 * self.net.weight.sum() * flat[:, 0, 0]

    def loss(self, input, condition, **kwargs):
        return -self.log_prob(input, condition)

    def sample(self, sample_shape, condition, **kwargs):
        raise NotImplementedError


def test_losses_come_from_a_fit_to_other_simulations(monkeypatch):
    trainer = NLE(
        prior(),
        density_estimator=lambda theta, x: _Memory(x),
        tracker=SilentTracker(),
        show_progress_bars=False,
    )
    losses = []
    monkeypatch.setattr(_Memory, "seen", losses)
    options = {"max_num_epochs": 1, "validation_fraction": 0.2}
    with pytest.warns(UserWarning, match="max_num_epochs"):
        run((60, 30, 30), inference=trainer, train_options=options)
    # sbi validates on simulations that the network was not built on, as here
    assert len(losses) > 0 and sum(losses) == 0


def test_intervals_have_about_the_nominal_coverage():
    rng = np.random.default_rng(1)
    hits, trials = 0, 60
    for _ in range(trials):
        squares = rng.normal(size=(1, 200)) ** 2
        measured = Measurements(({(0, 0): squares},), "loss")
        low, high = measured.interval((0, 0), 0.9)
        assert low < measured.triangle()[0][0] < high
        hits += low <= 2.0 <= high  # the variance of a chi-squared number
    # nominally 90 %, somewhat less for these tails
    assert 0.72 < hits / trials < 0.98


def test_differences_are_centred_within_fits():
    rng = np.random.default_rng(0)
    fits = np.arange(4_000) % 4
    differences = rng.normal(size=4_000) + 10.0 * fits
    losses = np.stack([np.zeros(4_000), differences], axis=1)
    level_0 = np.zeros((2, 1))
    measured = loss_measurements([level_0, losses], [np.arange(2), fits])
    estimate = measured.triangle()[1][0]
    assert abs(estimate - 1) < 4 * (2 / 4_000) ** 0.5
    within = sum(
        ((d - d.mean()) ** 2).sum() for d in (differences[fits == k] for k in range(4))
    )
    assert estimate == pytest.approx(within / (4_000 - 4))


def test_unknown_losses_are_left_out():
    losses = np.array([[1.0, 2.0], [np.nan, 5.0], [2.0, 5.0]])
    level_0 = np.array([[0.0], [1.0]])
    measured = loss_measurements([level_0, losses], [np.zeros(2), np.zeros(3)])
    assert measured.triangle()[1][0] == pytest.approx(np.var([1.0, 3.0], ddof=1))
    assert measured.triangle()[1][1] == pytest.approx(np.var([2.0, 5.0, 5.0], ddof=1))


# Norms


def test_norms_agree_with_a_hand_calculation():
    one = np.array([[1.0, 0.0], [0.0, 2.0]])
    two = np.array([[1.0, 1.0], [0.0, 0.0]])
    measured = norm_measurements([[one], [one, two]], [[two], [two, one]])
    # fourth powers of one: 1, 16; of two: 4, 0; the total norm of both is 21 / 2
    norm_of = 21 / 2
    assert measured.triangle()[0][0] == pytest.approx(1 + norm_of)
    # of the difference: (0, 1), (0, -2): 1, 16, twice
    assert measured.triangle()[1][0] == pytest.approx(17**0.5 * (1 + 2 * norm_of**0.5))


def test_the_norm_increases_with_the_distance_of_levels():
    box = BoxUniform(-torch.ones(2), torch.ones(2))
    near, far = (
        run((200, 200), prior=box, method="norm", simulators=pair, costs=COSTS[:2])
        for pair in ((SIMULATORS[1], SIMULATORS[2]), (SIMULATORS[0], SIMULATORS[2]))
    )
    # matrices differ five times as much, and V goes with the square of the norm
    assert far.variances[1] / near.variances[1] > 10
    assert far.cost == 200 + 200 * 6 + 200 + 200 * 6


def test_slopes_of_linear_simulators_are_exact_and_inside_the_prior():
    box = BoxUniform(-torch.ones(2), torch.ones(2))
    seen = []

    def watched(theta, u):
        seen.append(theta)
        return SIMULATORS[0](theta, u)

    growing = growing_simulations((watched, SIMULATORS[1]), box)
    simulations = growing.simulate((100, 20))
    extra = ExtraRuns(growing, simulations, (100, 20))
    step = torch.full((2,), 0.5)  # many theta are closer to the boundary
    aside = extra.aside(step)[0][0] - simulations[0].x
    known = aside.isfinite().all(dim=1)
    assert known.float().mean() > 0.9
    assert torch.cat(seen).abs().max() <= 1
    signs = torch.tensor([[a, b] for a in (-1.0, 1) for b in (-1.0, 1)]) * step
    distances = torch.cdist(aside[known], signs @ MATRICES[0].T)
    assert distances.min(dim=1).values.max() < 1e-5


# Report, advice, errors


def test_a_pilot_reports_and_allocates():
    found = run()
    text = str(found)
    assert "The pilot cost 3500." in text and "95 % interval" in text
    rows = np.array(found.allocate(10_000.0))
    assert (rows >= found.num_simulations).all()
    assert rows @ (1, 6, 25) + 100 <= 10_000
    with pytest.raises(ValueError, match="budget"):
        found.allocate(3_000.0)


class Off:
    """The highest level with an error in its matrix."""

    def __init__(self, gap):
        self.gap = gap

    def __call__(self, theta, u):
        return SIMULATORS[2](theta, u) + self.gap * theta


def useless(theta, u):
    return 2.0 * u.flip(1) + 0 * theta


def advice_of(simulators, costs):
    rows = (400, 200, 200)
    return run(rows, simulators=simulators, costs=costs).advise(1e5)


def test_advice_warns_only_of_a_useless_middle_level():
    healthy = advice_of((Off(0.2), Off(0.04), SIMULATORS[2]), (0.1, 5.0, 50.0))
    assert healthy.warning is None and healthy.support < 0.05
    # level 1 is hardly closer than level 0, and almost as expensive as level 2
    advice = advice_of((Off(0.2), Off(0.19), SIMULATORS[2]), (1.0, 45.0, 50.0))
    assert advice.best.levels == (0, 2) and advice.support > 0.95
    assert "Level 1 is not useful" in advice.warning


def test_advice_warns_only_of_useless_low_levels():
    pair = (Off(0.1), SIMULATORS[2])
    healthy = run((400, 200), simulators=pair, costs=(1.0, 20.0)).advise(1e5)
    assert healthy.warning is None and healthy.gain > 2
    with pytest.warns(UserWarning):
        advice = advice_of((useless, useless, SIMULATORS[2]), COSTS)
    assert advice.best.levels == (2,) and advice.support > 0.95
    assert "Plain high-fidelity simulation is best" in advice.warning


def test_the_number_of_folds_is_limited_by_valid_simulations():
    def half(theta, u):
        x = SIMULATORS[1](theta, u)
        return torch.where(torch.arange(len(x))[:, None] < 10, x, torch.nan)

    options = dict(simulators=(SIMULATORS[0], half), costs=COSTS[:2], num_folds=15)
    with (
        pytest.warns(UserWarning, match="NaN"),
        pytest.raises(ValueError, match="num_folds=15 .*valid.* level 1 has 10"),
    ):
        run((60, 20), inference=quick(NLE), **options)


def test_folds_do_not_matter_where_nothing_is_fitted():
    assert run((20, 10, 10), num_folds=50).variances == run((20, 10, 10)).variances
    norms = run((20, 10, 10), num_folds=50, method="norm", inference=None)
    assert np.isfinite(norms.variances).all()


def test_almost_as_many_folds_as_simulations():
    trainer, options = quick(NLE), {"max_num_epochs": 1}
    with pytest.warns(UserWarning, match="max_num_epochs"):
        found = run((20, 12, 10), num_folds=9, inference=trainer, train_options=options)
    assert np.isfinite(found.variances).all()


def with_rows():
    trainer = quick(NLE)
    return trainer.append_simulations(torch.zeros(5, 2), torch.zeros(5, 2))


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(rows=(20, 9, 20)), "num_simulations=.*>= 10"),
        (dict(rows=(20, 20)), "num_simulations"),
        (dict(method="other"), "method"),
        (dict(num_folds=1), "num_folds"),
        (
            dict(rows=(100, 20, 30), num_folds=50, inference=NLE),
            "num_folds=50 .*level 1 has 20. Use fewer folds",
        ),
        (dict(rows=(100, 20, 30), num_folds=20, inference=NLE), "num_folds=20"),
        (dict(seed=-1), "seed"),
        (dict(costs=(1.0,)), "costs"),
        (dict(costs=(0.0, 1.0, 2.0)), "costs"),
        (dict(inference=lambda prior: NRE(prior)), "inference is a NRE"),
        (dict(inference=lambda prior: 3), "inference is a int"),
        (dict(inference=lambda prior: with_rows()), "holds simulations"),
    ],
)
def test_bad_arguments_raise_with_their_name(options, named):
    with pytest.raises(ValueError, match=named):
        run(**options)
