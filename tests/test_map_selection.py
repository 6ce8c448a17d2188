"""Selection of level maps, on levels where the best map is known."""

import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal

from sbi_multilevel import HybridConfig, HybridNPE
from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.base import BUILT_IN_MAPS, LEVEL_MAPS, LevelMapKind
from sbi_multilevel.level_maps.fitting import MapChoice, MapFitter
from sbi_multilevel.level_maps.selection.cross_validation import (
    MapScores,
    best_map,
    choose_scorer,
    score_maps,
)
from sbi_multilevel.level_maps.selection.synthetic_likelihood import (
    MapScorer,
    SyntheticLikelihood,
)
from sbi_multilevel.level_maps.tail_transform import TailTransform
from tests.gaussian_simulations import normal_noise
from tests.linear_gaussian import SilentTracker

UNPAIRED = ("none", "gain", "shift", "full", "scaled", "homoscedastic", "normal")
PAIRED = ("paired", "paired_quadratic", "paired_process")
COVARIANCES = ("full", "scaled", "homoscedastic", "normal")
both = pytest.mark.parametrize("target", ("theta", "x"))


def choices_of(*kinds):
    return [MapChoice(kind) for kind in kinds]


def scored(fitter, choices, high, folds, target):
    scorer = choose_scorer(fitter, high, target)
    scores = score_maps(fitter, choices, high, folds, scorer)
    return {choice: each.score for choice, each in scores.items()}


def mean_scores(low, high, kinds, target, num_folds=4, tails=None):
    """Mean score of each kind of map."""
    folds = np.array_split(np.arange(len(high)), num_folds)
    scores = scored(MapFitter(low, tails), choices_of(*kinds), high, folds, target)
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


# ------------------------------------------------------------- the best map


@both
def test_a_paired_map_is_best_for_shared_noise(target):
    generator = np.random.default_rng(0)
    theta, noise = generator.normal(size=(1_100, 1)), generator.normal(size=(1_100, 2))
    coarse = theta + noise * [1.0, 0.3]
    # a nonlinear function of the noise, which no map of mean and covariance makes
    fine = coarse + 0.8 * (coarse - 1.0) ** 2
    low = LevelArrays(theta[100:], coarse[100:])
    high = LevelArrays(theta[:100], fine[:100], coarse[:100])
    means = mean_scores(low, high, BUILT_IN_MAPS, target)
    # the process and the quadratic do about as well
    paired = {kind: means[kind] for kind in (*UNPAIRED, "paired_quadratic")}
    assert lead(paired, "paired_quadratic") > 0.1
    assert max(means.values()) < means["paired_quadratic"] + 0.2


@both
def test_the_full_map_is_best_for_a_change_of_covariance(target):
    low, high = level(1_500, 0, correlated(0.8)), level(60, 1, correlated(-0.8))
    means = mean_scores(low, high, UNPAIRED[:4], target)
    assert lead(means, "full") > 0.1


@both
def test_a_gain_is_best_for_reversed_features(target):
    generator = np.random.default_rng(0)

    def simulations(n, gain):
        theta = generator.normal(size=(n, 4))
        return LevelArrays(theta, gain * (theta + 0.3 * generator.normal(size=(n, 4))))

    low, high = simulations(1_500, -1.0), simulations(30, [1.0, 2.0, -1.0, 0.5])
    means = mean_scores(low, high, UNPAIRED, target)
    assert lead(means, "gain") > 0.5


@both
def test_a_shift_is_best_for_a_shift(target):
    covariance = 0.5 * np.eye(2)
    low, high = level(1_500, 0, covariance), level(30, 1, covariance, shift=1.0)
    means = mean_scores(low, high, UNPAIRED, target)
    # the others can shift too
    assert lead(means, "shift") > -0.1
    assert means["none"] < means["shift"] - 0.2


def test_the_scaled_map_is_best_for_a_scale_that_depends_on_theta():
    def sims(n, slope, seed):
        generator = np.random.default_rng(seed)
        theta = generator.uniform(-1, 1, size=(n, 1))
        return LevelArrays(
            theta, theta + np.exp(slope * theta) * generator.normal(size=(n, 2))
        )

    means = mean_scores(sims(1_500, 0.0, 0), sims(80, 1.2, 1), UNPAIRED, "x")
    assert lead(means, "scaled") > 0.1


@both
def test_no_map_is_much_better_than_none_where_levels_agree(target):
    low, high = level(1_500, 0, correlated(0.3)), level(40, 1, correlated(0.3))
    means = mean_scores(low, high, UNPAIRED, target)
    assert max(means.values()) < means["none"] + 0.12


