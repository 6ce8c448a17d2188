"""Control variates, correlations of pairs, and variances of the loss."""

import math

import numpy as np
import pytest

from sbi_multilevel import MultilevelSimulations
from sbi_multilevel.diagnostics import best_weight, effective_num_high, loss_variance
from sbi_multilevel.diagnostics.correlations import pair_correlations
from sbi_multilevel.diagnostics.loss_variance import loss_variances
from tests.fidelity_levels import FAST, high, near, simulations, unpaired, useless

pytestmark = pytest.mark.filterwarnings("ignore:The pairing of level")


# --- control variates ---------------------------------------------------------------


def draws(rho, ratio, shape, rng):
    """Pairs of correlation rho, standard deviations `ratio` and 1, means 1 and 5."""
    low = rng.normal(size=shape)
    rest = rng.normal(size=shape)
    return 1 + ratio * (rho * low + math.sqrt(1 - rho**2) * rest), 5 + low


@pytest.mark.parametrize(
    ("rho", "ratio", "counts"),
    ((0.9, 1.0, (20, 100)), (-0.7, 3.0, (10, 10)), (0.0, 1.0, (10, 50))),
)
def test_the_effective_number_is_that_of_simulated_control_variates(rho, ratio, counts):
    num_high, num_low = counts
    repeats, rng = 4_000, np.random.default_rng(0)
    fine, coarse = draws(rho, ratio, (repeats, num_high), rng)
    _, low = draws(rho, ratio, (repeats, num_low), rng)
    beta = best_weight(rho, ratio, num_high, num_low)
    estimates = (fine - beta * coarse).mean(axis=1) + beta * low.mean(axis=1)
    assert abs(estimates.mean() - 1) < 4 * estimates.std() / math.sqrt(repeats)
    effective = ratio**2 / estimates.var(ddof=1)
    # a variance of normals has a relative error of sqrt(2 / repeats)
    expected = effective_num_high(rho, num_high, num_low)
    assert effective == pytest.approx(expected, rel=4 * math.sqrt(2 / repeats))


@pytest.mark.parametrize("rho", (0.3, 0.95))
def test_the_best_weight_minimizes_the_variance(rho):
    num_high, num_low, ratio = 30, 70, 2.0
    betas = np.linspace(-1, 3, 4_001)
    pairs = (ratio**2 - 2 * betas * rho * ratio + betas**2) / num_high
    variances = pairs + betas**2 / num_low
    best = betas[variances.argmin()]
    assert best == pytest.approx(best_weight(rho, ratio, num_high, num_low), abs=1e-3)
    effective = effective_num_high(rho, num_high, num_low)
    assert ratio**2 / variances.min() == pytest.approx(effective, rel=1e-5)
    assert effective == pytest.approx(num_high / (1 - rho**2 * 0.7))


# --- correlations -------------------------------------------------------------------


def pairs(rho, mean, n=400, num_low=1_000, seed=0):
    """One summary with mean `mean(theta)`, and noise of correlation rho."""
    rng = np.random.default_rng(seed)
    theta = rng.uniform(-1, 1, size=(n + num_low, 1))
    u, v = rng.normal(size=(2, n + num_low, 1))
    x = mean(theta) + 0.5 * u
    x_coarse = mean(theta) + 0.5 * (rho * u + math.sqrt(1 - rho**2) * v)
    return theta[n:], x_coarse[n:], theta[:n], x[:n], x_coarse[:n]


@pytest.mark.parametrize("rho", (-0.5, 0.0, 0.6, 0.95))
def test_correlations_of_linear_levels(rho):
    found = pair_correlations(*pairs(rho, lambda theta: 2 * theta))
    assert abs(found.given_theta - rho) < 4 * found.given_theta_error
    # the variance of 2 theta is 4 / 3, that of the noise 1 / 4
    raw = (4 / 3 + rho / 4) / (4 / 3 + 1 / 4)
    assert abs(found.raw - raw) < 4 * found.raw_error
    # of normals it is (1 - rho^2) / sqrt(n)
    assert found.given_theta_error == pytest.approx((1 - rho**2) / 20, rel=0.4)


@pytest.mark.parametrize("rho", (0.0, 0.6))
def test_theta_is_removed_if_the_mean_is_not_quadratic(rho):
    """The regression on the lower level is more flexible than that on the pairs."""

    def waves(theta):
        return 2 * np.sin(6 * theta)

    found = pair_correlations(*pairs(rho, waves))
    assert found.raw > 0.8
    assert abs(found.given_theta - rho) < 4 * found.given_theta_error < 0.3


