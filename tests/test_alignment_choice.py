"""Which map is chosen, on levels where the right one is known."""

import numpy as np
import pytest
import torch

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.fitting import MapFitter
from sbi_multilevel.level_maps.kinds import MAP_KINDS, MapChoice
from sbi_multilevel.level_maps.selection.cross_validation import (
    best_map,
    choose_scorer,
    score_maps,
)
from sbi_multilevel.level_maps.selection.synthetic_likelihood import SyntheticLikelihood
from sbi_multilevel.level_maps.tail_transform import TailTransform
from tests.gaussian_simulations import normal_noise

UNPAIRED = ("none", "shift", "full", "scaled")
both = pytest.mark.parametrize("target", ("theta", "x"))


def choices_of(*kinds):
    return [MapChoice(kind) for kind in kinds]


def judged(fitter, choices, high, folds, target):
    judge = choose_scorer(fitter, high, target)
    return score_maps(fitter, choices, high, folds, judge)


def judge(low, high, kinds, target, num_folds=4, tails=None):
    """Mean score of each kind of map."""
    folds = np.array_split(np.arange(len(high)), num_folds)
    scores = judged(MapFitter(low, tails), choices_of(*kinds), high, folds, target)
    return {choice.kind: score.mean() for choice, score in scores.items()}


def lead(means, kind):
    """How far the mean score of a kind is above that of the best other."""
    return means[kind] - max(means[other] for other in means if other != kind)


def level(n, seed, covariance, shift=0.0, slope=1.0):
    generator = np.random.default_rng(seed)
    theta = generator.normal(size=(n, 1))
    noise = normal_noise(generator, covariance, n)
    return LevelArrays(theta, (theta + shift) * slope + noise)


def correlated(rho):
    return 0.5 * np.array([[1.0, rho], [rho, 1.0]])


# ------------------------------------------------------------- the right map


@both
def test_shared_noise_calls_for_a_paired_map(target):
    generator = np.random.default_rng(0)
    theta, noise = generator.normal(size=(1_100, 1)), generator.normal(size=(1_100, 2))
    coarse = theta + noise * [1.0, 0.3]
    # a nonlinear function of the noise, which no map of mean and covariance makes
    fine = coarse + 0.8 * (coarse - 1.0) ** 2
    low = LevelArrays(theta[100:], coarse[100:])
    high = LevelArrays(theta[:100], fine[:100], coarse[:100])
    means = judge(low, high, MAP_KINDS, target)
    # the process and the quadratic do about as well
    paired = {kind: means[kind] for kind in (*UNPAIRED, "paired_quadratic")}
    assert lead(paired, "paired_quadratic") > 0.1
    assert max(means.values()) < means["paired_quadratic"] + 0.2


@both
def test_a_change_of_covariance_calls_for_the_full_map(target):
    low, high = level(1_500, 0, correlated(0.8)), level(60, 1, correlated(-0.8))
    means = judge(low, high, UNPAIRED[:3], target)
    assert lead(means, "full") > 0.1


@both
def test_a_shift_calls_for_no_more_than_a_shift(target):
    covariance = 0.5 * np.eye(2)
    low, high = level(1_500, 0, covariance), level(30, 1, covariance, shift=1.0)
    means = judge(low, high, UNPAIRED, target)
    # the others can shift too
    assert lead(means, "shift") > -0.1
    assert means["none"] < means["shift"] - 0.2


def test_a_scale_that_depends_on_theta_calls_for_the_scaled_map():
    def rows(n, slope, seed):
        generator = np.random.default_rng(seed)
        theta = generator.uniform(-1, 1, size=(n, 1))
        return LevelArrays(
            theta, theta + np.exp(slope * theta) * generator.normal(size=(n, 2))
        )

    means = judge(rows(1_500, 0.0, 0), rows(80, 1.2, 1), UNPAIRED, "x")
    assert lead(means, "scaled") > 0.1


@both
def test_nothing_beats_no_map_by_much_where_levels_agree(target):
    low, high = level(1_500, 0, correlated(0.3)), level(40, 1, correlated(0.3))
    means = judge(low, high, UNPAIRED, target)
    assert max(means.values()) < means["none"] + 0.12