@both
def test_shift_is_best_for_more_features_than_simulations(target):
    """Theta shows in differences of close pairs, which few pairs do not keep."""
    covariance = np.kron(np.eye(6), correlated(0.95))
    slope = np.tile([1.0, -1.0], 6)
    low = level(600, 0, covariance, slope=slope)
    high = level(12, 1, covariance, shift=2.0, slope=slope)
    assert lead(mean_scores(low, high, UNPAIRED, target), "shift") > 0.2


@both
def test_a_constant_feature_changes_no_choice(target):
    low, high = level(600, 0, correlated(0.8)), level(40, 1, correlated(-0.8))
    kinds = ("none", "shift", "full")
    without = mean_scores(low, high, kinds, target)
    padded = [
        LevelArrays(sims.theta, np.column_stack((sims.x, np.full(len(sims), 0.1))))
        for sims in (low, high)
    ]
    means = mean_scores(*padded, kinds, target)
    for kind in kinds:
        gap = means[kind] - means["none"]
        # covariances are shrunk a little more where features are more
        assert gap == pytest.approx(without[kind] - without["none"], abs=0.3)
    assert lead(means, "full") > 0.1


# ------------------------------------------------------------- scores


class Recorder(MapFitter):
    """Records the simulations that maps are fitted to."""

    def fit(self, choice, high):
        seen.append(high)
        return super().fit(choice, high)


seen: list[LevelArrays] = []


def test_maps_are_scored_by_simulations_they_were_not_fitted_to():
    low, high = level(200, 0, correlated(0.3)), level(11, 1, correlated(0.3))
    folds = np.array_split(np.random.default_rng(0).permutation(11), 3)
    seen.clear()
    scored(Recorder(low), choices_of("shift", "full"), high, folds, "x")
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
    scores = scored(MapFitter(low), [none], high, folds, "x")
    assert np.allclose(scores[none], model.log_likelihood(high)[order])
    scores = scored(MapFitter(low), [none], high, folds, "theta")
    expected = model.log_posterior_ratio(high, low.theta)[order]
    assert np.allclose(scores[none], expected)


@both
def test_many_features_are_scored_by_their_principal_components(target):
    generator = np.random.default_rng(0)
    loadings = generator.normal(size=(2, 150))

    def sims(n, shift):
        theta = generator.normal(size=(n, 1))
        factors = theta + [shift, 0.0] + 0.3 * generator.normal(size=(n, 2))
        return LevelArrays(theta, factors @ loadings + generator.normal(size=(n, 150)))

    fitter, high = MapFitter(sims(500, 0.0)), sims(30, 2.0)
    folds = np.array_split(np.arange(30), 2)
    scorer = choose_scorer(fitter, high, target)
    choices = choices_of("none", "shift")
    none, shift = score_maps(fitter, choices, high, folds, scorer).values()
    assert shift.score.mean() > none.score.mean() + 0.5
    # nearly all of the likelihood of x says nothing on theta
    assert (none.likelihood is None) == (target == "theta")
    plain = replace(scorer, num_summaries=None)
    assert plain.is_compressed and plain.compares_likelihoods == (target == "x")


# ------------------------------------------------------------- members


def scores_of(*means, likelihoods=(0.0, 0.0, 0.0), num_simulations=40):
    """Scores of three maps whose differences between simulations are normal."""
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(3, num_simulations))
    noise -= noise.mean(axis=1, keepdims=True)
    kinds = ("none", "shift", "full")
    return {
        MapChoice(kind): MapScores(each + mean, np.full(num_simulations, likelihood))
        for kind, mean, likelihood, each in zip(kinds, means, likelihoods, noise)
    }


def test_the_best_map_is_that_of_a_clearly_greater_score():
    # a difference has a standard error of about sqrt(2 / 40) = 0.22
    scores = scores_of(-2.0, 0.0, -1.5, likelihoods=(9.0, -9.0, 9.0))
    assert best_map(scores) == MapChoice("shift")


def test_of_maps_with_similar_scores_the_likelihood_selects():
    scores = scores_of(-2.0, 0.0, -0.3, likelihoods=(9.0, -9.0, 0.0))
    assert best_map(scores) == MapChoice("full")


