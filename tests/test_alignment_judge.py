"""Trees that see what quadratics miss, and when a judge of maps has them."""

import numpy as np
import pytest
from scipy.stats import norm
from threadpoolctl import threadpool_limits

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.fitting import MapFitter
from sbi_multilevel.level_maps.kinds import MapChoice
from sbi_multilevel.level_maps.selection.cross_validation import (
    choose_scorer,
    score_maps,
)
from sbi_multilevel.level_maps.selection.scorer import MapScorer
from sbi_multilevel.level_maps.selection.synthetic_likelihood import SyntheticLikelihood
from sbi_multilevel.level_maps.selection.trees import Trees
from tests.gaussian_simulations import low_simulations, scaled_simulations

both = pytest.mark.parametrize("target", ("theta", "x"))


def switch(theta):
    """Mean of a cell that is off below 0.3, and on above."""
    return np.where(theta > 0.3, 4.0, 0.0)


def switching_rows(n, seed, move=lambda x: x):
    generator = np.random.default_rng(seed)
    theta = generator.uniform(-1, 1, size=(n, 1))
    coarse = switch(theta) + 0.3 * generator.normal(size=(n, 1))
    return LevelArrays(theta, move(coarse), coarse)


def judged(low, choices, high, folds, target):
    judge = choose_scorer(MapFitter(low), high, target)
    return score_maps(MapFitter(low), choices, high, folds, judge)


# ------------------------------------------------------------- trees


def test_trees_see_a_switch_and_a_scale_that_quadratics_miss():
    generator = np.random.default_rng(0)
    theta = generator.uniform(-1, 1, size=(3_000, 1))
    noise = generator.normal(size=(3_000, 1))
    scale = np.where(theta > 0.5, 3.0, 0.3)
    trees = Trees.fit(LevelArrays(theta, np.hstack((switch(theta), scale * noise))))
    places = np.array([[0.2], [0.4], [0.6]])
    mean, _, _, log_scale = trees(places).T
    # in standard deviations of what a quadratic leaves
    assert mean[1] - mean[0] > 0.5
    assert log_scale[2] - log_scale[1] > 0.5


def test_each_row_has_the_features_of_trees_that_have_not_seen_it():
    generator = np.random.default_rng(0)
    rows = LevelArrays(generator.normal(size=(600, 2)), generator.normal(size=(600, 1)))
    trees = Trees.fit(rows)
    features = trees(rows.theta)
    for part, fitted in enumerate(trees.parts):
        own = [trees.left_out[row.tobytes()] == part for row in rows.theta]
        assert 150 < sum(own) < 250
        assert np.allclose(features[own], fitted(rows.theta[own]))
        others = fitted(rows.theta[~np.array(own)])[:, 0]
        remembered = np.corrcoef(others, rows.x[~np.array(own), 0])[0, 1]
        assert remembered > 0.25  # so it matters that these are not asked
    # x is noise: what has not seen it cannot tell it
    assert np.corrcoef(features[:, 0], rows.x[:, 0])[0, 1] < 0.2


def test_rows_at_the_same_theta_are_left_out_together():
    generator = np.random.default_rng(0)
    theta = np.repeat(generator.normal(size=(40, 1)), 10, axis=0)
    order = generator.permutation(400)
    # noise that rows at the same theta share, which their twins would tell
    shared = np.repeat(generator.normal(size=(40, 1)), 10, axis=0)
    rows = LevelArrays(theta[order], shared[order])
    features = Trees.fit(rows)(rows.theta)[:, 0]
    assert np.corrcoef(features, rows.x[:, 0])[0, 1] < 0.5


def test_other_parameters_have_the_mean_of_all_trees():
    trees = Trees.fit(low_simulations(300))
    fresh = np.random.default_rng(1).normal(size=(5, 2))
    expected = np.mean([part(fresh) for part in trees.parts], axis=0)
    assert np.allclose(trees(fresh), expected)


# ------------------------------------------------------------- the judge


@both
@pytest.mark.parametrize("seed", range(3))
def test_quadratics_are_kept_where_they_do(target, seed):
    order = np.random.default_rng(seed).permutation(1_500)
    rows = low_simulations(1_500)[order]
    judge = MapScorer.chosen(rows, target)
    assert judge.trees is None
    assert judge.inputs(rows.theta) is rows.theta
    scaled = scaled_simulations(1_500, lambda theta: 0.5 * theta, seed)
    assert MapScorer.chosen(scaled, target).trees is None


