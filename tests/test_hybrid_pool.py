"""Selection of level maps, and the gain from the outputs of lower levels."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sbi_multilevel import LevelSimulations, MultilevelSimulations
from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.methods.hybrid import OutputsGain
from sbi_multilevel.methods.hybrid.pool import MapSelector, limit_lower, split_folds

KINDS = ("none", "shift", "full", "paired")


def levels(seed, is_informative=True, n_low=2_000, n_high=30):
    """x of level 1 is quadratic in theta plus noise; level 0 has it rescaled, or noise.

    The ten coefficients cannot be learned from thirty simulations.
    """
    draw = np.random.default_rng(seed).normal
    theta, noise = draw(size=(n_low + n_high, 3)), draw(size=(n_low + n_high, 3))
    x = theta + theta * np.roll(theta, 1, axis=1) + 0.5 * noise
    coarse = 2 * x + 1 if is_informative else draw(size=theta.shape)
    low = LevelArrays(theta[:n_low], coarse[:n_low])
    return low, LevelArrays(theta[n_low:], x[n_low:], coarse[n_low:])


def gain(low, high, kinds=KINDS, seed=0, target="x"):
    folds = split_folds(high.theta, 5, seed)
    selector = MapSelector(kinds, target, None, seed)
    return selector.gain_from_outputs(selector.step(low, high, folds), high, folds)


@pytest.mark.parametrize("target", ("theta", "x"))
def test_informative_outputs_have_a_gain(target):
    gained = gain(*levels(0), target=target)
    assert gained.mean > 0.2 and gained.mean > 3 * gained.error


@pytest.mark.parametrize("target", ("theta", "x"))
@pytest.mark.slow
def test_outputs_that_are_noise_have_no_gain(target):
    gained = [
        gain(*levels(s, is_informative=False), seed=s, target=target) for s in range(6)
    ]
    means = [each.mean for each in gained]
    error = np.std(means, ddof=1) / np.sqrt(len(means))
    assert abs(np.mean(means)) < 4 * error + 0.02


@pytest.mark.parametrize("target", ("theta", "x"))
def test_outputs_have_little_gain_if_theta_predicts_x_as_well(target):
    """x and x_coarse of the control are both shuffled, so its map can be fitted."""
    draw = np.random.default_rng(0).normal
    theta = draw(size=(1_080, 2))
    x = theta + 0.3 * draw(size=theta.shape)
    coarse = 2 * x + 1
    low, high = (
        LevelArrays(theta[80:], coarse[80:]),
        LevelArrays(theta[:80], x[:80], coarse[:80]),
    )
    gained = gain(low, high, kinds=("none", "paired"), target=target)
    # three coefficients per feature from 64 simulations cost about 3 / 64 nats
    assert abs(gained.mean) < 0.2 + 3 * gained.error


def test_without_pairs_the_dependence_on_theta_has_a_gain():
    low, high = levels(1, n_high=80)
    high = LevelArrays(high.theta, high.x)
    # without a map only outputs in their order depend on theta
    gained = gain(low, high, kinds=("none", "shift"))
    assert gained.mean > 2 * gained.error
    alone = gain(low, high, kinds=("none",))
    assert alone is None  # one map only: there are no scores


def test_the_control_has_the_same_scorer(monkeypatch):
    """A jump in x needs networks, which would not be chosen by shuffled outputs."""
    draw = np.random.default_rng(0)
    theta = draw.uniform(-1, 1, size=(2_100, 1))
    coarse = np.where(theta > 0.3, 4.0, 0.0) + 0.3 * draw.normal(size=theta.shape)
    low = LevelArrays(theta[100:], coarse[100:])
    high = LevelArrays(theta[:100], 1.5 * coarse[:100], coarse[:100])
    folds = split_folds(high.theta, 5, 0)
    selector = MapSelector(("none", "paired", "paired_process"), "x", None, 0)
    step = selector.step(low, high, folds)
    assert step.scorer is not None and step.scorer.features is not None
    own = selector.gain_from_outputs(replace(step, scorer=None), high, folds)
    monkeypatch.setattr("sbi_multilevel.methods.hybrid.pool.choose_scorer", None)
    gained = selector.gain_from_outputs(step, high, folds)
    # the noise is shared; a scorer chosen by shuffled outputs overestimates the gain
    assert gained.mean > 0
    assert gained.mean < own.mean - 0.1


def test_the_gain_changes_neither_simulations_nor_scores():
    low, high = levels(2)
    before = [low.x.copy(), high.x_coarse.copy()]
    folds = split_folds(high.theta, 5, 0)
    selector = MapSelector(KINDS, "x", None, 0)
    step = selector.step(low, high, folds)
    first = selector.gain_from_outputs(step, high, folds)
    assert first == selector.gain_from_outputs(step, high, folds)
    assert np.array_equal(before[0], low.x)
    assert np.array_equal(before[1], high.x_coarse)


def test_the_simulations_below_each_level_are_in_random_order():
    low, middle = levels(5)
    folds = [split_folds(middle.theta, 3, 0)] * 2
    first, second = MapSelector(("none",), "x", None, 0).steps(
        [low, middle, middle], folds
    )
    assert np.array_equal(first.fitter.low.x, low.shuffled(0).x)
    below = np.concatenate((first.fitter.low.x, middle.x))  # "none" leaves x as it is
    assert np.array_equal(second.fitter.low.x, LevelArrays(below, below).shuffled(0).x)


def test_held_out_scores_are_those_of_maps_selected_by_other_folds():
    low, high = levels(3)
    folds = split_folds(high.theta, 5, 0)
    step = MapSelector(KINDS, "x", None, 0).step(low, high, folds)
    start = 0
    for fold, indices in enumerate(folds):
        choice = step.choice([f for f in range(5) if f != fold])
        part = slice(start, start + len(indices))
        expected = step.scores[choice].score[part]
        assert np.array_equal(step.held_out_scores()[part], expected)
        start = part.stop


def test_simulations_at_one_theta_are_in_one_fold():
    theta = np.random.default_rng(0).normal(size=(12, 2))[np.arange(40) % 12]
    folds = split_folds(theta, 5, 0)
    assert sorted(np.concatenate(folds)) == list(range(40))
    homes = [{tuple(each) for each in theta[fold]} for fold in folds]
    assert sorted(map(len, homes)) == [2, 2, 2, 3, 3]
    assert len(set.union(*homes)) == 12
    assert len(split_folds(theta[:24:12], 5, 0)) == 1  # one theta only


def test_folds_differ_in_size_by_one_at_most():
    theta = np.random.default_rng(0).normal(size=(17, 1))
    assert sorted(map(len, split_folds(theta, 5, 0))) == [3, 3, 3, 4, 4]
    assert any(
        (a != b).any()
        for a, b in zip(split_folds(theta, 5, 0), split_folds(theta, 5, 1))
    )


def test_folds_of_unequal_size_have_their_own_scores():
    low, high = levels(4, n_high=12)
    high = LevelArrays(high.theta[np.arange(30) % 7], high.x[np.arange(30) % 7])
    folds = split_folds(high.theta, 3, 0)
    step = MapSelector(("none", "shift"), "x", None, 0).step(low, high, folds)
    sizes = [len(fold) for fold in step.scored_folds]
    assert sizes == [len(fold) for fold in folds] and len(set(sizes)) > 1
    assert len(step.held_out_scores()) == 30


@pytest.mark.parametrize("target", ("theta", "x"))
def test_low_fidelity_at_held_out_parameters_does_not_affect_scores(target):
    """Some low-fidelity simulations have the parameters and noise of level 1."""
    low, high = levels(5, n_low=60, n_high=30)
    joined = LevelArrays(
        np.concatenate((low.theta, high.theta)), np.concatenate((low.x, high.x))
    )
    folds = split_folds(high.theta, 5, 0)
    selector = MapSelector(("none", "shift"), target, None, 0)
    step = selector.step(joined, high, folds)
    for fold, part in zip(folds, step.scored_folds):
        others = np.setdiff1d(np.arange(30), fold)
        rest = LevelArrays(
            np.concatenate((low.theta, high.theta[others])),
            np.concatenate((low.x, high.x[others])),
        )
        alone = selector.step(rest, high, folds)
        for choice, scores in step.scores.items():
            expected = alone.scores[choice][part]
            assert np.allclose(scores[part].score, expected.score)
            assert np.allclose(scores[part].likelihood, expected.likelihood)


def test_low_fidelity_simulations_at_held_out_parameters_are_left_out():
    low, high = levels(6, n_low=20, n_high=5)
    assert low.apart_from(high.theta) is low
    kept = low.apart_from(np.concatenate((high.theta, low.theta[3:5])))
    assert np.array_equal(kept.theta, np.delete(low.theta, [3, 4], axis=0))
    assert np.array_equal(kept.x, np.delete(low.x, [3, 4], axis=0))
    assert low.apart_from(low.theta) is low  # none would be left


def test_the_gain_is_printed_with_its_error():
    text = str(OutputsGain(0.5, 0.1))
    assert "+0.50 ± 0.10 nats per simulation" in text and "shuffled" in text


def test_a_random_subset_of_many_low_fidelity_simulations_is_used():
    theta = torch.arange(50.0).reshape(-1, 1)
    levels = (LevelSimulations(0, theta, theta), LevelSimulations(1, theta, theta))
    simulations = MultilevelSimulations(levels)
    assert limit_lower(simulations, 50, 0).num_simulations == (50, 50)
    limited = limit_lower(simulations, 20, 0)
    assert limited.num_simulations == (20, 50)
    assert len(limited[0].theta.unique()) == 20
    assert torch.equal(limited[0].theta, limited[0].x)
    assert limited[0].theta.max() > 20  # not the first
