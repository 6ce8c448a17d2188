r"""A linear-Gaussian problem with three levels, with exact posteriors.

.. math:: x_l = A_l \theta + b_l + s\, u, \qquad \theta \sim N(0, I), \; u \sim N(0, I).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from sbi_multilevel import MultilevelSimulations, simulate_multilevel

DIM, SCALE = 2, 0.5
MATRICES = tuple(
    torch.tensor([[1.0, 0.2], [0.0, 1.0]])
    + gap * torch.tensor([[0.4, 0.0], [0.5, 0.3]])
    for gap in (0.5, 0.1, 0.0)
)
SHIFTS = (torch.tensor([0.3, -0.3]), torch.tensor([0.05, 0.0]), torch.zeros(2))


def prior() -> MultivariateNormal:
    return MultivariateNormal(torch.zeros(DIM), torch.eye(DIM))


def simulate(theta: Tensor, noise: Tensor, level: int) -> Tensor:
    return theta @ MATRICES[level].T + SHIFTS[level] + SCALE * noise


SIMULATORS = tuple(partial(simulate, level=level) for level in range(3))


def noise(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, DIM, generator=generator)


def simulations(counts=(400, 60, 40), seed=0) -> MultilevelSimulations:
    return simulate_multilevel(
        SIMULATORS[: len(counts)],
        prior(),
        counts,
        noise=noise,
        seed=seed,
        costs=(1.0, 5.0, 20.0)[: len(counts)],
        show_progress_bars=False,
    )


def posterior(x_o: Tensor, level: int = 2) -> MultivariateNormal:
    """Exact posterior at one observation of a level."""
    a = MATRICES[level]
    covariance = torch.linalg.inv(torch.eye(DIM) + a.T @ a / SCALE**2)
    mean = covariance @ a.T @ (x_o - SHIFTS[level]) / SCALE**2
    return MultivariateNormal(mean, covariance)


class SilentTracker:
    """Keeps what a trainer logs."""

    log_dir = None

    def __init__(self):
        self.metrics = []

    def log_metric(self, name, value, step=None):
        self.metrics.append((name, value, step))

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            self.log_metric(name, value, step)

    def log_params(self, params): ...

    def add_figure(self, name, figure, step=None): ...

    def flush(self): ...