@both
def test_more_features_than_rows_call_for_no_covariance(target):
    """Theta shows in differences of close pairs, which few rows cannot keep close."""
    covariance = np.kron(np.eye(6), correlated(0.95))
    slope = np.tile([1.0, -1.0], 6)
    low = level(600, 0, covariance, slope=slope)
    high = level(12, 1, covariance, shift=2.0, slope=slope)
    assert lead(judge(low, high, UNPAIRED, target), "shift") > 0.2


@both
def test_a_constant_feature_changes_no_choice(target):
    low, high = level(600, 0, correlated(0.8)), level(40, 1, correlated(-0.8))
    kinds = ("none", "shift", "full")
    without = judge(low, high, kinds, target)
    padded = [
        LevelArrays(rows.theta, np.column_stack((rows.x, np.full(len(rows), 0.1))))
        for rows in (low, high)
    ]
    means = judge(*padded, kinds, target)
    for kind in kinds:
        gap = means[kind] - means["none"]
        # covariances are shrunk a little more where features are more
        assert gap == pytest.approx(without[kind] - without["none"], abs=0.3)
    assert lead(means, "full") > 0.1


# ------------------------------------------------------------- judging


class Recorder(MapFitter):
    """Notes the rows that maps are fitted to."""

    def fit(self, choice, high):
        seen.append(high)
        return super().fit(choice, high)


seen: list[LevelArrays] = []


def test_maps_are_judged_by_rows_that_they_have_not_seen():
    low, high = level(200, 0, correlated(0.3)), level(11, 1, correlated(0.3))
    folds = np.array_split(np.random.default_rng(0).permutation(11), 3)
    seen.clear()
    judged(Recorder(low), choices_of("shift", "full"), high, folds, "x")
    assert len(seen) == 6
    for fold, fitted in zip(np.repeat(np.arange(3), 2), seen):
        together = np.concatenate((fitted.x, high.x[folds[fold]]))
        assert np.array_equal(np.sort(together[:, 0]), np.sort(high.x[:, 0]))


def test_scores_are_those_of_the_synthetic_likelihood_fold_by_fold():
    low, high = level(300, 0, correlated(0.3)), level(9, 1, correlated(0.3))
    order = np.random.default_rng(0).permutation(9)
    folds = np.array_split(order, 2)
    (none,) = choices_of("none")
    model = SyntheticLikelihood.fit(low)
    scores = judged(MapFitter(low), [none], high, folds, "x")
    assert np.allclose(scores[none], model.log_likelihood(high)[order])
    scores = judged(MapFitter(low), [none], high, folds, "theta")
    expected = model.log_posterior_ratio(high, low.theta)[order]
    assert np.allclose(scores[none], expected)


def test_many_features_are_judged_by_their_principal_components():
    generator = np.random.default_rng(0)
    loadings = generator.normal(size=(2, 150))

    def rows(n, shift):
        theta = generator.normal(size=(n, 1))
        factors = theta + [shift, 0.0] + 0.3 * generator.normal(size=(n, 2))
        return LevelArrays(theta, factors @ loadings + generator.normal(size=(n, 150)))

    means = judge(rows(500, 0.0), rows(30, 2.0), ("none", "shift"), "theta", 2)
    assert means["shift"] > means["none"] + 0.5


# ------------------------------------------------------------- members


def scores_of(*means, num_rows=40):
    generator = np.random.default_rng(0)
    rows = generator.normal(size=num_rows)
    return {MapChoice(kind): rows + mean for kind, mean in zip(MAP_KINDS, means)}


def test_the_best_map_is_that_of_the_highest_mean():
    assert best_map(scores_of(-2.0, 0.0, -1.5)) == MapChoice("shift")


def test_a_map_that_could_not_be_fitted_is_not_chosen():
    scores = scores_of(-1.0, -2.0, -1.5)
    row = next(iter(scores))
    scores[row] = scores[row].copy()
    scores[row][3] = -np.inf
    assert best_map(scores) == MapChoice("full")
    all_broken = {choice: np.full(20, -np.inf) for choice in scores}
    assert best_map(all_broken) == MapChoice("none")


# ------------------------------------------------------------- what rows allow

HEAVY = TailTransform(torch.zeros(2), torch.ones(2), torch.ones(2))


def blank(num_features, paired):
    x = np.zeros((5, num_features))
    return LevelArrays(np.zeros((5, 1)), x, x if paired else None)