@both
def test_trees_are_taken_where_a_simulator_switches(target):
    rows, fresh = switching_rows(2_000, 0), switching_rows(1_500, 1)
    judge = MapScorer.chosen(rows, target)
    assert judge.trees is not None
    quadratic = MapScorer(target)
    means = []
    for each in (judge, quadratic):
        own = LevelArrays(each.inputs(rows.theta), rows.x)
        asked = LevelArrays(each.inputs(fresh.theta), fresh.x)
        means.append(each.scores(own, asked).mean())
    exact = norm.logpdf(fresh.x, switch(fresh.theta), 0.3).mean()
    if target == "theta":  # off below 0.3, on above: 1.3 and 0.7 of a width of 2
        exact = np.where(fresh.theta > 0.3, np.log(2 / 0.7), np.log(2 / 1.3)).mean()
    assert means[0] > means[1] + 0.05
    assert exact - 0.3 < means[0] < exact + 0.1


def test_few_parameters_are_judged_by_quadratics():
    assert MapScorer.chosen(switching_rows(199, 0), "x").trees is None
    assert MapScorer.chosen(switching_rows(600, 0), "x").trees is not None
    rows = switching_rows(600, 0)
    for theta in (np.zeros_like(rows.theta), rows.theta.round(1)):
        assert MapScorer.chosen(LevelArrays(theta, rows.x), "x").trees is None


def test_at_a_switch_the_right_map_is_told_from_the_others(monkeypatch):
    low = switching_rows(4_000, 0)
    low = LevelArrays(low.theta, low.x)
    high = switching_rows(60, 1, lambda x: 1.5 * x)
    folds = np.array_split(np.arange(60), 5)
    none, shift, paired = (MapChoice(kind) for kind in ("none", "shift", "paired"))
    gains = []
    for least in (0.1, np.inf):  # with trees, and without
        monkeypatch.setattr(
            "sbi_multilevel.level_maps.selection.scorer._MIN_GAIN", least
        )
        scores = judged(low, (none, shift, paired), high, folds, "x")
        rivals = np.maximum(scores[none].mean(), scores[shift].mean())
        gains.append(scores[paired].mean() - rivals)
    assert gains[0] > 0.5 and gains[0] > gains[1] + 0.2


@pytest.mark.parametrize("threads", (1, 2))
def test_scores_are_the_same_each_time_whatever_the_threads(threads):
    low, high = switching_rows(800, 0), switching_rows(20, 1)
    folds = np.array_split(np.arange(20), 4)
    choices = [MapChoice("none"), MapChoice("shift")]
    assert choose_scorer(MapFitter(low), high, "x").trees is not None
    first = judged(low, choices, high, folds, "x")
    with threadpool_limits(threads, user_api="openmp"):
        again = judged(low, choices, high, folds, "x")
    for choice in choices:
        assert np.array_equal(first[choice], again[choice])


def test_with_trees_means_are_linear_in_the_features():
    rows = switching_rows(600, 0)
    judge = MapScorer.chosen(rows, "x")
    inputs = judge.inputs(rows.theta)
    assert inputs.shape == (600, 2 + 2)  # theta, its square, a mean and a log scale
    own = LevelArrays(inputs, rows.x)
    expected = SyntheticLikelihood.fit(own, degree=1).log_likelihood(own)
    assert np.array_equal(judge.scores(own, own), expected)
    others = SyntheticLikelihood.fit(own, degree=2).log_likelihood(own)
    assert not np.allclose(expected, others)


@pytest.mark.parametrize("scale", (0.0, 1e200))
def test_rows_that_nothing_can_be_fitted_to_are_no_reason_to_fail(scale):
    low, high = switching_rows(400, 0), switching_rows(20, 1)
    low, high = (LevelArrays(rows.theta, scale * rows.x) for rows in (low, high))
    folds = np.array_split(np.arange(20), 4)
    assert choose_scorer(MapFitter(low), high, "x").trees is None
    with np.errstate(all="ignore"):
        scores = judged(low, [MapChoice("none"), MapChoice("shift")], high, folds, "x")
    assert all(len(each) == 20 for each in scores.values())


def test_the_judge_learns_nothing_from_the_cheap_twins_of_dear_rows(monkeypatch):
    low = switching_rows(500, 0)
    high = LevelArrays(low.theta[:20], 2 * low.x[:20], low.x[:20])
    learned_from = []
    fit = Trees.fit.__func__

    def recorded(cls, rows):
        learned_from.append(rows.theta)
        return fit(cls, rows)

    monkeypatch.setattr(Trees, "fit", classmethod(recorded))
    folds = np.array_split(np.arange(20), 4)
    judged(low, [MapChoice("none")], high, folds, "x")
    (theta,) = learned_from
    assert len(theta) == 480 and not np.isin(theta, high.theta).any()