def test_without_likelihoods_a_map_of_pairs_is_selected_of_similar_ones():
    scores = {
        choice: replace(each, likelihood=None)
        for choice, each in scores_of(-2.0, 0.0, -0.3).items()
    }
    assert best_map(scores) == MapChoice("shift")
    error = np.ones((40, 1))
    for kind, best in (("full", "full"), ("none", "shift")):  # -0.3 and -2 nats
        choice = MapChoice(kind)
        pairs = {**scores, choice: replace(scores[choice], error=error)}
        assert best_map(pairs) == MapChoice(best)
    full = replace(scores[MapChoice("full")], error=np.inf * error)
    assert best_map({**scores, MapChoice("full"): full}) == MapChoice("shift")


def test_without_likelihoods_no_map_is_used_that_is_not_clearly_better():
    for mean, best in ((-0.3, "none"), (-2.0, "shift")):
        scores = {
            choice: replace(each, likelihood=None)
            for choice, each in scores_of(mean, 0.0, -0.1).items()
        }
        assert best_map(scores) == MapChoice(best)


def test_without_noise_any_difference_of_scores_selects():
    scores = {
        MapChoice("none"): MapScores(np.zeros(10), np.ones(10)),
        MapChoice("shift"): MapScores(np.full(10, 0.1), np.zeros(10)),
    }
    assert best_map(scores) == MapChoice("shift")
    first = {choice: each[np.array([0])] for choice, each in scores.items()}
    assert best_map(first) == MapChoice("shift")


def test_of_maps_that_use_pairs_the_one_that_predicts_pairs_takes_part():
    none, *pairs = choices_of("none", "paired", "paired_quadratic", "paired_process")
    size = np.ones((40, 2))
    flat = np.ones(40)
    # the product over features counts: 0.8, 1 and 1.2
    errors = [size * [0.2, 4.0], size * [1.0, 1.0], size * [0.4, 3.0]]
    scores = {none: MapScores(0.0 * flat, 0.0 * flat)}
    for pair, score, error in zip(pairs, (0.1, 2.0, 3.0), errors):
        scores[pair] = MapScores(score * flat, 0.0 * flat, error)
    assert best_map(scores) == MapChoice("paired")
    scores[none] = MapScores(0.2 * flat, 0.0 * flat)
    assert best_map(scores) == MapChoice("none")
    # it could not be fitted
    scores[pairs[0]] = replace(scores[pairs[0]], score=-np.inf * flat)
    assert best_map(scores) == MapChoice("paired_quadratic")


def test_errors_of_pairs_are_ranked_probability_scores():
    """Of normal noise that neither theta nor x_coarse tells: sigma / sqrt(pi)."""
    generator = np.random.default_rng(0)
    theta, coarse = generator.normal(size=(2, 500, 1))
    scale = np.array([0.5, 2.0])
    x = coarse + theta + scale * generator.normal(size=(500, 2))
    high = LevelArrays(theta, x, np.repeat(coarse, 2, axis=1))
    low = LevelArrays(theta, high.x_coarse)
    folds = np.array_split(np.arange(500), 5)
    choices, fitter = choices_of("none", "paired"), MapFitter(low)
    scorer = choose_scorer(fitter, high, "x")
    none, paired = score_maps(fitter, choices, high, folds, scorer).values()
    assert none.error is None
    error = paired.error
    gap = error.mean(axis=0) - scale / np.sqrt(np.pi)
    assert error.shape == (500, 2)
    assert (np.abs(gap) < 4 * error.std(axis=0) / np.sqrt(500)).all()


def scores_beside_none(kind, scorer=None):
    """Scores of a map of pairs with equal sides, beside `"none"`."""
    low, high = level(100, 0, correlated(0.0)), level(20, 1, correlated(0.0))
    high = LevelArrays(high.theta, high.x, high.x)
    folds = np.array_split(np.arange(20), 4)
    choices, fitter = choices_of("none", kind), MapFitter(low)
    scorer = scorer or choose_scorer(fitter, high, "x")
    return score_maps(fitter, choices, high, folds, scorer)


def test_of_summaries_a_map_that_cannot_be_fitted_is_not_chosen(broken_map):
    scores = scores_beside_none(broken_map, MapScorer("theta", num_summaries=1))
    assert all(each.likelihood is None for each in scores.values())
    assert np.isneginf(scores[MapChoice(broken_map)].score).all()
    some = {choice: each[np.arange(10)] for choice, each in scores.items()}
    assert best_map(scores) == best_map(some) == MapChoice("none")


def test_errors_are_infinite_where_a_map_cannot_be_fitted(broken_map):
    scores = scores_beside_none(broken_map)
    assert np.isposinf(scores[MapChoice(broken_map)].error).all()
    assert best_map(scores) == MapChoice("none")


