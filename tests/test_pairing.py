"""Pairs that share their noise are told from those that do not."""

import math
import time

import numpy as np
import pytest
import torch
from sbi.utils import BoxUniform

from sbi_multilevel import simulate_multilevel
from sbi_multilevel.diagnostics import check_pairing, shared_noise
from sbi_multilevel.diagnostics.pairing_report import (
    FOLLOWS,
    NO_NOISE,
    OWN,
    PAIRED,
    PARTLY_OWN,
    UNCLEAR,
    UNPAIRED,
    WEAK,
    LevelPairing,
)
from sbi_multilevel.diagnostics.shared_noise import noise_variance
from sbi_multilevel.simulation import TooManyFailures
from tests.two_levels import PRIOR, coarse, fine, normal_noise

GROUPS = np.repeat(np.arange(10), 5)
ROWS = 40


def measure(x, x_coarse, groups=GROUPS, seed=0):
    return shared_noise.shared_noise(x, x_coarse, groups, seed=seed)


def correlated(rho, num_thetas=10, num_noises=5, k=1, seed=0):
    """Both sides follow theta, and share noise with correlation rho."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(num_thetas), num_noises)
    theta = 10 * rng.normal(size=(num_thetas, 1))[groups]
    u, v = rng.normal(size=(2, len(groups), k))
    return theta + u, theta**2 + rho * u + math.sqrt(1 - rho**2) * v, groups


def check(simulators, prior=PRIOR, noise=normal_noise, **options):
    return check_pairing(simulators, prior, noise, **options)


# --- the statistic -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("slope", "correlation", "ratio"),
    ((1.0, 1.0, 0.0), (2.0, 1.0, 0.2), (-1.0, -1.0, 2.0), (-0.5, -1.0, 1.8)),
)
def test_exact_where_one_side_is_a_multiple_of_the_other(slope, correlation, ratio):
    noise = np.random.default_rng(0).normal(size=(50, 1))
    theta = 100.0 * GROUPS[:, np.newaxis]
    found = measure(theta + slope * noise, np.sin(theta) + noise)
    assert found.correlation == pytest.approx([correlation])
    # Var[(slope - 1) u] / ((slope^2 + 1) Var u)
    assert found.variance_ratio == pytest.approx([ratio], abs=1e-12)
    assert found.correlation_error == pytest.approx([0.0], abs=1e-9)
    assert found.p_value < 0.01


def test_by_hand_for_two_thetas():
    x = np.array([[0.0], [2.0], [10.0], [14.0]])
    x_coarse = np.array([[1.0], [3.0], [5.0], [4.0]])
    found = measure(x, x_coarse, np.array([0, 0, 1, 1]))
    # variances 2 and 8; 2 and 0.5; covariances 2 and -2
    assert found.correlation == pytest.approx([0.0])
    assert found.variance_ratio == pytest.approx([1.0])
    # without one theta: 2 / 2 and -2 / 2, so the error is their mean distance
    assert found.correlation_error == pytest.approx([math.sqrt(0.5 * 2)])
    assert noise_variance(x, np.array([0, 0, 1, 1])) == pytest.approx([5.0])


@pytest.mark.parametrize("rho", (-0.6, 0.0, 0.5, 0.9))
def test_correlation_and_ratio_given_theta(rho):
    found = measure(*correlated(rho, num_thetas=300))
    assert abs(found.correlation - rho) < 4 * found.correlation_error
    assert abs(found.variance_ratio - (1 - rho)) < 4 * found.variance_ratio_error
    assert found.correlation_error < 0.05


def test_jackknife_errors_are_the_spread_over_data_sets(monkeypatch):
    monkeypatch.setattr(shared_noise, "_NUM_PERMUTATIONS", 1)
    found = [measure(*correlated(0.5, num_thetas=40, seed=s)) for s in range(100)]
    for value, error in (
        ("correlation", "correlation_error"),
        ("variance_ratio", "variance_ratio_error"),
    ):
        spread = np.std([getattr(f, value) for f in found], ddof=1)
        typical = np.sqrt(np.mean([getattr(f, error) ** 2 for f in found]))
        # the relative error of a standard deviation of 100 numbers is 1 / sqrt(200)
        assert typical == pytest.approx(spread, rel=4 / math.sqrt(200))


@pytest.mark.parametrize("k", (1, 4))
def test_p_values_hold_their_level_with_tails_and_unequal_noise(k, monkeypatch):
    monkeypatch.setattr(shared_noise, "_NUM_PERMUTATIONS", 199)
    smallest = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        theta = np.exp(2 * rng.normal(size=(10, 1)))[GROUPS]
        sides = theta + theta * rng.standard_cauchy(size=(2, 50, k))
        found = measure(*sides, seed=seed)
        smallest.append((found.p_value.min(), found.counterpart_p_value.min()))
    rejected = (np.array(smallest) <= 0.05).mean(axis=0)
    # at most the nominal level (the test is exact), and not far below it
    tolerance = 4 * math.sqrt(0.05 * 0.95 / 150)
    assert (rejected <= 0.05 + tolerance).all() and (rejected > 0).all()


def test_a_function_of_theta_changes_nothing_beyond_rounding():
    x, x_coarse, groups = correlated(0.7)
    shift = np.random.default_rng(1).normal(size=(10, 1))[groups]
    found, moved = measure(x, x_coarse), measure(x + shift, x_coarse - 3 * shift)
    assert moved.correlation == pytest.approx(found.correlation)
    assert moved.variance_ratio == pytest.approx(found.variance_ratio)
    assert moved.p_value == pytest.approx(found.p_value)


def test_the_order_of_rows_does_not_matter():
    x, x_coarse, groups = correlated(0.7)
    order = np.random.default_rng(1).permutation(50)
    found = measure(x, x_coarse)
    moved = measure(x[order], x_coarse[order], groups[order])
    assert moved.correlation == pytest.approx(found.correlation)
    assert moved.correlation_error == pytest.approx(found.correlation_error)


def test_many_summaries_are_compared_by_place():
    x, x_coarse, groups = correlated(0.95, k=60)
    x_coarse[:, 7] = np.random.default_rng(1).normal(size=50)
    found = measure(x, x_coarse)
    assert np.flatnonzero(found.p_value > 0.01).tolist() == [7]
    assert (found.counterpart == np.arange(60)).all()


def test_a_summary_that_varies_at_few_thetas_is_judged_by_its_own_spread():
    x, x_coarse, groups = correlated(0.0, k=2)
    few = np.where(groups < 2, np.random.default_rng(1).normal(size=50), 0.0)
    x[:, 1] = x_coarse[:, 1] = few
    found = measure(x, x_coarse)
    assert found.p_value[1] < 0.01 < found.p_value[0]


def test_noise_of_very_unequal_size_hides_nothing():
    x, x_coarse, groups = correlated(0.9)
    scale = np.exp(6 * np.random.default_rng(2).normal(size=(10, 1)))[groups]
    assert measure(scale * x, scale * x_coarse).p_value < 0.01


def judged(correlation, p_value, counterpart_p_value=1.0):
    """The verdict on one summary with known figures."""
    columns = np.array([[correlation], [0.1], [1 - correlation], [0.1], [p_value]])
    shared = shared_noise.SharedNoise(
        np.ones((2, 1), bool),
        *columns,
        np.zeros(1, int),
        np.array([counterpart_p_value]),
    )
    return LevelPairing(1, shared, np.zeros((2, 1)))


@pytest.mark.parametrize(
    ("figures", "state", "is_paired"),
    (
        ((0.9, 0.001), PAIRED, True),
        ((0.2, 0.001), WEAK, True),
        ((0.6, 0.03), UNCLEAR, False),
        ((0.1, 0.5), UNPAIRED, False),
        # the better counterpart of a summary that may well be paired says nothing
        ((0.6, 0.03, 0.001), UNCLEAR, False),
        ((0.6, 0.3, 0.001), FOLLOWS, False),
    ),
)
def test_states_by_their_figures(figures, state, is_paired):
    pairing = judged(*figures)
    assert pairing.states == (state,) and pairing.is_paired == is_paired


# --- the check, and healthy twins ---------------------------------------------------


def test_paired_simulators_are_paired():
    report = check([coarse, fine])
    assert report.is_paired and report.pairs[0].states == (PAIRED, PAIRED)
    # noise 1 beside 1 + 0.01: correlation 1 / sqrt(1.01), ratio 0.01 / 2.01
    shared = report.pairs[0].shared
    assert (abs(shared.correlation - 1 / math.sqrt(1.01)) < 0.01).all()
    assert (shared.variance_ratio < 0.02).all()
    assert report.verdicts[0].startswith("Level 1 with level 0: paired: the corr")


def fine_of_its_own(theta, noise):
    return theta + torch.randn(len(theta), 2)


def fine_of_one_seed(theta, noise):
    generator = torch.Generator().manual_seed(0)
    return theta + torch.randn(len(theta), 2, generator=generator)


def fine_of_the_first_row(theta, noise):
    """Seeds a generator by the noise of the batch, not of the row."""
    generator = torch.Generator().manual_seed(int(1e6 * noise[0, 0].abs()))
    return theta + torch.randn(len(theta), 2, generator=generator)


@pytest.mark.parametrize(
    "simulator", (fine_of_its_own, fine_of_one_seed, fine_of_the_first_row)
)
@pytest.mark.parametrize("level", (0, 1))
def test_randomness_of_its_own_is_caught(simulator, level):
    simulators = [coarse, fine]
    simulators[level] = simulator
    report = check(simulators)
    assert not report.is_paired
    assert report.pairs[0].states == (OWN, OWN)
    assert f"draws randomness of its own: level {level} (about" in report.verdicts[0]
    assert f"level {1 - level} (" not in report.verdicts[0]


def test_randomness_of_its_own_beside_the_noise():
    def partly(theta, noise):
        return fine(theta, noise) + torch.tensor([0.3, 0.0]) * torch.randn(
            len(theta), 2
        )

    report = check([coarse, partly], num_simulations=200, num_repeats=200)
    assert report.pairs[0].states == (PARTLY_OWN, PAIRED)
    assert not report.is_paired
    assert "of the noise of summary 0)" in report.verdicts[0]
    assert "As it is: paired" in report.verdicts[0]
    # 0.09 of 1 + 0.01 + 0.09; a mean of 200 squares has a relative error of 0.1
    own = report.pairs[0].own
    assert own[0, 0] == pytest.approx(0.09 / 1.1, rel=0.5)
    assert own[0, 1] == 0 and (own[1] == 0).all()


def test_rounding_is_no_randomness():
    def rounded(theta, noise):  # another rounding at each call
        return fine(theta, noise) * (1 + 1e-7 * torch.rand(len(theta), 1))

    assert check([coarse, rounded]).is_paired


def test_rounding_of_large_numbers_is_neither_randomness_nor_noise():
    def rounded(size):
        def simulate(theta, noise):
            x = 100 + theta + size * noise[:, :2]
            return x * (1 + 1e-6 * torch.rand(len(theta), 1))

        return simulate

    assert check([rounded(2e-3), rounded(2e-3)]).is_paired

    def exact(theta, noise):
        return (100 + theta) * (1 + 1e-7 * torch.rand(len(theta), 1))

    assert check([exact, exact]).pairs[0].states == (NO_NOISE, NO_NOISE)


def test_another_part_of_the_noise_is_not_paired():
    def elsewhere(theta, noise):
        return theta + noise[:, 2:]

    report = check([coarse, elsewhere])
    assert not report.is_paired
    assert set(report.pairs[0].states) <= {UNPAIRED, UNCLEAR}
    assert "not paired: no shared noise was seen" in report.verdicts[0]
    # though they are correlated over the prior, through theta
    rows = check([
        lambda t, u: 9 * t + u[:, :2],
        lambda t, u: 9 * t + u[:, 2:],
    ]).simulations[1]
    both = np.corrcoef(rows.x[:, 0], rows.x_coarse[:, 0])
    assert both[0, 1] > 0.9


def test_one_summary_of_other_noise():
    def partly(theta, noise):
        return theta + noise[:, [0, 3]]

    report = check([coarse, partly], num_simulations=200)
    assert report.pairs[0].states == (PAIRED, UNPAIRED)
    assert not report.is_paired
    assert "partly: summary 1 is not; of the others" in report.verdicts[0]


def test_a_clear_but_small_correlation_is_weak():
    def weakly(theta, noise):
        return theta + 0.2 * noise[:, :2] + noise[:, 2:]

    report = check([coarse, weakly], num_simulations=2_000)
    assert report.pairs[0].states == (WEAK, WEAK)
    assert report.is_paired and "weakly paired: " in report.verdicts[0]


def test_summaries_in_another_order_are_found():
    report = check([coarse, lambda theta, noise: fine(theta, noise).flip(1)])
    pair = report.pairs[0]
    assert pair.states == (FOLLOWS, FOLLOWS) and not report.is_paired
    assert pair.shared.counterpart.tolist() == [1, 0]
    assert "0 follows 1, 1 follows 0 of level 0" in report.verdicts[0]


def test_a_reversed_sign_is_paired():
    report = check([coarse, lambda theta, noise: -fine(theta, noise)])
    assert report.is_paired
    assert (report.pairs[0].shared.correlation < -0.9).all()
    assert (report.pairs[0].shared.variance_ratio > 1.9).all()


def test_simulators_without_noise():
    def exact(theta, noise):
        return 3 * theta

    def cube(theta, noise):
        return theta**3

    report = check([exact, cube], noise=None)
    assert report.pairs[0].states == (NO_NOISE, NO_NOISE) and report.is_paired
    assert "no noise: x is a function of theta at both levels" in report.verdicts[0]
    report = check([exact, fine])
    assert not report.is_paired
    assert "no noise to share: level 0 has none" in report.verdicts[0]


def with_a_parameter(simulator):
    """The first summary, and beside it a parameter without noise."""
    return lambda theta, noise: torch.cat(
        [simulator(theta, noise)[:, :1], theta[:, 1:]], dim=1
    )


def test_summaries_without_noise_are_counted_aside():
    half = check([coarse, with_a_parameter(fine)])
    assert half.pairs[0].states[0] == PAIRED and not half.is_paired
    assert "partly: summary 1 is not" in half.verdicts[0]
    both = check([with_a_parameter(coarse), with_a_parameter(fine)])
    assert both.pairs[0].states == (PAIRED, NO_NOISE) and both.is_paired


def test_each_pair_of_levels_has_a_verdict():
    report = check([coarse, fine, fine_of_its_own])
    assert [pair.level for pair in report.pairs] == [1, 2]
    assert [pair.is_paired for pair in report.pairs] == [True, False]
    assert not report.is_paired


def test_images_are_compared_pixel_by_pixel():
    def image(theta, noise):
        return (theta + noise[:, :2])[:, :, None].expand(-1, -1, 3)

    report = check([image, image])
    assert report.pairs[0].states == (PAIRED,) * 6
    assert report.simulations[1].x.shape == (50, 2, 3)


# --- runs ---------------------------------------------------------------------------


def test_each_level_is_run_once_a_row_and_rows_are_pairs():
    runs = []

    def counting(simulator, level):
        def simulate(theta, noise):
            runs.append((level, len(theta)))
            return simulator(theta, noise)

        return simulate

    simulators = [counting(coarse, 0), counting(fine, 1), counting(fine, 2)]
    report = check(simulators, num_repeats=7, costs=(1.0, 2.0, 10.0))
    assert sorted(runs) == [(0, 57), (1, 57), (2, 57)]
    assert report.cost == 57 * 13
    rows = report.simulations
    assert rows.num_simulations == (50, 50, 50) and rows.costs == (1.0, 2.0, 10.0)
    assert len(rows[1].theta.unique(dim=0)) == 10
    assert torch.equal(rows[1].x_coarse, rows[0].x)
    assert torch.equal(rows[2].x_coarse, rows[2].x)
    # fine - coarse is a tenth of a noise
    assert (rows[1].x - rows[1].x_coarse).std() == pytest.approx(0.1, rel=0.4)


def test_seeds_decide_and_nothing_leaks():
    state = torch.random.get_rng_state()
    one, same, other = (check([coarse, fine], seed=seed) for seed in (3, 3, 4))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(one.simulations[1].x, same.simulations[1].x)
    assert one.verdicts == same.verdicts
    assert not torch.equal(one.simulations[1].x, other.simulations[1].x)
    rows = simulate_multilevel(
        [coarse, fine], PRIOR, (50, 50), noise=normal_noise, seed=3,
        show_progress_bars=False,
    )  # fmt: skip
    for level in (0, 1):
        assert not torch.isin(one.simulations[1].theta, rows[level].theta).any()


def test_batches_and_workers_change_nothing():
    one = check([coarse, fine])
    two = check([coarse, fine], simulation_batch_size=(7, 1), num_workers=1)
    assert torch.equal(one.simulations[1].x, two.simulations[1].x)
    assert one.verdicts == two.verdicts


def test_costs_are_measured():
    def slow(theta, noise):
        time.sleep(0.15)
        return coarse(theta, noise)

    costs = check([slow, slow]).costs
    assert costs[0] * 60 > 0.14 and costs[0] / costs[1] == pytest.approx(1, abs=0.3)


def test_a_theta_with_one_valid_row_is_left_out():
    seen = check([coarse, fine]).simulations[0]

    def failing_but_once(theta, noise):
        x = fine(theta, noise)
        same_theta = (theta == seen.theta[0]).all(dim=1)
        x[same_theta & (coarse(theta, noise) != seen.x[0]).any(dim=1)] = torch.nan
        return x

    report = check([coarse, failing_but_once])
    assert report.is_paired and report.num_failed == 5
    assert len(report.simulations[0]) == 45


def failing(theta, noise):
    x = fine(theta, noise)
    x[theta[:, 0] > 0.5] = torch.nan
    return x


def test_rows_that_fail_are_left_out_and_counted():
    report = check([coarse, failing])
    assert report.is_paired and report.num_failed > 0
    assert len(report.simulations[0]) == 50 - report.num_failed
    assert f"{report.num_failed} rows failed" in str(report)


def test_too_few_valid_rows():
    with pytest.raises(ValueError, match="Only 0 of 50 rows are valid at all levels"):
        check([coarse, lambda theta, noise: fine(theta, noise) * torch.nan])
    with pytest.raises(TooManyFailures):
        check([coarse, lambda theta, noise: 1 / 0])


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"simulators": [coarse]}, "simulators has 1 levels"),
        ({"num_noises": 2}, "num_noises=2 are too few"),
        ({"num_simulations": 19}, "num_simulations=19"),
        ({"num_repeats": 0}, "num_repeats=0 must be between 1"),
        ({"num_repeats": 51}, "num_repeats=51 must be between 1"),
        ({"costs": (1.0,)}, "costs must hold one number for each of the 2"),
        ({"simulators": [coarse, lambda t, u: t[:, :1]]}, r"shapes \[\(2,\), \(1,\)\]"),
    ),
)
def test_bad_arguments(options, message):
    options = {"simulators": [coarse, fine], **options}
    with pytest.raises(ValueError, match=message):
        check(**options)


def test_the_report_reads_well():
    prior = BoxUniform(-torch.ones(1), torch.ones(1))
    report = check_pairing(
        [lambda t, u: t + u, lambda t, u: t + 2 * u],
        prior,
        lambda n, generator: torch.randn(n, 1, generator=generator),
        costs=(1.0, 9.0),
    )
    assert str(report).splitlines() == [
        "Pairing, from 60 runs of each level, at a cost of 600.",
        "Level 1 with level 0: paired: the correlation given theta is 1.00.",
        "  summary  corr. given theta  variance paired/unpaired       p  verdict",
        "        0        1.00 ± 0.00               0.20 ± 0.00   0.001  paired",
    ]


def test_many_summaries_are_abridged():
    def wide(theta, noise):
        return theta[:, :1] + noise

    def other(theta, noise):
        x = wide(theta, noise)
        x[:, 17] = theta[:, 0] + noise[:, 18] ** 2
        return x

    def noise(n, generator):
        return torch.randn(n, 20, generator=generator)

    lines = str(check([wide, other], noise=noise)).splitlines()
    assert lines[-1] == "  and 8 with smaller p" and len(lines) == 3 + 12 + 1
    assert lines[3].split()[0] == "17"
