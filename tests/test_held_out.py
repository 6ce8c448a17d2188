"""The held-out loss that early stopping of a multilevel training follows."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch.distributions import MultivariateNormal

from sbi_multilevel import MLNPE
from sbi_multilevel.losses.held_out import bounded_loss
from sbi_multilevel.methods.multilevel import MultilevelConfig
from sbi_multilevel_benchmarks.divergence import divergence_table, run_divergences
from tests.linear_gaussian import SilentTracker, simulations

LOSSES = st.floats(-1e3, 1e12)


def with_tail(value, num_pairs, base):
    """A quarter of a simulation with the loss that a tenth of level 0 exceeds."""
    return (num_pairs * value + np.quantile(base, 0.9) / 4) / (num_pairs + 0.25)


def test_the_estimate_by_hand():
    base = np.array([1.0, 2.0, 3.0, 2.0, 1.0, 3.0])  # mean 2
    coarse = np.array([1.0, 2.0, 4.0, 1.0])  # mean 2, centred -1, 0, 2, -1
    fine = np.array([1.0, 3.0, 3.0, 1.0])
    # covariance 4 / 6 of variance, times 6 / (6 + 4)
    weight = 0.6 * 4 / 6
    found = bounded_loss(base + 0.5, [(fine, coarse)])
    assert found.value == pytest.approx(with_tail(2.0 + weight * 0.5, 4, base + 0.5))
    differences = fine - weight * coarse
    variance = differences.var(ddof=1) / 4 + weight**2 * base.var(ddof=1) / 6
    assert found.error == pytest.approx(math.sqrt(variance))


@pytest.mark.parametrize("shift", [-10.0, 10.0])
def test_a_gap_beyond_two_standard_errors_is_added(shift):
    base = np.array([1.0, 2.0, 3.0, 2.0])
    fine = np.array([2.0, 2.0, 2.0, 2.0])  # does not vary: no control variate
    coarse = np.array([1.0, 2.0, 3.0, 2.0]) + shift
    found = bounded_loss(base, [(fine, coarse)]).value
    expected = 2.0 + 10.0 - 2 * base.std() / 2
    assert found == pytest.approx(with_tail(expected, 4, base))


@pytest.mark.parametrize("shift, expected", [(-1.0, 2.0), (1.0, 1.0)])
def test_few_pairs_take_the_larger_estimate(shift, expected):
    base, fine = np.array([2.0, 0.0, 4.0]), np.array([1.0, 1.0])
    coarse = np.full(2, 2.0 + shift)
    found = bounded_loss(base, [(fine, coarse)]).value
    assert found == pytest.approx(with_tail(expected, 2, base))


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20),
    st.lists(st.tuples(st.floats(-1e3, 1e3), LOSSES), min_size=1, max_size=12),
)
def test_coarse_losses_cannot_lower_the_estimate_without_bound(base, pairs):
    fine, coarse = np.array(pairs).T
    found = bounded_loss(np.array(base), [(fine, coarse)]).value
    # by Cauchy-Schwarz, of the part of the gap that is not added as a penalty
    least = min(fine.mean(), *fine) - 2 * np.std(base) - abs(np.mean(base)) - 1e3
    assert found >= least


def test_a_heavy_tail_at_level_0_raises_the_estimate():
    """Held-out pairs need not contain one simulation in ten."""
    fine = np.array([1.0, 2.0, 1.5, 2.0, 1.0])
    base = np.append(np.full(80, 1.5), np.full(20, 500.0))
    gap = fine + base.mean() - fine.mean()  # coarse sides that agree with level 0
    light = bounded_loss(np.full(100, base.mean()), [(fine, gap)]).value
    heavy = bounded_loss(base, [(fine, gap)]).value
    assert heavy - light == pytest.approx((500 - base.mean()) / 4 / 5.25)


def test_losses_that_are_not_finite_are_never_the_best():
    base, fine = np.ones(5), np.array([1.0, 2.0, math.inf, 1.0])
    for pair in ((fine, np.ones(4)), (np.ones(4), fine)):
        assert bounded_loss(base, [pair]).value == math.inf


def test_the_estimate_varies_less_than_the_high_fidelity_losses():
    """Correlation 0.95 leaves a tenth of the variance; the mean stays."""
    rng = np.random.default_rng(0)
    found, plain = [], []
    for _ in range(400):
        shared, own = rng.normal(size=(2, 30))
        fine, coarse = 3.0 + shared, 0.95 * shared + 0.31 * own
        base = rng.normal(size=3_000)
        found.append(bounded_loss(base, [(fine, coarse)]).value)
        plain.append(fine.mean())
    assert np.var(found) < 0.4 * np.var(plain)
    # gaps beyond two standard errors, one in twenty, add a little
    assert abs(np.mean(found) - 3.0) < 0.02


@pytest.mark.parametrize("stopping", ["bounded", "telescoping"])
def test_a_training_that_diverges_keeps_good_weights(stopping):
    """Coarse sides lie where no simulation of level 0 is: the network repels them."""
    torch.manual_seed(1)
    prior = MultivariateNormal(torch.zeros(1), torch.eye(1))
    theta, pairs = prior.sample((200,)), prior.sample((40,))
    fine, coarse = pairs + 0.1 * torch.randn(40, 1), 4 + 0.1 * torch.randn(40, 1)
    trainer = MLNPE(
        prior,
        "mdn",
        config=MultilevelConfig(adjustment="none", stopping=stopping),
        tracker=SilentTracker(),
        show_progress_bars=False,
    )
    trainer.append_multilevel_simulations(theta, theta.clone(), level=0)
    trainer.append_multilevel_simulations(pairs, fine, coarse, level=1)
    network = trainer.train(learning_rate=0.01, max_num_epochs=60)
    with torch.no_grad():
        repelled = -network.log_prob(pairs[None], coarse).mean().item()
    # 1.4 nats under the prior
    assert repelled < 10 if stopping == "bounded" else repelled > 100


class FailsLater(ConditionalDensityEstimator):
    """A mixture of Gaussians whose losses in training are NaN after a while."""

    def __init__(self, theta, x, num_finite):
        net = posterior_nn("mdn", hidden_features=10)(theta, x)
        super().__init__(net.net, net.input_shape, net.condition_shape)
        self.estimator, self.num_left = net, num_finite

    def log_prob(self, input, condition, **kwargs):
        return self.estimator.log_prob(input, condition, **kwargs)

    def sample(self, sample_shape, condition, **kwargs):
        return self.estimator.sample(sample_shape, condition, **kwargs)

    def loss(self, input, condition, **kwargs):
        losses = self.estimator.loss(input, condition, **kwargs)
        self.num_left -= self.training
        return losses if self.num_left >= 0 else losses * math.nan


def trainer_that_fails_after(num_finite, **settings):
    trainer = MLNPE(
        MultivariateNormal(torch.zeros(2), torch.eye(2)),
        lambda theta, x: FailsLater(theta, x, num_finite),
        config=MultilevelConfig(**settings),
        tracker=SilentTracker(),
        show_progress_bars=False,
    )
    return trainer.append_multilevel_simulations(simulations())


def test_a_loss_that_is_not_finite_ends_training_at_the_best_weights():
    torch.manual_seed(0)
    trainer = trainer_that_fails_after(30)
    with pytest.warns(UserWarning, match="not finite in epoch .* Lower learning_rate"):
        network = trainer.train(training_batch_size=200)
    losses = trainer.summary["validation_loss"]
    assert 1 < len(losses) <= 31 and math.isnan(trainer.summary["training_loss"][-1])
    assert trainer.summary["best_validation_loss"] == [min(losses)]
    values = torch.cat([v.flatten() for v in network.state_dict().values()])
    assert values.isfinite().all()


def test_without_held_out_simulations_a_loss_that_is_not_finite_is_an_error():
    trainer = trainer_that_fails_after(30, early_stopping=False)
    with pytest.raises(ValueError, match="not finite in epoch .* learning_rate=0.0005"):
        trainer.train(max_num_epochs=100)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="stopping must be one of .*'telescope'"):
        MultilevelConfig(stopping="telescope")


def test_random_trainings_are_counted_by_what_they_end_with():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        records = list(run_divergences([2], rules=["bounded"]))
        (other,) = run_divergences([2], rules=["bounded"], before=records, rates=[2e-3])
    (record,) = records
    assert other["learning_rate"] == other["rate"] == 2e-3 != record["learning_rate"]
    assert math.isfinite(record["excess"]) and record["excess"] < 10
    # those that are there already are not run again
    assert not list(run_divergences([2], before=records, rules=["bounded"]))
    failed = {"seed": 3, "stopping": "bounded", "error": "ValueError"}
    far = {"seed": 4, "stopping": "bounded", "excess": 5.0}
    given, drawn = divergence_table([record, failed, far, other]).rows
    assert drawn[:5] == ("bounded", "drawn", "3", "2", "1")
    assert given[:3] == ("bounded", "0.002", "1")