def test_a_map_that_fails_at_the_lower_side_of_pairs_has_no_score(map_of_distinct):
    scores = scores_beside_none(map_of_distinct)
    assert np.isneginf(scores[MapChoice(map_of_distinct)].score).all()
    assert best_map(scores) == MapChoice("none")


@pytest.fixture
def map_of_distinct():
    class Distinct(LevelMapKind):
        """Fails at repeated parameters, which the errors of pairs are computed at."""

        name, needs_pairs = "distinct", True

        def fit(self, low, high, seed):
            def level_map(theta, x):
                if len(np.unique(theta)) < len(theta):
                    raise ValueError("repeated")
                return x

            return level_map

    LEVEL_MAPS["distinct"] = Distinct()
    yield "distinct"
    del LEVEL_MAPS["distinct"]


@pytest.fixture
def broken_map():
    class Broken(LevelMapKind):
        name, needs_pairs = "broken", True

        def fit(self, low, high, seed):
            raise np.linalg.LinAlgError

    LEVEL_MAPS["broken"] = Broken()
    yield "broken"
    del LEVEL_MAPS["broken"]


@pytest.mark.parametrize("what", ("score", "likelihood"))
def test_a_map_that_could_not_be_fitted_is_not_chosen(what):
    scores = scores_of(3.0, -2.0, 0.0)
    none = MapChoice("none")
    values = getattr(scores[none], what).copy()
    values[3] = -np.inf
    scores[none] = replace(scores[none], **{what: values})
    assert best_map(scores) == MapChoice("full")
    broken = MapScores(np.full(20, -np.inf), np.full(20, -np.inf))
    assert best_map(dict.fromkeys(scores, broken)) == MapChoice("none")


# ------------------------------------------- what the simulations allow

ONE = torch.ones(2, dtype=torch.float64)
HEAVY = TailTransform(0 * ONE, ONE, ONE)


def blank(num_features, paired):
    x = np.zeros((5, num_features))
    return LevelArrays(np.zeros((5, 1)), x, x if paired else None)


def kinds_of(num_features, paired, kinds=BUILT_IN_MAPS):
    high = blank(num_features, paired)
    return [c.kind for c in MapFitter(high).candidates(kinds, high)]


@pytest.mark.parametrize(
    "num_features, paired, without",
    (
        (12, True, ()),
        (12, False, PAIRED),
        (13, True, PAIRED[2:]),
        (50, True, PAIRED[2:]),
        (51, True, PAIRED[1:]),
        (201, True, ("gain", *COVARIANCES, *PAIRED[1:])),
        (2_001, True, ("gain", *COVARIANCES, *PAIRED)),
    ),
)
def test_maps_that_simulations_do_not_allow_are_left_out(num_features, paired, without):
    expected = [kind for kind in BUILT_IN_MAPS if kind not in without]
    assert kinds_of(num_features, paired) == expected


def test_no_map_is_left_where_none_is_allowed():
    assert kinds_of(3, False, ("paired",)) == ["none"]
    assert kinds_of(3, False, ("shift",)) == ["shift"]


def test_few_simulations_allow_no_covariance():
    high = blank(2, True).first(3)
    choices = MapFitter(high).candidates(BUILT_IN_MAPS, high)
    assert [choice.kind for choice in choices] == ["none", "shift"]


class Doubled(LevelMapKind):
    """A map of a user: low-fidelity x times two."""

    name = "toy"
    needs_pairs = True
    max_features = 2

    def fit(self, low, high, seed):
        return lambda theta, x: 2 * x


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(LEVEL_MAPS, "toy", Doubled())


def test_a_registered_map_is_chosen(toy):
    assert HybridConfig(level_maps=("none", "shift", "toy")).level_maps[-1] == "toy"
    low, high = level(1_500, 0, correlated(0.3)), level(60, 1, correlated(0.3))
    high = LevelArrays(high.theta, 2 * high.x, high.x)
    means = mean_scores(low, high, ("none", "shift", "toy"), "x")
    assert lead(means, "toy") > 0.1


