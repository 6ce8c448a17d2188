"""What the rows say about the level below, and the verdicts made of it."""

import math

import numpy as np
import pytest
import torch
from sbi.inference import NPE
from sbi.utils import BoxUniform

from sbi_multilevel import LevelSimulations, MultilevelSimulations
from sbi_multilevel.budget import quick_fit
from sbi_multilevel.diagnostics import (
    Coherence,
    Information,
    LevelFidelity,
    best_weight,
    critic,
    fidelity,
    fidelity_report,
    losses,
    rows_worth,
)
from sbi_multilevel.diagnostics.correlations import pair_correlations
from sbi_multilevel.diagnostics.level_fidelity import LITTLE, MUCH, NOTHING, SOMETHING
from sbi_multilevel.diagnostics.losses import loss_pairs
from sbi_multilevel.diagnostics.probes import Score

pytestmark = pytest.mark.filterwarnings("ignore:The pairing of level")
FAST = {"max_num_epochs": 6, "training_batch_size": 200, "learning_rate": 5e-3}
COUNTS = (400, 60)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """The critic learns little beyond its start, which does for normal rows."""
    monkeypatch.setattr(critic, "_MOST_STEPS", 30)


@pytest.fixture
def no_losses(monkeypatch):
    """Leaves out the quick fits, which take longest."""
    monkeypatch.setattr(
        fidelity, "loss_pairs", lambda rows, **options: [None] * (len(rows) - 1)
    )


def level(n, seed, number, simulators):
    """Rows with theta uniform on [-1, 1]^2, and four noises."""
    generator = torch.Generator().manual_seed(seed)
    theta = 2 * torch.rand(n, 2, generator=generator) - 1
    noise = torch.randn(n, 4, generator=generator)
    x_coarse = simulators[number - 1](theta, noise) if number else None
    return LevelSimulations(number, theta, simulators[number](theta, noise), x_coarse)


def simulations(*simulators, counts=COUNTS, seed=0):
    return MultilevelSimulations(
        tuple(
            level(n, 10 * seed + number, number, simulators)
            for number, n in enumerate(counts)
        )
    )


def unpaired(rows):
    levels = (LevelSimulations(r.level, r.theta, r.x) for r in rows)
    return MultilevelSimulations(tuple(levels))


def high(theta, noise):
    return theta + 0.3 * noise[:, :2]


def near(theta, noise):
    return theta + 0.2 * theta**2 + 0.3 * noise[:, :2]


def useless(theta, noise):
    return 0.7 * noise[:, 2:]


def other_noise(theta, noise):
    return theta + 0.3 * noise[:, 2:]


def report(*simulators, **options):
    return fidelity_report(simulations(*simulators), train_options=FAST, **options)


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
    expected = rows_worth(rho, num_high, num_low)
    assert effective == pytest.approx(expected, rel=4 * math.sqrt(2 / repeats))


@pytest.mark.parametrize("rho", (0.3, 0.95))
def test_no_weight_is_better(rho):
    num_high, num_low, ratio = 30, 70, 2.0
    betas = np.linspace(-1, 3, 4_001)
    pairs = (ratio**2 - 2 * betas * rho * ratio + betas**2) / num_high
    variances = pairs + betas**2 / num_low
    best = betas[variances.argmin()]
    assert best == pytest.approx(best_weight(rho, ratio, num_high, num_low), abs=1e-3)
    worth = rows_worth(rho, num_high, num_low)
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
    for seed in range(8):
        rng = np.random.default_rng(seed)
        theta = rng.uniform(-1, 1, size=(1_040, 5))
        mean = 3 * np.sin(3 * theta[:, :1]) * theta[:, 1:2] + theta[:, 2:3]
        x, x_coarse = mean + rng.normal(size=(2, 1_040, 1)) / 2
        pairs = theta[:40], x[:40], x_coarse[:40]
        found.append(pair_correlations(theta[40:], x_coarse[40:], *pairs))
    mean = np.mean([each.beyond_theta for each in found])
    assert abs(mean) < 4 / math.sqrt(8 * 40)


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
    worth = rows_worth(found.correlation.value, 600, 1_500)
    assert found.worth.value == pytest.approx(worth)
    assert found.worth.interval[0] < worth < found.worth.interval[1]
    if rho == 0:
        assert found.worth.interval[0] == 600 and found.worth.value < 650


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
    assert found.worth.interval[0] < 65 and found.worth.value < 75
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


def judged(below, transfer, own, information=None):
    """The verdict on known figures, all scores with an error of 0.02."""
    below, transfer, own = (Score(value, 0.02) for value in (below, transfer, own))
    probe = Coherence(1, 60, below, transfer, transfer, Score(0.0, 0.02), own, ())
    return LevelFidelity(1, probe, information=information).tells


@pytest.mark.parametrize(
    ("figures", "tells"),
    (
        ((0.8, 0.7, 0.6), MUCH),
        ((0.8, 0.6, 0.6), SOMETHING),
        ((0.8, 0.01, 0.6), LITTLE),
        ((0.8, -2.0, 0.6), LITTLE),
        # a reading by chance, of a level that does not know theta
        ((0.01, 0.1, 0.0), NOTHING),
        ((0.01, 0.0, 0.6, Information(1.0, 0.1, 60, 1)), MUCH),
        ((0.01, 0.0, 0.6, Information(1.0, 0.1, 60, 2)), SOMETHING),
        ((0.01, 0.0, 0.6, Information(0.05, 0.01, 60, 1)), LITTLE),
        ((0.01, 0.0, 0.6, Information(0.15, 0.1, 60, 1)), NOTHING),
    ),
)
def test_how_much_it_tells_by_its_figures(figures, tells):
    assert judged(*figures) == tells


