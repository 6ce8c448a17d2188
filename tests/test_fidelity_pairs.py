"""What pairs are worth: as a control variate, by summaries, and by losses."""

import math

import numpy as np
import pytest

from sbi_multilevel import MultilevelSimulations
from sbi_multilevel.allocation import quick_fit
from sbi_multilevel.diagnostics import best_weight, effective_num_high, losses
from sbi_multilevel.diagnostics.correlations import pair_correlations
from sbi_multilevel.diagnostics.losses import loss_pairs
from tests.fidelity_levels import FAST, high, near, simulations, unpaired, useless

pytestmark = pytest.mark.filterwarnings("ignore:The pairing of level")


# --- rows that a control variate stands for -----------------------------------------


def draws(rho, ratio, shape, rng):
    """Pairs of correlation rho, deviations `ratio` and 1, means 1 and 5."""
    low = rng.normal(size=shape)
    rest = rng.normal(size=shape)
    return 1 + ratio * (rho * low + math.sqrt(1 - rho**2) * rest), 5 + low


@pytest.mark.parametrize(
    ("rho", "ratio", "counts"),
    ((0.9, 1.0, (20, 100)), (-0.7, 3.0, (10, 10)), (0.0, 1.0, (10, 50))),
)
def test_rows_worth_by_simulation(rho, ratio, counts):
    num_high, num_low = counts
    repeats, rng = 4_000, np.random.default_rng(0)
    fine, coarse = draws(rho, ratio, (repeats, num_high), rng)
    _, cheap = draws(rho, ratio, (repeats, num_low), rng)
    beta = best_weight(rho, ratio, num_high, num_low)
    estimates = (fine - beta * coarse).mean(axis=1) + beta * cheap.mean(axis=1)
    assert abs(estimates.mean() - 1) < 4 * estimates.std() / math.sqrt(repeats)
    effective = ratio**2 / estimates.var(ddof=1)
    # a variance of normals has a relative error of sqrt(2 / repeats)
    expected = effective_num_high(rho, num_high, num_low)
    assert effective == pytest.approx(expected, rel=4 * math.sqrt(2 / repeats))


@pytest.mark.parametrize("rho", (0.3, 0.95))
def test_no_weight_is_better(rho):
    num_high, num_low, ratio = 30, 70, 2.0
    betas = np.linspace(-1, 3, 4_001)
    pairs = (ratio**2 - 2 * betas * rho * ratio + betas**2) / num_high
    variances = pairs + betas**2 / num_low
    best = betas[variances.argmin()]
    assert best == pytest.approx(best_weight(rho, ratio, num_high, num_low), abs=1e-3)
    worth = effective_num_high(rho, num_high, num_low)
    assert ratio**2 / variances.min() == pytest.approx(worth, rel=1e-5)
    assert worth == pytest.approx(num_high / (1 - rho**2 * 0.7))


# --- correlations -------------------------------------------------------------------


def pairs(rho, mean, n=400, num_low=1_000, seed=0):
    """One summary: both sides follow theta by `mean`, and share noise as rho says."""
    rng = np.random.default_rng(seed)
    theta = rng.uniform(-1, 1, size=(n + num_low, 1))
    u, v = rng.normal(size=(2, n + num_low, 1))
    x = mean(theta) + 0.5 * u
    x_coarse = mean(theta) + 0.5 * (rho * u + math.sqrt(1 - rho**2) * v)
    return theta[n:], x_coarse[n:], theta[:n], x[:n], x_coarse[:n]


@pytest.mark.parametrize("rho", (-0.5, 0.0, 0.6, 0.95))
def test_correlations_of_linear_levels(rho):
    found = pair_correlations(*pairs(rho, lambda theta: 2 * theta))
    assert abs(found.beyond_theta - rho) < 4 * found.beyond_theta_error
    # the variance of 2 theta is 4 / 3, that of the noise 1 / 4
    raw = (4 / 3 + rho / 4) / (4 / 3 + 1 / 4)
    assert abs(found.raw - raw) < 4 * found.raw_error
    # of normals it is (1 - rho^2) / sqrt(n)
    assert found.beyond_theta_error == pytest.approx((1 - rho**2) / 20, rel=0.4)


