"""What x of the lower levels tells, beyond what maps make of theta alone."""

from dataclasses import replace

import numpy as np
import pytest

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.methods.hybrid import OutputsGain
from sbi_multilevel.methods.hybrid.pool import MapSelector, cut

KINDS = ("none", "shift", "full", "paired")


def levels(seed, tells=True, n_low=2_000, n_high=30):
    """x of level 1 is a surface and noise; level 0 has both at another scale, or not.

    Thirty rows do not show a surface of ten coefficients; two thousand do.
    """
    draw = np.random.default_rng(seed).normal
    theta, noise = draw(size=(n_low + n_high, 3)), draw(size=(n_low + n_high, 3))
    x = theta + theta * np.roll(theta, 1, axis=1) + 0.5 * noise
    coarse = 2 * x + 1 if tells else draw(size=theta.shape)
    low = LevelArrays(theta[:n_low], coarse[:n_low])
    return low, LevelArrays(theta[n_low:], x[n_low:], coarse[n_low:])


def gain(low, high, kinds=KINDS, seed=0, target="x"):
    folds = cut(high.theta, 5, seed)
    aligner = MapSelector(kinds, target, None, seed)
    return aligner.gain_from_outputs(aligner.step(low, high, folds), high, folds)


@pytest.mark.parametrize("target", ("theta", "x"))
def test_outputs_tell_what_a_regression_on_theta_cannot(target):
    told = gain(*levels(0), target=target)
    assert told.mean > 0.2 and told.mean > 3 * told.error


@pytest.mark.parametrize("target", ("theta", "x"))
def test_outputs_that_are_noise_tell_nothing(target):
    told = [gain(*levels(s, tells=False), seed=s, target=target) for s in range(6)]
    means = [each.mean for each in told]
    error = np.std(means, ddof=1) / np.sqrt(len(means))
    assert abs(np.mean(means)) < 4 * error + 0.02


@pytest.mark.parametrize("target", ("theta", "x"))
def test_outputs_tell_little_where_a_regression_on_theta_does_as_well(target):
    """Both sides of the control are shuffled, or its map would wait for true pairs."""
    draw = np.random.default_rng(0).normal
    theta = draw(size=(1_080, 2))
    x = theta + 0.3 * draw(size=theta.shape)
    coarse = 2 * x + 1
    low, high = (
        LevelArrays(theta[80:], coarse[80:]),
        LevelArrays(theta[:80], x[:80], coarse[:80]),
    )
    told = gain(low, high, kinds=("none", "paired"), target=target)
    # three coefficients a summary from 64 rows cost about 3 / 64 nats
    assert abs(told.mean) < 0.2 + 3 * told.error


def test_without_pairs_the_order_of_outputs_tells_how_they_follow_theta():
    low, high = levels(1, n_high=80)
    high = LevelArrays(high.theta, high.x)
    # no map: only the true order has anything to do with theta
    told = gain(low, high, kinds=("none", "shift"))
    assert told.mean > 2 * told.error
    alone = gain(low, high, kinds=("none",))
    assert alone is None  # one map only: nothing is judged


def test_the_true_order_and_the_shuffled_one_have_the_same_judge(monkeypatch):
    """A switch calls for trees, which shuffled rows alone would never show."""
    draw = np.random.default_rng(0)
    theta = draw.uniform(-1, 1, size=(2_100, 1))
    coarse = np.where(theta > 0.3, 4.0, 0.0) + 0.3 * draw.normal(size=theta.shape)
    low = LevelArrays(theta[100:], coarse[100:])
    high = LevelArrays(theta[:100], 1.5 * coarse[:100], coarse[:100])
    folds = cut(high.theta, 5, 0)
    aligner = MapSelector(("none", "paired", "paired_process"), "x", None, 0)
    step = aligner.step(low, high, folds)
    assert step.judge is not None and step.judge.trees is not None
    own = aligner.gain_from_outputs(replace(step, judge=None), high, folds)
    monkeypatch.setattr("sbi_multilevel.methods.hybrid.pool.choose_judge", None)
    told = aligner.gain_from_outputs(step, high, folds)
    # the noise is shared, which tells something, but less than a judge that is blind
    assert told.mean > 0
    assert told.mean < own.mean - 0.1


