"""`check_pairing` distinguishes simulators that share their noise from others."""

import math

import numpy as np
import pytest
import torch

from sbi_multilevel.diagnostics import check_pairing, shared_noise
from sbi_multilevel.diagnostics.pairing_report import (
    BATCH,
    INCONCLUSIVE,
    INTERNAL,
    NO_NOISE,
    OTHER_SUMMARY,
    PAIRED,
    PARTLY_INTERNAL,
    UNPAIRED,
    WEAK,
    LevelPairing,
)
from tests.two_levels import PRIOR, coarse, fine, normal_noise


def check(simulators, prior=PRIOR, noise=normal_noise, **options):
    return check_pairing(simulators, prior, noise, **options)


# --- states of known estimates ------------------------------------------------------


def pairing_of(correlation, p_value, counterpart_p_value=1.0):
    """One summary with known estimates."""
    columns = np.array([[correlation], [0.1], [1 - correlation], [0.1], [p_value]])
    shared = shared_noise.SharedNoise(
        np.ones((2, 1), bool),
        *columns,
        np.zeros(1, int),
        np.array([counterpart_p_value]),
    )
    return LevelPairing(1, shared, np.zeros((2, 1)))


@pytest.mark.parametrize(
    ("estimates", "state", "is_paired"),
    (
        ((0.9, 0.001), PAIRED, True),
        ((0.2, 0.001), WEAK, True),
        ((0.6, 0.03), INCONCLUSIVE, False),
        ((0.1, 0.5), UNPAIRED, False),
        # a summary that may be paired with its own counterpart
        ((0.6, 0.03, 0.001), INCONCLUSIVE, False),
        ((0.6, 0.3, 0.001), OTHER_SUMMARY, False),
    ),
)
def test_states_of_known_estimates(estimates, state, is_paired):
    pairing = pairing_of(*estimates)
    assert pairing.states == (state,) and pairing.is_paired == is_paired


# --- the check ----------------------------------------------------------------------


def test_paired_simulators_are_paired():
    report = check([coarse, fine])
    assert report.is_paired and report.levels[0].states == (PAIRED, PAIRED)
    # noise 1 beside 1 + 0.01: correlation 1 / sqrt(1.01), ratio 0.01 / 2.01
    shared = report.levels[0].shared
    assert (abs(shared.correlation - 1 / math.sqrt(1.01)) < 0.01).all()
    assert (shared.variance_ratio < 0.02).all()
    assert report.verdicts[0].startswith("Level 1 with level 0: paired: the corr")


def fine_internal(theta, noise):
    return theta + torch.randn(len(theta), 2)


def fine_fixed_seed(theta, noise):
    generator = torch.Generator().manual_seed(0)
    return theta + torch.randn(len(theta), 2, generator=generator)


def fine_batch_seed(theta, noise):
    """Seeds a generator once per batch."""
    generator = torch.Generator().manual_seed(int(1e6 * noise[0, 0].abs()))
    return theta + torch.randn(len(theta), 2, generator=generator)


@pytest.mark.parametrize(
    ("simulator", "state", "text"),
    (
        (fine_internal, INTERNAL, "internal randomness: level {} (about"),
        (
            fine_fixed_seed,
            BATCH,
            "the output of level {} (all summaries) is reproduced",
        ),
        (
            fine_batch_seed,
            BATCH,
            "the output of level {} (all summaries) is reproduced",
        ),
    ),
)
@pytest.mark.parametrize("level", (0, 1))
def test_internal_randomness_is_detected(simulator, state, text, level):
    simulators = [coarse, fine]
    simulators[level] = simulator
    report = check(simulators)
    assert not report.is_paired
    # an independent summary has p < 0.01 once in a hundred times
    allowed = {state, PARTLY_INTERNAL} if state == INTERNAL else {state}
    assert set(report.levels[0].states) <= allowed
    assert text.format(level) in report.verdicts[0]
    assert f"level {1 - level} (" not in report.verdicts[0]


def test_internal_randomness_in_addition_to_the_noise():
    def partly(theta, noise):
        return fine(theta, noise) + torch.tensor([0.3, 0.0]) * torch.randn(
            len(theta), 2
        )

    report = check([coarse, partly], num_simulations=200, num_repeats=200)
    assert report.levels[0].states == (PARTLY_INTERNAL, PAIRED)
    assert not report.is_paired
    assert "of the noise of summary 0)" in report.verdicts[0]
    assert "Otherwise: paired" in report.verdicts[0]
    # 0.09 of 1 + 0.01 + 0.09; a mean of 200 squares has a relative error of 0.1
    share = report.levels[0].irreproducible
    assert share[0, 0] == pytest.approx(0.09 / 1.1, rel=0.5)
    assert share[0, 1] == 0 and (share[1] == 0).all()