@pytest.mark.parametrize("rho", (0.0, 0.6))
def test_theta_is_removed_where_a_parabola_cannot_follow(rho):
    """The regression on the many rows makes up for that on the pairs."""

    def waves(theta):
        return 2 * np.sin(6 * theta)

    found = pair_correlations(*pairs(rho, waves))
    assert found.raw > 0.8
    assert abs(found.beyond_theta - rho) < 4 * found.beyond_theta_error < 0.3


def test_one_good_regression_is_enough():
    """Theta moves the level itself in a way that nothing can follow."""
    theta_low, x_low, theta, x, x_coarse = pairs(0.0, lambda theta: 2 * theta)
    jumps = np.floor(1e4 * theta) % 2
    found = pair_correlations(theta_low, x_low, theta, x + jumps, x_coarse)
    assert abs(found.beyond_theta) < 4 * found.beyond_theta_error


def test_few_pairs_of_many_parameters():
    """What many rows know of theta is not shrunk away where pairs are few."""
    found = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        theta = rng.uniform(-1, 1, size=(1_040, 5))
        mean = 3 * np.sin(3 * theta[:, :1]) * theta[:, 1:2] + theta[:, 2:3]
        x, x_coarse = mean + rng.normal(size=(2, 1_040, 1)) / 2
        pairs = theta[:40], x[:40], x_coarse[:40]
        found.append(pair_correlations(theta[40:], x_coarse[40:], *pairs))
    mean = np.mean([each.beyond_theta for each in found])
    # theta alone would correlate them by 0.88
    assert abs(mean) < 0.35


def test_what_cannot_be_known_is_nan():
    theta_low, x_low, theta, x, x_coarse = pairs(0.5, np.exp)
    exact = pair_correlations(theta_low, 2 * theta_low, theta, x, 2 * theta)
    assert exact.raw > 0.5 and np.isnan(exact.beyond_theta)
    constant = pair_correlations(theta_low, x_low, theta, np.ones_like(x), x_coarse)
    assert np.isnan(constant.raw) and np.isnan(constant.beyond_theta)


# --- losses -------------------------------------------------------------------------


def known_losses(rho, own_share):
    """Losses that owe `own_share` to theta, and share the rest as rho says."""

    def held_out(trainer, simulations, outputs, **options):
        rng = np.random.default_rng(0)
        tables, folds = [], []
        for rows in simulations:
            n = len(rows)
            of_theta = math.sqrt(3 * own_share) * rows.theta.numpy()[:, :1]
            u, v = math.sqrt(1 - own_share) * rng.normal(size=(2, n, 1))
            low = of_theta + rho * u + math.sqrt(1 - rho**2) * v
            folds.append(np.arange(n) % 2)
            columns = [low, of_theta + u]
            if rows.level == 2:  # what it does not know must not matter
                columns.insert(0, 1e3 * folds[-1][:, np.newaxis])
            tables.append(np.concatenate(columns, axis=1)[:, : rows.level + 1])
            tables[-1][folds[-1] == 1] += 100.0  # another network, another constant
        return tables, folds

    return held_out


@pytest.mark.parametrize("own_share", (0.0, 0.9))
@pytest.mark.parametrize("rho", (0.0, 0.8))
def test_ratio_and_rows_of_known_losses(rho, own_share, monkeypatch):
    monkeypatch.setattr(quick_fit, "held_out_losses", known_losses(rho, own_share))
    (found,) = loss_pairs(simulations(near, high, counts=(1_500, 600)))
    # of u - rho u - sqrt(1 - rho^2) v, beside a variance of 1
    ratio = (1 - own_share) * 2 * (1 - rho)
    error = ratio * math.sqrt(4 / 600)
    assert found.ratio.value == pytest.approx(ratio, abs=4 * error)
    assert found.ratio.interval[0] < found.ratio.value < found.ratio.interval[1]
    # what theta does to both is not shared noise
    assert found.correlation.value == pytest.approx(rho, abs=4 / math.sqrt(600))
    worth = effective_num_high(found.correlation.value, 600, 1_500)
    assert found.worth.value == pytest.approx(worth)
    assert found.worth.interval[0] < worth < found.worth.interval[1]
    if rho == 0:
        assert found.worth.interval[0] == 600 and found.worth.value < 650


