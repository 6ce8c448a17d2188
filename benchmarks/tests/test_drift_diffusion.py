"""Drift-diffusion task: its exact likelihood, and that level 1 follows it."""

import pytest
import torch

from sbi_multilevel_benchmarks.registry import get_task
from sbi_multilevel_benchmarks.tasks.drift_diffusion import (
    exact_log_prob,
    high_fidelity,
    low_fidelity,
)

THETAS = ([1.0, 1.0, 0.5, 0.3], [-2.0, 1.5, 0.3, 0.1], [0.0, 0.6, 0.7, 0.5])


class Exact:
    """The exact likelihood as an estimator."""

    def loss(self, x, theta):
        return -exact_log_prob(theta, x)


@pytest.mark.parametrize("theta", THETAS)
def test_level_1_has_the_probabilities_and_times_of_the_exact_likelihood(theta):
    theta = torch.tensor([theta])
    step = 0.001
    times = torch.arange(step / 2, 7, step)
    densities = []
    for choice in (0.0, 1.0):
        x = torch.stack((times, torch.full_like(times, choice)), dim=1)
        densities.append(exact_log_prob(theta.expand(len(x), -1), x).exp())
    shares = [step * each.sum().item() for each in densities]
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    drift, _, start, _ = theta[0].tolist()
    if drift == 0:  # a martingale
        assert shares[1] == pytest.approx(start, abs=1e-4)
    mean = step * (sum(densities) * times).sum().item()

    n = 10_000
    noise = get_task("drift-diffusion").noise(n, torch.Generator().manual_seed(0))
    x = high_fidelity(theta.expand(n, -1), noise)
    errors = x.std(dim=0) / n**0.5
    # half a step is what is left of discrete time
    assert abs(x[:, 0].mean() - mean) < 4 * errors[0] + 0.0025
    assert abs(x[:, 1].mean() - shares[1]) < 4 * errors[1] + 0.002
    low = low_fidelity(theta.expand(n, -1), noise)
    assert low[:, 0].mean() > x[:, 0].mean() + 0.05


def test_the_exact_likelihood_has_no_divergence():
    task = get_task("drift-diffusion")
    assert task.evaluate(Exact(), torch.empty(0))["kl"] == [0.0] * task.num_test
    simulations = task.simulate((30, 20), seed=0)
    assert simulations.num_simulations == (30, 20) and simulations[1].is_paired
    theta, x = task.simulate_high(50, seed=0)
    assert exact_log_prob(theta, x).isfinite().all()
    early = torch.tensor([[0.05, 1.0]])  # before the delay
    assert exact_log_prob(theta[:1], early).item() == -torch.inf
