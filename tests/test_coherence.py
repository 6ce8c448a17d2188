"""Scores of a probe of the lower level on a level."""

import math

import numpy as np
import pytest
import torch

from sbi_multilevel.diagnostics import coherence
from sbi_multilevel.diagnostics.coherence import _aligned
from sbi_multilevel.diagnostics.probes import Probe, cross_predictions, r_squared
from tests.errors import is_ours

NUM_LOW, NUM_HIGH = 300, 100


def draw(n, seed, k=2):
    """Two parameters, and k summaries of them with little noise."""
    rng = np.random.default_rng(seed)
    theta = rng.uniform(-1, 1, size=(n, 2))
    x = theta @ np.array([[1.0, 0.3], [-0.2, 1.0]])
    return theta, np.tile(x, k // 2) + 0.1 * rng.normal(size=(n, k))


LOW = draw(NUM_LOW, 0)
THETA, X = draw(NUM_HIGH, 1)


def scores(x, x_coarse=None, low=LOW):
    return coherence(*low, THETA, x, x_coarse)


# --- probes -------------------------------------------------------------------------


def test_r_squared_by_hand():
    targets = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
    # the second target is constant and is left out
    assert r_squared(targets, targets).value == 1
    assert r_squared(targets, np.full((3, 2), 2.0)).value == 0
    assert r_squared(targets, targets + 1).value == pytest.approx(1 - 3 / 8)


def test_the_error_of_r_squared_is_its_spread_over_data_sets():
    def score(seed):
        rng = np.random.default_rng(seed)
        targets = rng.normal(size=(200, 2))
        return r_squared(targets, targets + rng.normal(size=(200, 2)) / 2)

    found = [score(seed) for seed in range(200)]
    spread = np.std([each.value for each in found], ddof=1)
    claimed = np.mean([each.error for each in found])
    assert claimed == pytest.approx(spread, rel=4 / math.sqrt(400))
    mean = np.mean([each.value for each in found])
    assert mean == pytest.approx(0.75, abs=4 * spread / math.sqrt(200) + 0.005)


def test_a_probe_fits_a_nonlinear_function():
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, size=(800, 1))
    probe = Probe.fit(x[:600], x[:600] ** 2)
    assert r_squared(x[600:] ** 2, probe(x[600:])).value > 0.99


def test_predictions_stay_within_the_range_of_the_targets():
    probe = Probe.fit(LOW[1], LOW[0])
    far = probe(1e3 * np.random.default_rng(0).normal(size=(50, 2)))
    assert (far >= LOW[0].min(axis=0)).all() and (far <= LOW[0].max(axis=0)).all()


def test_constant_inputs_are_ignored():
    x = np.concatenate([LOW[1], np.ones((NUM_LOW, 1))], axis=1)
    moved = x + np.array([0.0, 0.0, 5.0])
    probe = Probe.fit(x, LOW[0])
    assert np.array_equal(probe(x), probe(moved))
    nothing = Probe.fit(np.ones((NUM_LOW, 1)), LOW[0])
    assert nothing(x[:3, :1]) == pytest.approx(np.tile(LOW[0].mean(axis=0), (3, 1)))


def test_cross_predictions_do_not_depend_on_their_own_target():
    noise = np.random.default_rng(0).normal(size=(60, 1))
    inputs = np.random.default_rng(1).normal(size=(60, 20))
    moved = noise.copy()
    moved[0] += 10
    before, after = (cross_predictions(inputs, each) for each in (noise, moved))
    assert after[0] == before[0] and (after != before).any()


# --- coherence ----------------------------------------------------------------------


@pytest.mark.parametrize("paired", (False, True))
def test_equal_simulators_are_coherent(paired):
    found = scores(X, X + 0.01 if paired else None)
    assert found.is_informative and not found.is_improved
    assert found.reversed_summaries == ()
    assert found.below.value > 0.9 and found.best == found.transfer
    # above own: three times the simulations
    assert found.transfer.value > max(0.9, found.own.value - found.own.error)
    error = math.hypot(found.transfer.error, found.below.error)
    assert abs(found.transfer.value - found.below.value) < 4 * error
    assert found.verdict.startswith("At level 1, a probe of level 0 predicts theta (R²")
    assert "affine" not in found.verdict and "sign" not in found.verdict


@pytest.mark.parametrize("paired", (False, True))
def test_reversed_summaries_are_detected_and_aligned(paired):
    found = scores(-X, X + 0.01 if paired else None)
    assert found.transfer.value < -1.5
    assert found.reversed_summaries == (0, 1) and found.is_improved
    assert found.aligned.value > 0.9 and found.best == found.aligned
    assert "predicts theta worse than its mean (R² -" in found.verdict
    aligned = "an affine map of each summary (sign reversed: 0, 1) it predicts theta"
    assert aligned in found.verdict
    assert found.verdict.endswith(
        ". Levels 0 and 1 differ in the sign of summaries 0, 1."
    )
    assert found.own.value == pytest.approx(scores(X).own.value, abs=0.05)