def test_it_changes_neither_the_rows_nor_their_scores():
    low, high = levels(2)
    before = [low.x.copy(), high.x_coarse.copy()]
    folds = cut(high.theta, 5, 0)
    aligner = MapSelector(KINDS, "x", None, 0)
    step = aligner.step(low, high, folds)
    first = aligner.gain_from_outputs(step, high, folds)
    assert first == aligner.gain_from_outputs(step, high, folds)
    assert np.array_equal(before[0], low.x)
    assert np.array_equal(before[1], high.x_coarse)


def test_held_out_scores_are_those_of_maps_that_other_folds_chose():
    low, high = levels(3)
    folds = cut(high.theta, 5, 0)
    step = MapSelector(KINDS, "x", None, 0).step(low, high, folds)
    start = 0
    for fold, rows in enumerate(folds):
        choice = step.choice([f for f in range(5) if f != fold])
        part = slice(start, start + len(rows))
        assert np.array_equal(step.held_out()[part], step.scores[choice][part])
        start = part.stop


def test_rows_at_one_theta_are_in_one_fold():
    theta = np.random.default_rng(0).normal(size=(12, 2))[np.arange(40) % 12]
    folds = cut(theta, 5, 0)
    assert sorted(np.concatenate(folds)) == list(range(40))
    homes = [{tuple(row) for row in theta[fold]} for fold in folds]
    assert sorted(map(len, homes)) == [2, 2, 2, 3, 3]
    assert len(set.union(*homes)) == 12
    assert len(cut(theta[:24:12], 5, 0)) == 1  # one theta only


def test_folds_of_distinct_rows_differ_in_size_by_one_at_most():
    theta = np.random.default_rng(0).normal(size=(17, 1))
    assert sorted(map(len, cut(theta, 5, 0))) == [3, 3, 3, 4, 4]
    assert any((a != b).any() for a, b in zip(cut(theta, 5, 0), cut(theta, 5, 1)))


def test_scores_of_folds_of_unequal_size_are_told_apart():
    low, high = levels(4, n_high=12)
    high = LevelArrays(high.theta[np.arange(30) % 7], high.x[np.arange(30) % 7])
    folds = cut(high.theta, 3, 0)
    step = MapSelector(("none", "shift"), "x", None, 0).step(low, high, folds)
    assert step.num_scored == tuple(map(len, folds)) and len(set(map(len, folds))) > 1
    assert len(step.held_out()) == 30


@pytest.mark.parametrize("target", ("theta", "x"))
def test_twins_of_rows_held_out_do_not_raise_the_scores(target):
    """A map by nothing but twins: cheap rows at the very parameters, noise and all."""
    low, high = levels(5, n_low=60, n_high=30)
    joined = LevelArrays(
        np.concatenate((low.theta, high.theta)), np.concatenate((low.x, high.x))
    )
    folds = cut(high.theta, 5, 0)
    aligner = MapSelector(("none", "shift"), target, None, 0)
    step = aligner.step(joined, high, folds)
    for fold, part in zip(folds, step._parts):
        others = np.setdiff1d(np.arange(30), fold)
        rest = LevelArrays(
            np.concatenate((low.theta, high.theta[others])),
            np.concatenate((low.x, high.x[others])),
        )
        alone = aligner.step(rest, high, folds)
        for choice in step.scores:
            assert np.allclose(step.scores[choice][part], alone.scores[choice][part])


def test_cheap_rows_at_parameters_held_out_are_left_out():
    low, high = levels(6, n_low=20, n_high=5)
    assert low.apart_from(high.theta) is low
    kept = low.apart_from(np.concatenate((high.theta, low.theta[3:5])))
    assert np.array_equal(kept.theta, np.delete(low.theta, [3, 4], axis=0))
    assert np.array_equal(kept.x, np.delete(low.x, [3, 4], axis=0))
    assert low.apart_from(low.theta) is low  # none would be left


def test_it_says_what_it_means():
    text = str(OutputsGain(0.5, 0.1))
    assert "+0.50 ± 0.10 nats a row" in text and "shuffled" in text
