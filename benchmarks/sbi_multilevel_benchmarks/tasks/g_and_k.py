r"""g-and-k distribution: two levels, with an exact density.

.. math::

    x = a + b \left(1 + 0.8\, \tanh(g z / 2)\right) (1 + z^2)^{\log k} z, \qquad
    z = \Phi^{-1}(u), \; u \sim U(0, 1).

Level 1 uses :math:`\Phi^{-1}`, level 0 two terms of the Taylor series of
:math:`\mathrm{erf}^{-1}`, with much lighter tails. The prior is uniform on
:math:`[0, 3]^3 \times [e^{1/2}, 3]`, as in Hikida et al. (2025), Section 5.1.

As :math:`x` increases with :math:`u`, its density is :math:`p(x \mid \theta) =
\varphi(z) / (\partial x / \partial z)`. The KL divergence to a density estimate is an
integral over u, by the midpoint rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from sbi.neural_nets import likelihood_nn
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_multilevel.utils.seeds import seeded
from sbi_multilevel_benchmarks.metrics import grid_kl
from sbi_multilevel_benchmarks.registry import register_task
from sbi_multilevel_benchmarks.task import BenchmarkTask

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def quantile(theta: Tensor, z: Tensor) -> Tensor:
    """The g-and-k quantile function at standard normal quantiles `z`."""
    a, b, g, k = theta.unbind(dim=-1)
    return a + b * (1 + 0.8 * torch.tanh(g * z / 2)) * (1 + z**2) ** k.log() * z


def log_density(theta: Tensor, z: Tensor) -> Tensor:
    r"""Exact :math:`\log p(x(z) \mid \theta)`, in closed form."""
    _, b, g, k = theta.unbind(dim=-1)
    tanh, power = torch.tanh(g * z / 2), k.log()
    skew = 1 + 0.8 * tanh
    # d/dz of skew * (1 + z^2)^power * z
    slope = (
        skew * (1 + (1 + 2 * power) * z**2) / (1 + z**2) + 0.4 * g * (1 - tanh**2) * z
    )
    log_jacobian = b.log() + power * torch.log1p(z**2) + slope.log()
    return -0.5 * z**2 - _HALF_LOG_TWO_PI - log_jacobian


def exact_log_prob(theta: Tensor, x: Tensor) -> Tensor:
    """Exact log density of each x at each theta.

    The quantile function is inverted by Newton's method from the nearest node of a grid
    of z in [-10, 10], within the neighboring nodes.

    Args:
        theta: Parameters, shape `(n, 4)`.
        x: Outputs, shape `(m,)`.

    Returns:
        Log densities, shape `(n, m)`.
    """
    theta, x = theta.double().unsqueeze(1), x.double().expand(len(theta), -1)
    nodes = torch.linspace(-10, 10, 401, dtype=torch.float64)
    cell = torch.searchsorted(quantile(theta, nodes), x.contiguous()).clamp(1, 400)
    low, high = nodes[cell - 1], nodes[cell]
    z = (low + high) / 2
    for _ in range(6):
        # p(x) = phi(z) / (dx / dz)
        slope = torch.exp(-0.5 * z**2 - _HALF_LOG_TWO_PI - log_density(theta, z))
        z = torch.clamp(z - (quantile(theta, z) - x) / slope, low, high)
    return log_density(theta, z)


def low_fidelity(theta: Tensor, noise: Tensor) -> Tensor:
    """Level 0: the inverse error function as a cubic."""
    u = 2 * noise[:, 0] - 1
    z = math.sqrt(2) * math.pi / 2 * (u + math.pi / 12 * u**3)
    return quantile(theta.double(), z).unsqueeze(1)


def high_fidelity(theta: Tensor, noise: Tensor) -> Tensor:
    """Level 1: the exact quantile function."""
    return quantile(theta.double(), torch.special.ndtri(noise[:, 0])).unsqueeze(1)


class GAndK(BenchmarkTask):
    """Neural likelihood of one draw of a g-and-k distribution."""

    name, family, metric = "g-and-k", "nle", "kl"
    num_simulations = (10_000, 100)
    paper_epochs = 1_000
    simulators = (low_fidelity, high_fidelity)
    costs = (1.0, 10.0)  # nominal: both take microseconds
    prior = BoxUniform(
        torch.tensor([0.0, 0.0, 0.0, math.exp(0.5)]), torch.full((4,), 3.0)
    )
    num_test, num_nodes = 200, 2_000

    @staticmethod
    def noise(n: int, generator: torch.Generator) -> Tensor:
        u = torch.rand(n, 1, generator=generator, dtype=torch.float64)
        return u.clamp(min=1e-12)  # u = 0 would give -inf

    def build_network(self) -> Callable:
        return likelihood_nn(
            "nsf", num_transforms=1, num_bins=10, hidden_features=50, tail_bound=7.0
        )

    def evaluate(self, estimator: Any, trained_on: Tensor) -> dict:
        """KL to the exact density, and the paper's KL on a grid of [-30, 30]."""
        with seeded(0):
            thetas = self.prior.sample((self.num_test,))
        u = (torch.arange(self.num_nodes, dtype=torch.float64) + 0.5) / self.num_nodes
        z = torch.special.ndtri(u)
        grid = torch.linspace(-30, 30, 2_000, dtype=torch.float64)
        kl, kl_grid = [], []
        for theta in thetas.double():
            x, exact = quantile(theta, z), log_density(theta, z)
            estimate = _log_prob(estimator, x, theta)
            kl.append((exact - estimate).mean().item())
            exact_grid = exact_log_prob(theta.unsqueeze(0), grid)[0]
            kl_grid.append(grid_kl(exact_grid, _log_prob(estimator, grid, theta)))
        return {"kl": kl, "kl_grid": kl_grid}


def _log_prob(estimator: Any, x: Tensor, theta: Tensor) -> Tensor:
    with torch.no_grad():
        inputs = x.float().reshape(-1, 1, 1)
        return estimator.log_prob(inputs, theta.float().unsqueeze(0))[:, 0].double()


def unrelated(theta: Tensor, noise: Tensor) -> Tensor:
    """Level 0 without information: standard normals, independent of level 1."""
    return torch.special.ndtri(noise[:, 1:])


class GAndKUseless(GAndK):
    """g-and-k with a level 0 that is independent of level 1."""

    name = "g-and-k-useless"
    simulators = (unrelated, high_fidelity)

    @staticmethod
    def noise(n: int, generator: torch.Generator) -> Tensor:
        u = torch.rand(n, 2, generator=generator, dtype=torch.float64)
        return u.clamp(min=1e-12)


register_task("g-and-k", lambda data: GAndK())
register_task("g-and-k-useless", lambda data: GAndKUseless())
