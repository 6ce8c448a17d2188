"""What x of the lower levels tells, beyond what maps make of theta alone."""

import numpy as np
import pytest

from sbi_multilevel.alignment.rows import Rows
from sbi_multilevel.hybrid import OutputsGain
from sbi_multilevel.hybrid.pool import Aligner, cut

KINDS = ("none", "shift", "full", "paired")


def levels(seed, tells=True, n_low=2_000, n_high=30):
    """x of level 1 is a surface and noise; level 0 has both at another scale, or not.

    Thirty rows do not show a surface of ten coefficients; two thousand do.
    """
    draw = np.random.default_rng(seed).normal
    theta, noise = draw(size=(n_low + n_high, 3)), draw(size=(n_low + n_high, 3))
    x = theta + theta * np.roll(theta, 1, axis=1) + 0.5 * noise
    coarse = 2 * x + 1 if tells else draw(size=theta.shape)
    low = Rows(theta[:n_low], coarse[:n_low])
    return low, Rows(theta[n_low:], x[n_low:], coarse[n_low:])


def gain(low, high, kinds=KINDS, seed=0, modelled="x"):
    folds = cut(len(high), 5, seed)
    aligner = Aligner(kinds, modelled, None, seed)
    return aligner.told_by_outputs(aligner.step(low, high, folds), high, folds)


@pytest.mark.parametrize("modelled", ("theta", "x"))
def test_outputs_tell_what_a_regression_on_theta_cannot(modelled):
    told = gain(*levels(0), modelled=modelled)
    assert told.mean > 0.2 and told.mean > 3 * told.error


@pytest.mark.parametrize("modelled", ("theta", "x"))
def test_outputs_that_are_noise_tell_nothing(modelled):
    told = [gain(*levels(s, tells=False), seed=s, modelled=modelled) for s in range(6)]
    means = [each.mean for each in told]
    error = np.std(means, ddof=1) / np.sqrt(len(means))
    assert abs(np.mean(means)) < 3 * error + 0.02


@pytest.mark.parametrize("modelled", ("theta", "x"))
def test_outputs_tell_little_where_a_regression_on_theta_does_as_well(modelled):
    """Both sides of the control are shuffled, or its map would wait for true pairs."""
    draw = np.random.default_rng(0).normal
    theta = draw(size=(1_080, 2))
    x = theta + 0.3 * draw(size=theta.shape)
    coarse = 2 * x + 1
    low, high = Rows(theta[80:], coarse[80:]), Rows(theta[:80], x[:80], coarse[:80])
    told = gain(low, high, kinds=("none", "paired"), modelled=modelled)
    # three coefficients a summary from 64 rows cost about 3 / 64 nats
    assert abs(told.mean) < 0.1 + 3 * told.error


def test_without_pairs_the_order_of_outputs_tells_how_they_follow_theta():
    low, high = levels(1, n_high=80)
    high = Rows(high.theta, high.x)
    # no map: only the true order has anything to do with theta
    told = gain(low, high, kinds=("none", "shift"))
    assert told.mean > 3 * told.error
    alone = gain(low, high, kinds=("none",))
    assert alone is None  # one map only: nothing is judged


def test_it_changes_neither_the_rows_nor_their_scores():
    low, high = levels(2)
    before = [low.x.copy(), high.x_coarse.copy()]
    folds = cut(len(high), 5, 0)
    aligner = Aligner(KINDS, "x", None, 0)
    step = aligner.step(low, high, folds)
    first = aligner.told_by_outputs(step, high, folds)
    assert first == aligner.told_by_outputs(step, high, folds)
    assert np.array_equal(before[0], low.x)
    assert np.array_equal(before[1], high.x_coarse)


def test_held_out_scores_are_those_of_maps_that_other_folds_chose():
    low, high = levels(3)
    folds = cut(len(high), 5, 0)
    step = Aligner(KINDS, "x", None, 0).step(low, high, folds)
    start = 0
    for fold, rows in enumerate(folds):
        choice = step.choice([f for f in range(5) if f != fold])
        part = slice(start, start + len(rows))
        assert np.array_equal(step.held_out()[part], step.scores[choice][part])
        start = part.stop


def test_it_says_what_it_means():
    text = str(OutputsGain(0.5, 0.1))
    assert "+0.50 ± 0.10 nats a row" in text and "shuffled" in text