# --- the report: it fires, and stays silent -----------------------------------------


def test_a_near_level_tells_much():
    found = report(near, high).levels[0]
    assert found.tells == MUCH and found.is_paired
    assert found.coherence.transfer.value > 0.5
    assert found.information.share > 0.5 and found.published > 0
    assert (found.correlations.beyond_theta > 0.9).all()
    assert found.loss.worth.value > 120
    assert found.verdict.startswith("Level 0 tells much about level 1. A probe")


def test_a_useless_level_tells_nothing():
    found = report(useless, high).levels[0]
    assert found.tells == NOTHING
    assert found.information.share < 0.05
    assert (abs(found.correlations.raw) < 0.5).all()
    assert found.verdict.startswith("Level 0 tells nothing about level 1.")


def test_reversed_summaries_show_and_are_mended(no_losses):
    def reversed_near(theta, noise):
        return -near(theta, noise)

    found = report(reversed_near, high).levels[0]
    assert found.coherence.transfer.value < -1
    assert found.coherence.reversed_summaries == (0, 1)
    assert (found.correlations.beyond_theta < -0.9).all()
    assert found.information.share > 0.5
    assert "misreads level 1" in found.verdict and "reversing 0, 1" in found.verdict


def test_broken_pairs_have_theta_in_common_only():
    found = report(other_noise, high).levels[0]
    assert (found.correlations.raw > 0.6).all()
    assert (abs(found.correlations.beyond_theta) < 0.5).all()
    assert found.loss.worth.value < 80
    # and yet it teaches theta
    assert found.tells in (MUCH, SOMETHING)


@pytest.mark.parametrize(("simulator", "tells"), ((useless, NOTHING), (high, MUCH)))
def test_rows_that_are_not_paired(simulator, tells, monkeypatch):
    monkeypatch.setattr(quick_fit, "held_out_losses", None)  # is not called
    rows = unpaired(simulations(simulator, high, counts=(400, 20)))
    found = fidelity_report(rows)
    (one,) = found.levels
    assert one.tells == tells and not one.is_paired
    assert (one.correlations, one.information, one.loss) == (None, None, None)
    assert str(found).count("not known: rows are not paired") == 6


def test_information_that_a_probe_cannot_use(no_losses):
    """x below tells the spread of the noise only; pairs share a little."""

    def spread_only(theta, noise):
        return noise[:, :2] + noise[:, 2:]

    found = report(spread_only, high).levels[0]
    assert found.tells in (LITTLE, SOMETHING)
    assert not found.coherence.is_informative


def test_heavy_tails_are_tamed(no_losses):
    def tail(simulator):
        return lambda theta, noise: torch.sinh(12 * simulator(theta, noise))

    found = report(tail(near), tail(high)).levels[0]
    assert found.tells == MUCH and found.coherence.transfer.value > 0.5
    assert (found.correlations.beyond_theta > 0.8).all()


def test_images_need_an_embedding(no_losses):
    rows = simulations(near, high, counts=(60, 30))

    def image(x):
        return x[:, :, None, None].expand(-1, -1, 2, 2).contiguous()

    images = MultilevelSimulations(
        tuple(
            LevelSimulations(
                r.level, r.theta, image(r.x), image(r.x_coarse) if r.level else None
            )
            for r in rows
        )
    )
    with pytest.raises(ValueError, match=r"x has shape \(2, 2, 2\) a row.*embedding="):
        fidelity_report(images)
    with pytest.raises(ValueError, match=r"embedding returned shape \(60,\)"):
        fidelity_report(images, embedding=lambda x: x[:, 0, 0, 0])
    options = {"train_options": {"max_num_epochs": 1}}
    one = fidelity_report(images, embedding=lambda x: x[..., 0, 0], **options)
    two = fidelity_report(rows, **options)
    assert str(one) == str(two)


def test_three_levels_few_pairs_and_text(no_losses):
    rows = simulations(useless, near, high, counts=(300, 40, 15))
    found = fidelity_report(rows, train_options={"max_num_epochs": 1})
    assert [one.level for one in found.levels] == [1, 2]
    assert found.levels[0].information and not found.levels[1].information
    lines = str(found).splitlines()
    assert lines[0] == "Fidelity, from 300 + 40 + 15 rows."
    assert lines[1] == found.verdicts[0] and found.verdicts[1] in lines
    assert "information I(x; x_coarse)       not known: too few pairs" in str(found)
    assert "summary    correlation   beyond theta" in str(found)


def test_seeds_decide_and_the_order_of_levels_does_not_leak():
    rows = simulations(near, high, counts=(100, 40))
    options = {"train_options": {"max_num_epochs": 1}, "seed": 5}
    state = torch.random.get_rng_state()
    assert str(fidelity_report(rows, **options)) == str(
        fidelity_report(rows, **options)
    )
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_loss_is_that_of_the_trainer():
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    seen = []

    def trainer(prior):
        seen.append(prior)
        return NPE(prior, density_estimator="mdn", show_progress_bars=False)

    rows = simulations(near, high, counts=(60, 30))
    options = {"train_options": {"max_num_epochs": 1}}
    fidelity_report(rows, inference=trainer, prior=prior, **options)
    assert seen == [prior]


def test_one_level_is_too_few():
    with pytest.raises(ValueError, match="simulations has 1 level"):
        fidelity_report(simulations(high, counts=(20,)))
