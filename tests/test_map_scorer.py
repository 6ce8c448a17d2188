"""Features of theta by networks, and when map scores use them."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from threadpoolctl import threadpool_limits

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.fitting import MapChoice, MapFitter
from sbi_multilevel.level_maps.regression import Design
from sbi_multilevel.level_maps.selection.cross_validation import (
    choose_scorer,
    score_maps,
)
from sbi_multilevel.level_maps.selection.synthetic_likelihood import (
    MapScorer,
    SyntheticLikelihood,
)
from sbi_multilevel.level_maps.selection.theta_features import ThetaFeatures, part_of
from tests.gaussian_simulations import low_simulations, scaled_simulations

both = pytest.mark.parametrize("target", ("theta", "x"))


def switch(theta):
    """Mean of a cell that is off below 0.3, and on above."""
    return np.where(theta > 0.3, 4.0, 0.0)


def switching_simulations(n, seed, move=lambda x: x):
    generator = np.random.default_rng(seed)
    theta = generator.uniform(-1, 1, size=(n, 1))
    coarse = switch(theta) + 0.3 * generator.normal(size=(n, 1))
    return LevelArrays(theta, move(coarse), coarse)


def scored(low, choices, high, folds, target):
    scorer = choose_scorer(MapFitter(low), high, target)
    scores = score_maps(MapFitter(low), choices, high, folds, scorer)
    return {choice: each.score for choice, each in scores.items()}


# ------------------------------------------------------------- features


def test_networks_fit_a_switch_and_a_scale_that_quadratics_miss():
    generator = np.random.default_rng(0)
    theta = generator.uniform(-1, 1, size=(3_000, 1))
    noise = generator.normal(size=(3_000, 1))
    scale = np.where(theta > 0.5, 3.0, 0.3)
    sims = LevelArrays(theta, np.hstack((switch(theta), scale * noise)))
    columns = features_of(sims)(np.array([[0.2], [0.4], [0.6]]))
    mean, log_scale = columns[:, 0], columns[:, -1]
    # in standard deviations of what a quadratic leaves
    assert mean[1] - mean[0] > 0.5
    assert log_scale[2] - log_scale[1] > 0.5


def features_of(sims):
    features = ThetaFeatures.fit(sims)
    assert features is not None
    return features


@pytest.fixture
def always(monkeypatch):
    """Networks are used whatever they gain."""
    monkeypatch.setattr(
        "sbi_multilevel.level_maps.selection.theta_features._MIN_GAIN", -np.inf
    )


def test_features_are_of_networks_that_were_not_fitted_to_the_simulation(always):
    generator = np.random.default_rng(0)
    sims = LevelArrays(generator.normal(size=(600, 8)), generator.normal(size=(600, 1)))
    networks = features_of(sims)
    features = networks(sims.theta)
    for part, fitted in enumerate(networks.networks):
        own = part_of(sims.theta) == part
        assert 150 < own.sum() < 250
        assert np.allclose(features[own], fitted(sims.theta[own]))
        others = fitted(sims.theta[~own])[:, 0]
        remembered = np.corrcoef(others, sims.x[~own, 0])[0, 1]
        assert remembered > 0.25  # so these must not be used
    # x is noise: networks not fitted to it cannot predict it
    assert np.corrcoef(features[:, 0], sims.x[:, 0])[0, 1] < 0.2


def test_simulations_at_the_same_theta_are_left_out_together(always):
    generator = np.random.default_rng(0)
    theta = np.repeat(generator.normal(size=(40, 1)), 10, axis=0)
    order = generator.permutation(400)
    # noise that simulations at the same theta share
    shared = np.repeat(generator.normal(size=(40, 1)), 10, axis=0)
    sims = LevelArrays(theta[order], shared[order])
    features = features_of(sims)(sims.theta)[:, 0]
    assert np.corrcoef(features, sims.x[:, 0])[0, 1] < 0.5


@pytest.mark.parametrize("values", (np.arange(3_000.0), np.arange(3_000) / 8, None))
def test_parts_have_about_the_same_size(values):
    """Also where parameters have few bits that are not 0."""
    if values is None:
        values = np.random.default_rng(0).normal(size=3_000).astype(np.float32)
    sizes = np.bincount(part_of(values[:, None].astype(float)))
    assert len(sizes) == 3 and (np.abs(sizes - 1_000) < 130).all()


def test_no_networks_are_used_where_quadratics_suffice():
    assert ThetaFeatures.fit(low_simulations(1_500)) is None


# ------------------------------------------------------------- the scorer


@both
@pytest.mark.parametrize("seed", range(3))
def test_quadratics_are_used_where_they_suffice(target, seed):
    order = np.random.default_rng(seed).permutation(1_500)
    sims = low_simulations(1_500)[order]
    scorer = MapScorer.chosen(sims, target)
    assert scorer.features is None
    assert scorer.inputs(sims.theta) is sims.theta
    scaled = scaled_simulations(1_500, lambda theta: 0.5 * theta, seed)
    assert MapScorer.chosen(scaled, target).features is None


@both
def test_networks_are_used_where_a_simulator_switches(target):
    sims, fresh = switching_simulations(2_000, 0), switching_simulations(1_500, 1)
    scorer = MapScorer.chosen(sims, target)
    assert scorer.features is not None
    quadratic = MapScorer(target)
    means = []
    for each in (scorer, quadratic):
        own = LevelArrays(each.inputs(sims.theta), sims.x)
        asked = LevelArrays(each.inputs(fresh.theta), fresh.x)
        means.append(each.scores(own, asked)[0].mean())
    exact = norm.logpdf(fresh.x, switch(fresh.theta), 0.3).mean()
    if target == "theta":  # off below 0.3, on above: 1.3 and 0.7 of a width of 2
        exact = np.where(fresh.theta > 0.3, np.log(2 / 0.7), np.log(2 / 1.3)).mean()
    assert means[0] > means[1] + 0.05
    assert exact - 0.3 < means[0] < exact + 0.1


def test_quadratics_are_used_for_few_parameters():
    assert MapScorer.chosen(switching_simulations(199, 0), "x").features is None
    assert MapScorer.chosen(switching_simulations(600, 0), "x").features is not None
    sims = switching_simulations(600, 0)
    for theta in (np.zeros_like(sims.theta), sims.theta.round(1)):
        assert MapScorer.chosen(LevelArrays(theta, sims.x), "x").features is None


def test_the_best_map_at_a_switch_is_found_with_networks(monkeypatch):
    low = switching_simulations(4_000, 0)
    low = LevelArrays(low.theta, low.x)
    high = switching_simulations(60, 1, lambda x: 1.5 * x)
    folds = np.array_split(np.arange(60), 5)
    none, shift, paired = (MapChoice(kind) for kind in ("none", "shift", "paired"))
    gains = []
    for least in (0.1, np.inf):  # with networks, and without
        monkeypatch.setattr(
            "sbi_multilevel.level_maps.selection.synthetic_likelihood._MIN_GAIN", least
        )
        scores = scored(low, (none, shift, paired), high, folds, "x")
        rivals = np.maximum(scores[none].mean(), scores[shift].mean())
        gains.append(scores[paired].mean() - rivals)
    assert gains[0] > 0.5 and gains[0] > gains[1] + 0.2


@pytest.mark.parametrize("threads", (1, 2))
def test_scores_are_the_same_each_time_whatever_the_threads(threads):
    low, high = switching_simulations(800, 0), switching_simulations(20, 1)
    folds = np.array_split(np.arange(20), 4)
    choices = [MapChoice("none"), MapChoice("shift")]
    assert choose_scorer(MapFitter(low), high, "x").features is not None
    first = scored(low, choices, high, folds, "x")
    with threadpool_limits(threads, user_api="openmp"):
        again = scored(low, choices, high, folds, "x")
    for choice in choices:
        assert np.array_equal(first[choice], again[choice])


def test_with_networks_means_are_linear_in_the_features():
    sims = switching_simulations(600, 0)
    scorer = MapScorer.chosen(sims, "x")
    inputs = scorer.inputs(sims.theta)
    assert inputs.shape == (600, 2 + 2)  # theta, its square, a mean and a log scale
    own = LevelArrays(inputs, sims.x)
    expected = SyntheticLikelihood.fit(own, degree=1).log_likelihood(own)
    for each in scorer.scores(own, own):  # likelihoods are to be learned
        assert np.array_equal(each, expected)
    others = SyntheticLikelihood.fit(own, degree=2).log_likelihood(own)
    assert not np.allclose(expected, others)


def scaled_by_chance(n, log_deviation, seed=0):
    """Linear in theta; the noise of all features has one scale, drawn at random."""
    matrix = np.random.default_rng(0).normal(size=(2, 30))
    generator = np.random.default_rng(seed)
    theta = generator.normal(size=(n, 2))
    scale = 3 * np.exp(log_deviation * generator.normal(size=(n, 1)))
    return LevelArrays(theta, theta @ matrix + scale * generator.normal(size=(n, 30)))


def test_x_is_summarized_where_a_synthetic_likelihood_is_too_narrow():
    # residuals have no correlation, but one scale: they are dependent
    sims, fresh = scaled_by_chance(1_500, 1.5), scaled_by_chance(1_000, 1.5, seed=1)
    scorer = MapScorer.chosen(sims, "theta")
    assert scorer.num_summaries == 2
    (score, none), (narrow, _) = (
        each.scores(sims, fresh) for each in (scorer, MapScorer("theta"))
    )
    assert none is None
    assert score.mean() > 0.2 and score.mean() > narrow.mean() + 1.0


def test_x_is_not_summarized_where_its_likelihood_is_right():
    sims = scaled_by_chance(1_500, 0.0)
    assert MapScorer.chosen(sims, "theta").num_summaries is None


def test_x_is_not_summarized_if_likelihoods_are_to_be_learned():
    assert MapScorer.chosen(scaled_by_chance(1_500, 1.5), "x").num_summaries is None


def test_scores_of_a_sufficient_summary_are_those_of_the_exact_posterior():
    def simulations(n, seed):
        generator = np.random.default_rng(seed)
        theta = generator.normal(size=(n, 1))
        return LevelArrays(theta, theta + 2 * generator.normal(size=(n, 4)))

    sims, fresh = simulations(20_000, 0), simulations(2_000, 1)
    score, _ = MapScorer("theta", num_summaries=1).scores(sims, fresh)
    # posterior precision 1 + 4 / 2^2
    exact = norm.logpdf(fresh.theta, fresh.x.sum(axis=1, keepdims=True) / 8, 0.5**0.5)
    gap = score - (exact - norm.logpdf(fresh.theta))[:, 0]
    assert np.abs(gap).mean() < 0.1 and abs(gap.mean()) < 0.02


def test_with_networks_parameters_are_summarized_not_their_features():
    sims = switching_simulations(1_500, 0)
    features = ThetaFeatures.fit(sims)
    sims = LevelArrays(sims.theta, np.hstack((sims.x, sims.x**2)))
    scorer = MapScorer("theta", features=features, num_summaries=1)
    inputs = scorer.inputs(sims.theta)
    standardized = (sims.theta - sims.theta.mean()) / sims.theta.std()
    assert np.allclose(inputs[:, :1], standardized, atol=0.05)
    own = LevelArrays(inputs, sims.x)
    summary = Design.of(sims.x, 1).fit(inputs[:, :1])(sims.x)
    model = SyntheticLikelihood.fit(LevelArrays(inputs, summary), degree=1)
    expected = model.log_posterior_ratio(LevelArrays(inputs, summary), inputs)
    assert np.allclose(scorer.scores(own, own)[0], expected)


@pytest.mark.parametrize("scale", (0.0, 1e200))
def test_simulations_that_nothing_can_be_fitted_to_are_no_error(scale):
    low, high = switching_simulations(400, 0), switching_simulations(20, 1)
    low, high = (LevelArrays(sims.theta, scale * sims.x) for sims in (low, high))
    folds = np.array_split(np.arange(20), 4)
    assert choose_scorer(MapFitter(low), high, "x").features is None
    with np.errstate(all="ignore"):
        scores = scored(low, [MapChoice("none"), MapChoice("shift")], high, folds, "x")
    assert all(len(each) == 20 for each in scores.values())


def test_networks_are_not_fitted_at_the_parameters_of_high_fidelity(monkeypatch):
    low = switching_simulations(500, 0)
    high = LevelArrays(low.theta[:20], 2 * low.x[:20], low.x[:20])
    learned_from = []
    fit = ThetaFeatures.fit.__func__

    def recorded(cls, sims):
        learned_from.append(sims.theta)
        return fit(cls, sims)

    monkeypatch.setattr(ThetaFeatures, "fit", classmethod(recorded))
    folds = np.array_split(np.arange(20), 4)
    scored(low, [MapChoice("none")], high, folds, "x")
    (theta,) = learned_from
    assert len(theta) == 480 and not np.isin(theta, high.theta).any()


def test_features_do_not_depend_on_the_default_type():
    sims = switching_simulations(600, 0)
    plain = features_of(sims)(sims.theta)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert np.array_equal(features_of(sims)(sims.theta), plain)
    finally:
        torch.set_default_dtype(before)