def test_one_exact_regression_is_sufficient():
    """No regression can fit the dependence of x on theta."""
    theta_low, x_low, theta, x, x_coarse = pairs(0.0, lambda theta: 2 * theta)
    jumps = np.floor(1e4 * theta) % 2
    found = pair_correlations(theta_low, x_low, theta, x + jumps, x_coarse)
    assert abs(found.given_theta) < 4 * found.given_theta_error


def test_few_pairs_of_many_parameters():
    """The regression on the lower level is not shrunk if there are few pairs."""
    found = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        theta = rng.uniform(-1, 1, size=(1_040, 5))
        mean = 3 * np.sin(3 * theta[:, :1]) * theta[:, 1:2] + theta[:, 2:3]
        x, x_coarse = mean + rng.normal(size=(2, 1_040, 1)) / 2
        pairs = theta[:40], x[:40], x_coarse[:40]
        found.append(pair_correlations(theta[40:], x_coarse[40:], *pairs))
    mean = np.mean([each.given_theta for each in found])
    # the marginal correlation is 0.88
    assert abs(mean) < 0.35


def test_correlations_that_are_not_identified_are_nan():
    theta_low, x_low, theta, x, x_coarse = pairs(0.5, np.exp)
    exact = pair_correlations(theta_low, 2 * theta_low, theta, x, 2 * theta)
    assert exact.raw > 0.5 and np.isnan(exact.given_theta)
    constant = pair_correlations(theta_low, x_low, theta, np.ones_like(x), x_coarse)
    assert np.isnan(constant.raw) and np.isnan(constant.given_theta)


# --- losses -------------------------------------------------------------------------


def known_losses(rho, own_share):
    """Losses with variance share `own_share` due to theta, else of correlation rho."""

    def held_out(trainer, simulations, outputs, **options):
        rng = np.random.default_rng(0)
        tables, folds = [], []
        for level in simulations:
            n = len(level)
            of_theta = math.sqrt(3 * own_share) * level.theta.numpy()[:, :1]
            u, v = math.sqrt(1 - own_share) * rng.normal(size=(2, n, 1))
            low = of_theta + rho * u + math.sqrt(1 - rho**2) * v
            folds.append(np.arange(n) % 2)
            columns = [low, of_theta + u]
            if level.level == 2:  # a loss that must not be used
                columns.insert(0, 1e3 * folds[-1][:, np.newaxis])
            tables.append(np.concatenate(columns, axis=1)[:, : level.level + 1])
            tables[-1][folds[-1] == 1] += 100.0  # another network, another constant
        return tables, folds

    return held_out


@pytest.mark.parametrize("own_share", (0.0, 0.9))
@pytest.mark.parametrize("rho", (0.0, 0.8))
def test_ratio_and_effective_number_of_known_losses(rho, own_share, monkeypatch):
    monkeypatch.setattr(loss_variance, "held_out_losses", known_losses(rho, own_share))
    (found,) = loss_variances(simulations(near, high, counts=(1_500, 600)))
    # variance of u - rho u - sqrt(1 - rho^2) v, relative to 1
    ratio = (1 - own_share) * 2 * (1 - rho)
    error = ratio * math.sqrt(4 / 600)
    assert found.variance_ratio.value == pytest.approx(ratio, abs=4 * error)
    assert (
        found.variance_ratio.interval[0]
        < found.variance_ratio.value
        < found.variance_ratio.interval[1]
    )
    # the part due to theta is no shared noise
    assert found.correlation.value == pytest.approx(rho, abs=4 / math.sqrt(600))
    expected = effective_num_high(found.correlation.value, 600, 1_500)
    effective = found.effective_num_high
    assert effective.value == pytest.approx(expected)
    assert effective.interval[0] < expected < effective.interval[1]
    if rho == 0:
        assert effective.interval[0] == 600 and effective.value < 650