def kinds_of(num_features, paired, kinds=MAP_KINDS):
    high = blank(num_features, paired)
    return [c.kind for c in MapFitter(high).candidates(kinds, high)]


@pytest.mark.parametrize(
    "num_features, paired, without",
    (
        (12, True, ()),
        (12, False, MAP_KINDS[4:]),
        (13, True, ("paired_process",)),
        (50, True, ("paired_process",)),
        (51, True, ("paired_process", "paired_quadratic")),
        (201, True, ("paired_process", "paired_quadratic", "full", "scaled")),
        (
            2_001,
            True,
            ("paired_process", "paired_quadratic", "full", "scaled", "paired"),
        ),
    ),
)
def test_maps_that_rows_do_not_allow_are_left_out(num_features, paired, without):
    expected = [kind for kind in MAP_KINDS if kind not in without]
    assert kinds_of(num_features, paired) == expected


def test_no_map_is_left_where_none_is_allowed():
    assert kinds_of(3, False, ("paired",)) == ["none"]
    assert kinds_of(3, False, ("shift",)) == ["shift"]


def test_heavy_tails_double_the_maps_but_none():
    high = blank(2, paired=False)
    choices = MapFitter(high, HEAVY).candidates(("none", "shift"), high)
    assert list(map(str, choices)) == ["none", "shift", "shift (tails tamed)"]


def test_maps_that_cannot_be_are_refused():
    rows = level(20, 0, correlated(0.3))
    with pytest.raises(ValueError, match="alignment must be one of .*'affine'"):
        MapFitter(rows).fit(MapChoice("affine"), rows)
    with pytest.raises(ValueError, match="'paired_process' needs pairs"):
        MapFitter(rows).fit(MapChoice("paired_process"), rows)


# ------------------------------------------------------------- tamed tails


def untamed(rows, forward_tails=HEAVY.inverse):
    return LevelArrays(rows.theta, forward_tails(torch.from_numpy(rows.x)).numpy())


def test_a_tamed_map_acts_in_tamed_space_and_returns_x():
    theta = np.random.default_rng(0).normal(size=(400, 1))
    noise = np.random.default_rng(1).normal(size=(400, 2))
    low, moved = (untamed(LevelArrays(theta, theta + noise + s)) for s in (0.0, 1.5))
    dear = np.linspace(-2, 2, 200)[:, None]
    spread = np.tile([[1.0, -1.0], [-1.0, 1.0]], (100, 1))
    high = untamed(LevelArrays(dear, dear + spread + 1.5))
    fitter = MapFitter(low, HEAVY)
    gaps = {}
    for choice in (MapChoice("shift", True), MapChoice("shift")):
        x = fitter.fit(choice, high)(theta, low.x)
        tamed = HEAVY(torch.from_numpy(x)) - HEAVY(torch.from_numpy(moved.x))
        gaps[choice.transforms_tails] = np.sqrt((tamed.numpy() ** 2).mean())
    assert gaps[True] < 0.15 < 0.4 < gaps[False]


def test_heavy_tails_call_for_a_tamed_map():
    low = untamed(level(1_500, 0, 2 * correlated(0.3)))
    high = untamed(level(40, 1, 2 * correlated(0.3), shift=2.0))
    folds = np.array_split(np.arange(40), 4)
    fitter = MapFitter(low, HEAVY)
    choices = fitter.candidates(("none", "shift"), high)
    for target in ("theta", "x"):
        scores = judged(fitter, choices, high, folds, target)
        means = {str(choice): score.mean() for choice, score in scores.items()}
        assert lead(means, "shift (tails tamed)") > 0.03


def test_pairs_are_tamed_on_both_sides():
    theta = np.random.default_rng(0).normal(size=(300, 1))
    coarse = theta + np.random.default_rng(1).normal(size=(300, 2))
    low = untamed(LevelArrays(theta, coarse))
    fine = untamed(LevelArrays(theta, 0.5 * coarse + theta))
    high = LevelArrays(theta[:60], fine.x[:60], low.x[:60])
    move = MapFitter(low, HEAVY).fit(MapChoice("paired", True), high)
    assert np.allclose(move(theta, low.x), fine.x, rtol=1e-2, atol=1e-2)