def test_rows_without_a_density_are_left_out(monkeypatch):
    complete = known_losses(0.8, 0.0)

    def held_out(trainer, simulations, outputs, **options):
        tables, folds = complete(trainer, simulations, outputs)
        tables[0][:3], tables[1][5, 1], tables[1][6, 0] = np.inf, np.inf, np.nan
        return tables, folds

    monkeypatch.setattr(quick_fit, "held_out_losses", held_out)
    (found,) = loss_pairs(simulations(near, high, counts=(400, 200)))
    assert found.ratio.value == pytest.approx(0.4, rel=4 * math.sqrt(4 / 200))
    assert found.correlation.value == pytest.approx(0.8, abs=4 / math.sqrt(200))


@pytest.mark.parametrize(
    ("level", "lost", "is_judged"),
    (
        (0, slice(1, None, 2), False),  # all that one of two fits judges
        (1, slice(1, None, 2), False),
        (1, slice(None), False),
        (1, slice(9, None), False),
        (1, slice(10, None), True),
    ),
)
def test_nothing_is_said_where_few_rows_have_a_density(
    level, lost, is_judged, monkeypatch
):
    def held_out(trainer, simulations, outputs, **options):
        tables, folds = known_losses(0.8, 0.0)(trainer, simulations, outputs)
        tables[level][lost] = np.inf
        return tables, folds

    monkeypatch.setattr(quick_fit, "held_out_losses", held_out)
    (found,) = loss_pairs(simulations(near, high, counts=(60, 30)))
    assert (found is not None) == is_judged


def test_intervals_of_few_rows_with_tails_hold_the_truth():
    """The bootstrap alone holds it five times in six."""
    rng, held = np.random.default_rng(0), []
    for _ in range(300):
        a, b = np.exp(2 * rng.normal(size=(2, 40, 1)))
        _, (low, high) = losses._with_interval(a, b, 0)
        held.append(low < 0 < high)
    assert np.mean(held) > 0.95 - 4 * math.sqrt(0.05 * 0.95 / 300)


def test_a_third_level_changes_nothing_below(monkeypatch):
    monkeypatch.setattr(quick_fit, "held_out_losses", known_losses(0.8, 0.0))
    three = simulations(near, near, high, counts=(400, 101, 60))
    one, two = loss_pairs(three)
    (alone,) = loss_pairs(MultilevelSimulations(three.levels[:2]))
    assert one.ratio.value == pytest.approx(alone.ratio.value, rel=0.02)
    assert two.ratio.value == pytest.approx(0.4, rel=4 * math.sqrt(4 / 60))


def test_a_useless_level_saves_no_rows_though_the_ratio_is_small():
    """Losses of a fit that hardly looks at x are alike for any level below."""
    (found,) = loss_pairs(simulations(useless, high), train_options=FAST)
    assert found.ratio.value < 0.5
    assert found.worth.interval[0] < 75 and found.worth.value < 110
    (found,) = loss_pairs(simulations(near, high), train_options=FAST)
    assert found.worth.interval[0] > 90 and found.worth.value > 120


def test_levels_are_judged_where_they_are_paired(monkeypatch):
    three = simulations(near, near, high, counts=(80, 40, 20))
    one, two = loss_pairs(three, train_options=FAST)
    assert (one.num_high, one.num_low, two.num_high, two.num_low) == (40, 80, 20, 40)
    # near and near are the same
    assert one.ratio.value == pytest.approx(0.0, abs=1e-9)
    assert one.worth.value == pytest.approx(40 / (1 - 2 / 3))
    loose = unpaired(three)
    assert loss_pairs(loose) == [None, None]
    mixed = MultilevelSimulations((three[0], loose[1], three[2]))
    first, second = loss_pairs(mixed, train_options=FAST)
    assert first is None and second.num_high == 20
    few = simulations(near, high, counts=(80, 9))
    monkeypatch.setattr(quick_fit, "held_out_losses", None)  # is not called
    assert loss_pairs(few) == [None]


def test_many_rows_are_thinned(monkeypatch):
    seen = []

    def held_out(trainer, simulations, outputs, **options):
        seen.append(simulations.num_simulations)
        return known_losses(0.5, 0.0)(trainer, simulations, outputs)

    monkeypatch.setattr(losses, "_MOST_ROWS", 100)
    monkeypatch.setattr(quick_fit, "held_out_losses", held_out)
    (found,) = loss_pairs(simulations(near, high, counts=(300, 120)))
    assert seen == [(100, 100)]
    assert (found.num_low, found.num_high) == (300, 120)