def test_losses_that_are_not_finite_are_left_out(monkeypatch):
    complete = known_losses(0.8, 0.0)

    def held_out(trainer, simulations, outputs, **options):
        tables, folds = complete(trainer, simulations, outputs)
        tables[0][:3], tables[1][5, 1], tables[1][6, 0] = np.inf, np.inf, np.nan
        return tables, folds

    monkeypatch.setattr(loss_variance, "held_out_losses", held_out)
    (found,) = loss_variances(simulations(near, high, counts=(400, 200)))
    assert found.variance_ratio.value == pytest.approx(0.4, rel=4 * math.sqrt(4 / 200))
    assert found.correlation.value == pytest.approx(0.8, abs=4 / math.sqrt(200))


@pytest.mark.parametrize(
    ("level", "lost", "is_known"),
    (
        (0, slice(1, None, 2), False),  # all of one fold
        (1, slice(1, None, 2), False),
        (1, slice(None), False),
        (1, slice(9, None), False),
        (1, slice(10, None), True),
    ),
)
def test_no_estimate_from_fewer_than_ten_finite_losses(
    level, lost, is_known, monkeypatch
):
    def held_out(trainer, simulations, outputs, **options):
        tables, folds = known_losses(0.8, 0.0)(trainer, simulations, outputs)
        tables[level][lost] = np.inf
        return tables, folds

    monkeypatch.setattr(loss_variance, "held_out_losses", held_out)
    (found,) = loss_variances(simulations(near, high, counts=(60, 30)))
    assert (found is not None) == is_known


def test_intervals_of_small_samples_with_heavy_tails_have_coverage():
    """That of the bootstrap alone is five in six."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(150):
        a, b = np.exp(2 * rng.normal(size=(2, 40, 1)))
        _, (low, high) = loss_variance._with_interval(a, b, 0)
        covered.append(low < 0 < high)
    assert np.mean(covered) > 0.95 - 4 * math.sqrt(0.05 * 0.95 / 150)


def test_a_third_level_has_no_effect_on_lower_levels(monkeypatch):
    monkeypatch.setattr(loss_variance, "held_out_losses", known_losses(0.8, 0.0))
    three = simulations(near, near, high, counts=(400, 101, 60))
    one, two = loss_variances(three)
    (alone,) = loss_variances(MultilevelSimulations(three.levels[:2]))
    assert one.variance_ratio.value == pytest.approx(
        alone.variance_ratio.value, rel=0.02
    )
    assert two.variance_ratio.value == pytest.approx(0.4, rel=4 * math.sqrt(4 / 60))


def test_pure_noise_has_no_effect_although_the_variance_ratio_is_small():
    """The loss of a fit that hardly uses x depends on theta alone."""
    (found,) = loss_variances(simulations(useless, high), train_options=FAST)
    assert found.variance_ratio.value < 0.5
    effective = found.effective_num_high
    assert effective.interval[0] < 75 and effective.value < 110
    (found,) = loss_variances(simulations(near, high), train_options=FAST)
    effective = found.effective_num_high
    assert effective.interval[0] > 90 and effective.value > 120


def test_only_paired_levels_have_an_estimate(monkeypatch):
    three = simulations(near, near, high, counts=(80, 40, 20))
    brief = {"max_num_epochs": 1}
    one, two = loss_variances(three, train_options=brief)
    assert (one.num_high, one.num_low, two.num_high, two.num_low) == (40, 80, 20, 40)
    # levels 0 and 1 are equal
    assert one.variance_ratio.value == pytest.approx(0.0, abs=1e-9)
    assert one.effective_num_high.value == pytest.approx(40 / (1 - 2 / 3))
    loose = unpaired(three)
    assert loss_variances(loose) == [None, None]
    mixed = MultilevelSimulations((three[0], loose[1], three[2]))
    first, second = loss_variances(mixed, train_options=brief)
    assert first is None and second.num_high == 20
    few = simulations(near, high, counts=(80, 9))
    monkeypatch.setattr(loss_variance, "held_out_losses", None)  # is not called
    assert loss_variances(few) == [None]


def test_a_subset_of_many_simulations_is_used(monkeypatch):
    counts = []

    def held_out(trainer, simulations, outputs, **options):
        counts.append(simulations.num_simulations)
        return known_losses(0.5, 0.0)(trainer, simulations, outputs)

    monkeypatch.setattr(loss_variance, "_MAX_SIMULATIONS", 100)
    monkeypatch.setattr(loss_variance, "held_out_losses", held_out)
    (found,) = loss_variances(simulations(near, high, counts=(300, 120)))
    assert counts == [(100, 100)]
    assert (found.num_low, found.num_high) == (300, 120)
