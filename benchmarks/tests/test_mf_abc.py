"""Multifidelity ABC: its weights, its samples, its budget."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from sbi_multilevel_benchmarks import get_task, mf_abc


@pytest.fixture(autouse=True)
def seed():
    """Tests are seeded."""
    torch.manual_seed(0)


def _pairs(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    theta, noise = torch.randn(2, n, 1, generator=generator).unbind(0)
    low, high = theta + noise + 0.4, theta + 0.8 * noise
    return (low.abs() < 0.5).flatten(), (high.abs() < 0.5).flatten(), generator


@pytest.mark.parametrize("budget", [None, 300])
def test_weights_have_the_mean_of_plain_abc(budget):
    low, high, generator = _pairs(2_000)
    eta = mf_abc.continuation_probabilities(low, (0.6, 0.2), budget)
    means, counts = [], []
    for _ in range(1_000):
        chosen = mf_abc.choose(eta, generator)
        weights = mf_abc.multifidelity_weights(low, high, chosen, eta)
        means.append(weights.mean())
        counts.append(int(chosen.sum()))
    means = torch.stack(means)
    error = means.std() / len(means) ** 0.5
    assert (means.mean() - high.double().mean()).abs() < 4 * error
    assert max(counts) - min(counts) <= 1
    if budget is not None:
        assert set(counts) == {budget}


def test_draws_are_chosen_with_their_probabilities():
    eta = torch.tensor([0.9, 0.1, 0.5, 0.5, 1.0]).double()
    generator = torch.Generator().manual_seed(0)
    draws = [mf_abc.choose(eta, generator) for _ in range(4_000)]
    mean = torch.stack(draws).double().mean(dim=0)
    error = (eta * (1 - eta) / 4_000).sqrt() + 1e-9
    assert ((mean - eta).abs() < 4.5 * error).all()


def test_negative_weights_are_offset_against_nearest_neighbors():
    theta = torch.tensor([[0.0], [0.1], [0.2], [9.0], [9.1]])
    weights = torch.tensor([1.0, -0.5, 1.0, 2.0, 0.0], dtype=torch.float64)
    offset = mf_abc.offset_negative(theta, weights)
    assert (offset >= 0).all()
    assert offset[:3].sum() == pytest.approx(1.5)
    assert torch.equal(offset[3:], weights[3:])
    assert torch.equal(mf_abc.offset_negative(theta, -weights), torch.zeros(5))
    same = torch.zeros(3, 1)
    weights = torch.tensor([0.0, -0.5, 1.0], dtype=torch.float64)
    assert mf_abc.offset_negative(same, weights).sum() == pytest.approx(0.5)


class _Gaussian:
    """theta ~ N(0, 1), x = theta + noise, level 0 biased and noisier."""

    prior = torch.distributions.Independent(Normal(torch.zeros(1), 1.0), 1)

    @staticmethod
    def noise(n, generator):
        return torch.randn(n, 1, generator=generator)

    @staticmethod
    def low(theta, noise):
        return theta + 1.2 * noise + 0.3

    @staticmethod
    def high(theta, noise):
        return theta + noise

    @classmethod
    def posterior(cls, num_low, num_high, **options):
        pair = (cls.low, cls.high)
        return mf_abc.MFABCPosterior(
            cls.prior, pair, cls.noise, num_low, num_high, **options
        )


def test_mf_abc_recovers_a_gaussian_posterior():
    x, means, deviations, clamped = torch.tensor([[1.0]]), [], [], []
    for seed in range(30):
        options = dict(epsilons=(0.2, 0.1), seed=seed)
        posterior = _Gaussian.posterior(4_000, 2_000, **options)
        samples = posterior.sample((2_000,), x=x, show_progress_bars=False)
        means.append(samples.mean().item())
        deviations.append(samples.std().item())
        posterior = _Gaussian.posterior(4_000, 2_000, negative="clamp", **options)
        clamped.append(posterior.sample((2_000,), x=x).mean().item())
    error = np.std(means, ddof=1) / len(means) ** 0.5
    assert abs(np.mean(means) - 0.5) < 4 * error
    # half of the variance of x is noise
    assert np.mean(deviations) == pytest.approx(0.5**0.5, rel=0.15)
    # draws that level 0 accepts wrongly are too low, and clamping keeps them
    gaps = np.subtract(means, clamped)
    error = np.std(gaps, ddof=1) / len(means) ** 0.5
    assert gaps.mean() > 4 * error


def test_mf_abc_keeps_its_budget_and_is_deterministic():
    x = torch.tensor([[1.0]])
    posterior = _Gaussian.posterior(1_000, 20)
    weights, continued = posterior.weights(x)
    assert continued.sum() == 20 and torch.equal(weights, posterior.weights(x)[0])
    assert torch.equal(posterior.sample((9,), x=x), posterior.sample((9,), x=x))
    assert not hasattr(posterior, "log_prob")
    with pytest.warns(UserWarning, match="samples are those of the prior"):
        posterior.sample((5,), x=torch.tensor([[1e6]]))


def test_mf_abc_posteriors_are_evaluated_by_tasks():
    for task in (get_task("ou2"), get_task("blob")):
        task.observations, task.true_theta = task.observations[:2], task.true_theta[:2]
        task.num_samples = 100
        posterior = mf_abc.MFABCPosterior(
            task.prior, task.simulators, task.noise, 100, 20, epsilons=(2.0, 2.0)
        )
        errors = task.evaluate(posterior, torch.empty(0))
        assert "nltp" not in errors and np.isfinite(errors["nrmse"]).all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(etas=(0.0, 0.5)), "weights divide"),
        (dict(negative="drop"), "'offset' or 'clamp'"),
        (dict(num_high=1), "at least 2"),
    ],
)
def test_mf_abc_raises_on_invalid_arguments(options, match):
    with pytest.raises(ValueError, match=match):
        _Gaussian.posterior(**{"num_low": 10, "num_high": 5, **options})
    with pytest.raises(ValueError, match="Pass two"):
        mf_abc.MFABCPosterior(_Gaussian.prior, (_Gaussian.low,), _Gaussian.noise, 9, 9)
