"""Pairs that share their noise are told from those that do not."""

import math

import numpy as np
import pytest
import torch

from sbi_multilevel.diagnostics import check_pairing, shared_noise
from sbi_multilevel.diagnostics.pairing_report import (
    FOLLOWS,
    MIXED,
    NO_NOISE,
    OWN,
    PAIRED,
    PARTLY_OWN,
    UNCLEAR,
    UNPAIRED,
    WEAK,
    LevelPairing,
)
from tests.two_levels import PRIOR, coarse, fine, normal_noise


def check(simulators, prior=PRIOR, noise=normal_noise, **options):
    return check_pairing(simulators, prior, noise, **options)


# --- verdicts by their figures ------------------------------------------------------


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
    ("simulator", "state", "text"),
    (
        (fine_of_its_own, OWN, "draws randomness of its own: level {} (about"),
        (fine_of_one_seed, MIXED, "a row of level {} (all summaries) differs from"),
        (fine_of_the_first_row, MIXED, "a row of level {} (all summaries) differs"),
    ),
)
@pytest.mark.parametrize("level", (0, 1))
def test_randomness_of_its_own_is_caught(simulator, state, text, level):
    simulators = [coarse, fine]
    simulators[level] = simulator
    report = check(simulators)
    assert not report.is_paired
    # one that is independent looks paired once in a hundred times
    allowed = {state, PARTLY_OWN} if state == OWN else {state}
    assert set(report.pairs[0].states) <= allowed
    assert text.format(level) in report.verdicts[0]
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
    assert both[0, 1] > 0.8


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
    simulators = [coarse, lambda theta, noise: fine(theta, noise).flip(1)]
    reports = [check(simulators, seed=seed) for seed in range(5)]
    for report in reports:
        assert not report.is_paired
        assert report.pairs[0].shared.counterpart.tolist() == [1, 0]
    # each of two summaries looks as if it might be paired once in ten times
    found = [r for r in reports if r.pairs[0].states == (FOLLOWS, FOLLOWS)]
    assert "0 follows 1, 1 follows 0 of level 0" in found[0].verdicts[0]


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
