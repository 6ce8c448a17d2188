r"""g-and-k distribution: posterior of the parameters given 1 000 draws.

The simulators and the prior are those of `g-and-k`, with 1 000 independent draws of one
theta at each level, from the same uniforms. With their octiles :math:`E_1, \dots, E_7`,
x is

.. math::

    E_4, \quad E_6 - E_2, \quad \frac{E_6 + E_2 - 2 E_4}{E_6 - E_2}, \quad
    \frac{E_7 - E_5 + E_3 - E_1}{E_6 - E_2},

estimates of location, scale, skewness and kurtosis: those of Prangle (2020), "gk: An R
package for the g-and-k and generalised g-and-h distributions". As in Hikida et al.
(2025), Section 5.1, with the network of the paper; that of their code has 32 hidden
features. Their code standardizes each of the 1 000 draws by its own mean and standard
deviation over simulations before it computes the statistics, which is not done here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sbi.neural_nets import posterior_nn
from torch import Tensor

from sbi_multilevel_benchmarks.calibration import calibration_of_network
from sbi_multilevel_benchmarks.metrics import posterior_density
from sbi_multilevel_benchmarks.registry import register_task
from sbi_multilevel_benchmarks.task import BenchmarkTask
from sbi_multilevel_benchmarks.tasks import g_and_k

NUM_DRAWS = 1_000


def summaries(draws: Tensor) -> Tensor:
    """The four statistics of draws of shape `(n, m)`, shape `(n, 4)`."""
    levels = torch.arange(1, 8, dtype=draws.dtype) / 8
    e1, e2, e3, e4, e5, e6, e7 = torch.quantile(draws, levels, dim=1)
    scale = e6 - e2
    skewness, kurtosis = (e6 + e2 - 2 * e4) / scale, (e7 - e5 + e3 - e1) / scale
    return torch.stack((e4, scale, skewness, kurtosis), dim=1)


def low_fidelity(theta: Tensor, noise: Tensor) -> Tensor:
    """Level 0: statistics of draws with the inverse error function as a cubic."""
    return summaries(_draws(g_and_k.low_fidelity, theta, noise))


def high_fidelity(theta: Tensor, noise: Tensor) -> Tensor:
    """Level 1: statistics of draws of the exact quantile function."""
    return summaries(_draws(g_and_k.high_fidelity, theta, noise))


def _draws(simulator: Callable, theta: Tensor, noise: Tensor) -> Tensor:
    """A draw for each of the uniforms, shape `(n, m)`."""
    repeated = theta.repeat_interleave(noise.shape[1], dim=0)
    return simulator(repeated, noise.reshape(-1, 1)).view_as(noise)


class GAndKPosterior(BenchmarkTask):
    """Neural posterior of the four parameters."""

    name, family, metric = "g-and-k-posterior", "npe", "nlpd"
    num_simulations = (1_000, 100)
    paper_epochs = 800
    simulators = (low_fidelity, high_fidelity)
    costs = g_and_k.GAndK.costs
    prior = g_and_k.GAndK.prior
    num_test = 500

    @staticmethod
    def noise(n: int, generator: torch.Generator) -> Tensor:
        u = torch.rand(n, NUM_DRAWS, generator=generator, dtype=torch.float64)
        return u.clamp(min=1e-12)  # u = 0 would give -inf

    def build_network(self) -> Callable:
        return posterior_nn(
            "nsf",
            num_transforms=3,
            num_bins=3,
            hidden_features=50,
            tail_bound=3.0,
            num_blocks=2,
            dropout_probability=0.1,
        )

    def evaluate(self, estimator: Any, trained_on: Tensor) -> dict:
        """NLPD at 500 simulations, and calibration."""
        theta, x = self.simulate_high(self.num_test, seed=10_000)
        return {
            **posterior_density(estimator, self.prior, theta, x),
            **calibration_of_network(estimator, self.prior, theta, x),
        }


register_task("g-and-k-posterior", lambda data: GAndKPosterior())
