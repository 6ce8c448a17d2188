r"""Ornstein-Uhlenbeck process with three parameters; level 0 is its stationary law.

Level 1 is the Euler scheme of :math:`dx = \gamma(\mu - x) dt + \sigma dW` from
:math:`x_0 = 2` with :math:`dt = 0.1` over 100 steps. Level 0 draws each step
independently from the stationary law :math:`N(\mu, \sigma^2 / 2\gamma)`, from the same
standard normals. Five steps (0, 3, 9, 31, 99) are observed. The prior is uniform on
:math:`\gamma \in [0.1, 1]`, :math:`\mu \in [0.1, 3]`, :math:`\sigma \in [0.1, 0.6]`.
As in Hikida et al. (2025), Section 5.2, with the network of their code.

The observed steps are a Gaussian Markov chain, so the exact posterior is known up to a
constant; it is sampled on a grid for the C2ST.

`ou-start` has a fourth parameter, the start :math:`x_0 \in [0, 4]`, which level 0 does
not depend on: Hikida et al. (2025), Appendix B.3.1. Their code has
:math:`\gamma \in [0.5, 1.5]` there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_multilevel.utils.seeds import seeded
from sbi_multilevel_benchmarks.calibration import calibration_of_network
from sbi_multilevel_benchmarks.metrics import c2st, posterior_density
from sbi_multilevel_benchmarks.posterior_task import sample_density
from sbi_multilevel_benchmarks.registry import register_task
from sbi_multilevel_benchmarks.task import BenchmarkTask

START, STEP, NUM_STEPS = 2.0, 0.1, 100
OBSERVED = (0, 3, 9, 31, 99)


def stationary(theta: Tensor, noise: Tensor) -> Tensor:
    """Level 0: independent draws from the stationary law."""
    gamma, mu, sigma, _ = (column.unsqueeze(-1) for column in _columns(theta))
    return mu + sigma / torch.sqrt(2 * gamma) * noise[:, OBSERVED]


def process(theta: Tensor, noise: Tensor) -> Tensor:
    """Level 1: Euler steps."""
    gamma, mu, sigma, x = _columns(theta)
    path = []
    for t in range(NUM_STEPS):
        x = x + gamma * (mu - x) * STEP + sigma * STEP**0.5 * noise[:, t]
        path.append(x)
    return torch.stack(path, dim=1)[:, OBSERVED]


def log_likelihood(theta: Tensor, x: Tensor) -> Tensor:
    """Exact log likelihood of one observation `x`, shape `(5,)`, at each theta."""
    gamma, mu, sigma, start = _columns(theta)
    decay = 1 - gamma * STEP
    previous, last = start, -1
    total = torch.zeros_like(mu)
    for step, value in zip(OBSERVED, x):
        n = step - last
        mean = mu + (previous - mu) * decay**n
        variance = sigma**2 * STEP * (1 - decay ** (2 * n)) / (1 - decay**2)
        total += torch.distributions.Normal(mean, variance.sqrt()).log_prob(value)
        previous, last = value.expand_as(mu), step
    return total


def _columns(theta: Tensor) -> list[Tensor]:
    """Gamma, mu, sigma and the start, which is fixed if theta has three columns."""
    columns = list(theta.unbind(dim=1))
    if len(columns) == 3:
        columns.append(torch.full_like(columns[0], START))
    return columns


class OrnsteinUhlenbeck(BenchmarkTask):
    """Neural posterior of the three parameters."""

    name, family, metric = "ou", "npe", "nlpd"
    num_simulations = (1_000, 50)
    paper_epochs = 10_000
    simulators = (stationary, process)
    costs = (1.0, float(NUM_STEPS))
    prior = BoxUniform(torch.tensor([0.1, 0.1, 0.1]), torch.tensor([1.0, 3.0, 0.6]))
    num_test, num_c2st, num_samples = 1_000, 5, 500

    @staticmethod
    def noise(n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, NUM_STEPS, generator=generator)

    def build_network(self) -> Callable:
        return posterior_nn(
            "nsf",
            num_transforms=2,
            num_bins=2,
            hidden_features=10,
            tail_bound=2.0,
            num_blocks=1,
            dropout_probability=0.2,
        )

    def evaluate(self, estimator: Any, trained_on: Tensor) -> dict:
        """NLPD at 1 000 simulations, C2ST to the exact posterior at 5 of them."""
        theta, x = self.simulate_high(self.num_test, seed=10_000)
        scores = []
        for x_o in x[: self.num_c2st]:
            exact = self.exact_posterior(x_o, self.num_samples)
            with seeded(1):
                estimate = estimator.sample((self.num_samples,), x_o.unsqueeze(0))
            scores.append(c2st(exact, estimate[:, 0].detach(), classifier="mlp").item())
        return {
            **posterior_density(estimator, self.prior, theta, x),
            "c2st": scores,
            **calibration_of_network(estimator, self.prior, theta, x),
        }

    def exact_posterior(self, x_o: Tensor, num_samples: int, size: int = 100) -> Tensor:
        """Samples of the exact posterior, on a grid of `size` cells per parameter."""
        support = self.prior.support.base_constraint
        low, high = support.lower_bound, support.upper_bound
        width = (high - low) / size
        cells = [low[i] + width[i] * (torch.arange(size) + 0.5) for i in range(3)]
        grid = torch.cartesian_prod(*cells)
        weights = torch.softmax(log_likelihood(grid.double(), x_o.double()), dim=0)
        with seeded(0):
            chosen = torch.multinomial(weights, num_samples, replacement=True)
            return grid[chosen] + width * (torch.rand(num_samples, 3) - 0.5)


class StartedOrnsteinUhlenbeck(OrnsteinUhlenbeck):
    """The process with its start as a fourth parameter."""

    name = "ou-start"
    num_simulations = (1_000, 100)
    prior = BoxUniform(
        torch.tensor([0.1, 0.1, 0.1, 0.0]), torch.tensor([1.0, 3.0, 0.6, 4.0])
    )

    def exact_posterior(self, x_o: Tensor, num_samples: int, size: int = 28) -> Tensor:
        """Samples of the exact posterior, see `sample_density`."""
        support = self.prior.support.base_constraint
        return sample_density(
            lambda theta: log_likelihood(theta, x_o.double()),
            support.lower_bound,
            support.upper_bound,
            num_samples,
            size,
        )


def unrelated(theta: Tensor, noise: Tensor) -> Tensor:
    """Level 0 without information: normals around 2, independent of level 1."""
    return START + noise[:, NUM_STEPS:]


class UselessOrnsteinUhlenbeck(OrnsteinUhlenbeck):
    """The process with a level 0 that is independent of level 1."""

    name = "ou-useless"
    simulators = (unrelated, process)

    @staticmethod
    def noise(n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, NUM_STEPS + len(OBSERVED), generator=generator)


register_task("ou", lambda data: OrnsteinUhlenbeck())
register_task("ou-start", lambda data: StartedOrnsteinUhlenbeck())
register_task("ou-useless", lambda data: UselessOrnsteinUhlenbeck())