def test_rounding_is_not_reported_as_randomness():
    def rounded(theta, noise):  # different rounding at each call
        return fine(theta, noise) * (1 + 1e-7 * torch.rand(len(theta), 1))

    assert check([coarse, rounded]).is_paired


def test_rounding_of_large_numbers_is_not_reported_as_noise():
    def rounded(size):
        def simulate(theta, noise):
            x = 100 + theta + size * noise[:, :2]
            return x * (1 + 1e-6 * torch.rand(len(theta), 1))

        return simulate

    assert check([rounded(2e-3), rounded(2e-3)]).is_paired

    def exact(theta, noise):
        return (100 + theta) * (1 + 1e-7 * torch.rand(len(theta), 1))

    assert check([exact, exact]).levels[0].states == (NO_NOISE, NO_NOISE)


def test_simulators_with_different_parts_of_the_noise_are_not_paired():
    def elsewhere(theta, noise):
        return theta + noise[:, 2:]

    report = check([coarse, elsewhere])
    assert not report.is_paired
    assert set(report.levels[0].states) <= {UNPAIRED, INCONCLUSIVE}
    assert "not paired: no shared noise detected" in report.verdicts[0]
    # although theta correlates them under the prior
    sims = check([
        lambda t, u: 9 * t + u[:, :2],
        lambda t, u: 9 * t + u[:, 2:],
    ]).simulations[1]
    both = np.corrcoef(sims.x[:, 0], sims.x_coarse[:, 0])
    assert both[0, 1] > 0.8


def test_one_summary_with_independent_noise():
    def partly(theta, noise):
        return theta + noise[:, [0, 3]]

    report = check([coarse, partly], num_simulations=200)
    assert report.levels[0].states == (PAIRED, UNPAIRED)
    assert not report.is_paired
    assert "partly paired: summary 1 not paired; otherwise" in report.verdicts[0]


def test_a_small_significant_correlation_is_weak():
    def weakly(theta, noise):
        return theta + 0.2 * noise[:, :2] + noise[:, 2:]

    report = check([coarse, weakly], num_simulations=2_000)
    assert report.levels[0].states == (WEAK, WEAK)
    assert report.is_paired and "weakly paired: " in report.verdicts[0]


def test_another_order_of_summaries_is_detected():
    simulators = [coarse, lambda theta, noise: fine(theta, noise).flip(1)]
    reports = [check(simulators, seed=seed) for seed in range(5)]
    for report in reports:
        assert not report.is_paired
        assert report.levels[0].shared.counterpart.tolist() == [1, 0]
    # each of two summaries has p < 0.1 once in ten times
    both = (OTHER_SUMMARY, OTHER_SUMMARY)
    found = [report for report in reports if report.levels[0].states == both]
    text = "summary 0 matches 1, summary 1 matches 0 of level 0"
    assert text in found[0].verdicts[0]


def test_a_reversed_sign_is_paired():
    report = check([coarse, lambda theta, noise: -fine(theta, noise)])
    assert report.is_paired
    assert (report.levels[0].shared.correlation < -0.9).all()
    assert (report.levels[0].shared.variance_ratio > 1.9).all()


def test_simulators_without_noise():
    def exact(theta, noise):
        return 3 * theta

    def cube(theta, noise):
        return theta**3

    report = check([exact, cube], noise=None)
    assert report.levels[0].states == (NO_NOISE, NO_NOISE) and report.is_paired
    assert "no noise: x is a function of theta at both levels" in report.verdicts[0]
    report = check([exact, fine])
    assert not report.is_paired
    assert "no shared noise: level 0 has no noise" in report.verdicts[0]


def with_a_parameter(simulator):
    """The first summary, and a parameter without noise."""
    return lambda theta, noise: torch.cat(
        [simulator(theta, noise)[:, :1], theta[:, 1:]], dim=1
    )


def test_summaries_without_noise_do_not_prevent_pairing():
    half = check([coarse, with_a_parameter(fine)])
    assert half.levels[0].states[0] == PAIRED and not half.is_paired
    assert "partly paired: summary 1 not paired" in half.verdicts[0]
    both = check([with_a_parameter(coarse), with_a_parameter(fine)])
    assert both.levels[0].states == (PAIRED, NO_NOISE) and both.is_paired


def test_each_pair_of_levels_has_a_verdict():
    report = check([coarse, fine, fine_internal])
    assert [each.level for each in report.levels] == [1, 2]
    assert [each.is_paired for each in report.levels] == [True, False]
    assert not report.is_paired


def test_images_are_compared_by_pixel():
    def image(theta, noise):
        return (theta + noise[:, :2])[:, :, None].expand(-1, -1, 3)

    report = check([image, image])
    assert report.levels[0].states == (PAIRED,) * 6
    assert report.simulations[1].x.shape == (50, 2, 3)