def test_one_reversed_summary():
    found = scores(X * np.array([1.0, -1.0]))
    assert found.reversed_summaries == (1,) and found.is_improved
    assert found.transfer.value < 0.5 < 0.9 < found.aligned.value


def test_a_reversed_summary_that_is_not_informative_is_reported():
    rng = np.random.default_rng(5)
    of_noise = rng.normal(size=(NUM_HIGH, 1))
    low = LOW[0], np.concatenate([LOW[1], rng.normal(size=(NUM_LOW, 1))], axis=1)
    sides = [np.concatenate([X, sign * of_noise], axis=1) for sign in (-1, 1)]
    found = scores(*sides, low=low)
    assert not found.is_improved and found.reversed_summaries == (2,)
    assert found.verdict.endswith(" Levels 0 and 1 differ in the sign of summary 2.")


def test_of_many_summaries_none_is_reversed_by_chance():
    # without the Bonferroni correction about three of them would be
    sides = np.random.default_rng(0).normal(size=(3, 100, 2_000))
    signs = _aligned(THETA, sides[0], THETA, *sides[1:])[1]
    assert (signs == 1).all()
    assert (_aligned(THETA, sides[0], THETA, -sides[1], sides[1])[1] == -1).all()


def test_other_units_are_aligned_without_reversal():
    found = scores(5 + 3 * X)
    assert found.transfer.value < 0 and found.is_improved
    assert found.aligned.value > 0.9 and found.reversed_summaries == ()


def test_another_order_of_summaries_is_not_aligned():
    found = scores(X[:, ::-1])
    assert found.transfer.value < 0.5 and found.aligned.value < 0.5
    assert "an affine map of each summary does not improve this" in found.verdict


@pytest.mark.parametrize(
    "seed", (0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 4)))
)
def test_a_lower_level_of_pure_noise_is_not_informative(seed):
    noise = np.random.default_rng(seed + 100).normal(size=(NUM_LOW, 2))
    found = scores(X, low=(draw(NUM_LOW, seed)[0], noise))
    assert not found.is_informative and found.reversed_summaries == ()
    assert abs(found.transfer.value) < 0.2 and found.own.value > 0.8
    assert found.verdict.startswith("A probe of level 0 does not predict theta")


def test_the_map_inverts_any_affine_transform():
    scale = np.array([0.1, -7.0])
    plain, mapped = scores(X), scores(X * scale + np.array([3.0, -100.0]))
    assert mapped.aligned.value == pytest.approx(plain.aligned.value)
    assert mapped.reversed_summaries == (1,)


def test_constant_summaries_have_no_effect():
    constant = np.concatenate([LOW[1], np.ones((NUM_LOW, 1))], axis=1)
    x = np.concatenate([X, np.full((NUM_HIGH, 1), 4.0)], axis=1)
    found = scores(x, low=(LOW[0], constant))
    assert found.transfer.value > 0.9 and found.aligned.value > 0.9
    varying = np.concatenate([X, THETA[:, :1]], axis=1)
    assert scores(varying, low=(LOW[0], constant)).transfer.value > 0.9


def test_too_few_simulations_are_rejected():
    with pytest.raises(ValueError, match="Levels 0 and 1 have 300 and 9 simulations"):
        coherence(*LOW, THETA[:9], X[:9])


@pytest.mark.parametrize("coarse", (None, X + 0.1))
def test_tensors_and_arrays_have_the_same_scores(coarse):
    arrays = (*LOW, THETA, X, coarse)
    tensors = [None if a is None else torch.from_numpy(a) for a in arrays]
    assert vars(coherence(*tensors)) == vars(coherence(*arrays))
    single = [None if a is None else a.float().requires_grad_() for a in tensors]
    found, expected = coherence(*single), coherence(*arrays)
    assert found.aligned.value == pytest.approx(expected.aligned.value, abs=1e-4)


@pytest.mark.parametrize("name", ("theta_low", "x_low", "theta", "x", "x_coarse"))
def test_arguments_of_other_types_are_refused_by_name(name):
    given = dict(theta_low=LOW[0], x_low=LOW[1], theta=THETA, x=X)
    given[name] = X.tolist()
    with pytest.raises(TypeError, match=f"^{name} must be a `torch.Tensor`") as caught:
        coherence(**given)
    assert is_ours(caught.value)