def test_a_registered_map_is_used_in_training(toy):
    low, high = level(400, 0, correlated(0.3)), level(40, 1, correlated(0.3))
    tensors = [torch.from_numpy(each).float() for each in (low.theta, low.x)]
    pairs = [torch.from_numpy(each).float() for each in (high.theta, high.x)]
    trainer = HybridNPE(
        Independent(Normal(torch.zeros(1), torch.ones(1)), 1),
        density_estimator="mdn",
        config=HybridConfig(level_maps=("none", "toy"), num_members=2, mix=False),
        tracker=SilentTracker(),
        show_progress_bars=False,
    )
    trainer.append_multilevel_simulations(*tensors, level=0)
    trainer.append_multilevel_simulations(pairs[0], 2 * pairs[1], pairs[1], level=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train(max_num_epochs=2)
    assert trainer.hybrid_summary.level_maps == ("toy",)


def test_a_registered_map_is_refused_where_it_cannot_be_fitted(toy):
    assert kinds_of(2, True, ("none", "toy")) == ["none", "toy"]
    assert kinds_of(3, True, ("none", "toy")) == ["none"]
    assert kinds_of(2, False, ("none", "toy")) == ["none"]


def test_an_unknown_map_is_refused():
    with pytest.raises(ValueError, match="level_maps must be .*'toy'"):
        HybridConfig(level_maps=("none", "toy"))


def test_trainers_are_imported_without_the_modules_of_maps():
    code = """
import sys
from sbi_multilevel import MLNPE
from sbi_multilevel.level_maps.base import BUILT_IN_MAPS, level_map_kind
before = set(sys.modules)
kinds = [level_map_kind(name) for name in BUILT_IN_MAPS]
assert not {type(kind).__module__ for kind in kinds} & before
assert [kind.name for kind in kinds] == [*BUILT_IN_MAPS]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_heavy_tails_double_the_maps_but_none():
    high = blank(2, paired=False)
    choices = MapFitter(high, HEAVY).candidates(("none", "shift"), high)
    assert list(map(str, choices)) == ["none", "shift", "shift (transformed tails)"]


def test_maps_that_cannot_be_fitted_are_refused():
    sims = level(20, 0, correlated(0.3))
    with pytest.raises(ValueError, match="level_maps must name some of .*'affine'"):
        MapFitter(sims).fit(MapChoice("affine"), sims)
    with pytest.raises(ValueError, match="'paired_process', which needs pairs"):
        MapFitter(sims).fit(MapChoice("paired_process"), sims)


# ------------------------------------------------------- transformed tails


def heavy(sims, forward_tails=HEAVY.inv):
    return LevelArrays(sims.theta, forward_tails(torch.from_numpy(sims.x)).numpy())


def test_a_map_on_transformed_tails_returns_x():
    theta = np.random.default_rng(0).normal(size=(400, 1))
    noise = np.random.default_rng(1).normal(size=(400, 2))
    low, moved = (heavy(LevelArrays(theta, theta + noise + s)) for s in (0.0, 1.5))
    few = np.linspace(-2, 2, 200)[:, None]
    spread = np.tile([[1.0, -1.0], [-1.0, 1.0]], (100, 1))
    high = heavy(LevelArrays(few, few + spread + 1.5))
    fitter = MapFitter(low, HEAVY)
    gaps = {}
    for choice in (MapChoice("shift", True), MapChoice("shift")):
        x = fitter.fit(choice, high)(theta, low.x)
        gap = HEAVY(torch.from_numpy(x)) - HEAVY(torch.from_numpy(moved.x))
        gaps[choice.transforms_tails] = np.sqrt((gap.numpy() ** 2).mean())
    assert gaps[True] < 0.15 < 0.4 < gaps[False]


def test_a_map_on_transformed_tails_is_best_for_heavy_tails():
    low = heavy(level(1_500, 0, 2 * correlated(0.3)))
    high = heavy(level(40, 1, 2 * correlated(0.3), shift=2.0))
    folds = np.array_split(np.arange(40), 4)
    fitter = MapFitter(low, HEAVY)
    choices = fitter.candidates(("none", "shift"), high)
    for target in ("theta", "x"):
        scores = scored(fitter, choices, high, folds, target)
        means = {str(choice): score.mean() for choice, score in scores.items()}
        assert lead(means, "shift (transformed tails)") > 0.03


def test_tails_of_pairs_are_transformed_on_both_sides():
    theta = np.random.default_rng(0).normal(size=(300, 1))
    coarse = theta + np.random.default_rng(1).normal(size=(300, 2))
    low = heavy(LevelArrays(theta, coarse))
    fine = heavy(LevelArrays(theta, 0.5 * coarse + theta))
    high = LevelArrays(theta[:60], fine.x[:60], low.x[:60])
    move = MapFitter(low, HEAVY).fit(MapChoice("paired", True), high)
    assert np.allclose(move(theta, low.x), fine.x, rtol=1e-2, atol=1e-2)
