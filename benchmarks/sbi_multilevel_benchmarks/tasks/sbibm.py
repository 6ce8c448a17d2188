r"""SLCP and SIR, with the observations and reference posteriors of sbibm.

Both are tasks of Lueckmann et al. (2021), with the level 0 of Krouglova et al. (2026),
arXiv:2502.08416.

*SLCP.* Four draws from a bivariate normal distribution with mean
:math:`(\theta_1, \theta_2)`, standard deviations :math:`\theta_3^2, \theta_4^2` and
correlation :math:`\tanh \theta_5`; the prior is uniform on :math:`[-3, 3]^5`. Level 0
has mean 0.

*SIR.* An epidemic in a population of :math:`N = 10^6` with one infected at day 0,

.. math::  \dot S = -\beta S I / N, \qquad \dot I = \beta S I / N - \gamma I,

with :math:`\log \beta \sim N(\log 0.4, 0.5)`,
:math:`\log \gamma \sim N(\log 0.125, 0.2)`. Level 1 draws
:math:`\mathrm{Binomial}(1000, I(t) / N)` every 17 days, ten times; level 0 every 32
days, six times, and four more times at the last day. Draws at both levels are quantiles
of the same uniform noise.

sbibm is not imported, as its dependencies conflict with those of sbi; the files of the
installed package are read.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sbi.utils import BoxUniform
from scipy import stats
from torch import Tensor
from torch.distributions import Independent, LogNormal

from sbi_multilevel_benchmarks.posterior_task import PosteriorTask
from sbi_multilevel_benchmarks.registry import register_task

POPULATION, INFECTED, TRIALS = 1e6, 1.0, 1000
DAYS_HIGH = tuple(range(0, 160, 17))
DAYS_LOW = (0, 32, 64, 96, 128, 160, 160, 160, 160, 160)
STEPS_PER_DAY = 10  # of Runge-Kutta; errors are below 1e-5 except in far tails


@cache
def _folder(task: str) -> Path:
    spec = importlib.util.find_spec("sbibm")
    if spec is None or spec.origin is None:
        raise ValueError(
            f"task={task!r} reads the files of sbibm, which is not installed. Run "
            "`pip install --no-deps sbibm==1.1.0`; its dependencies are not needed."
        )
    folder = Path(spec.origin).parent / "tasks" / task / "files"
    if not folder.is_dir():
        raise ValueError(
            f"task={task!r} finds no files in the sbibm installed. Run "
            "`pip install --no-deps sbibm==1.1.0`."
        )
    return folder


@cache
def read_table(task: str, index: int, name: str) -> Tensor:
    """A table of sbibm, float32.

    Args:
        task: Name of the task in sbibm.
        index: Observation, from 0.
        name: Name of the file, which may be compressed.
    """
    path = _folder(task) / f"num_observation_{index + 1}" / name
    table = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
    return torch.as_tensor(table, dtype=torch.float32)


class SBIBMTask(PosteriorTask):
    """A task with the ten observations and the reference posteriors of sbibm.

    Raises:
        ValueError: If sbibm is not installed.
    """

    costs = (1.0, 10.0)  # nominal

    def __init__(self):
        tables = (
            torch.cat([read_table(self.name, i, f"{name}.csv") for i in range(10)])
            for name in ("true_parameters", "observation")
        )
        self.true_theta, self.observations = tables

    def reference(self, index: int) -> Tensor:
        return read_table(self.name, index, "reference_posterior_samples.csv.bz2")


# ------------------------------------------------------------- SLCP


def _factor(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # lower Cholesky factor of the covariance; sbibm adds 1e-6 to the diagonal
    scales = theta[:, 2:4] ** 2
    variances = scales**2 + 1e-6
    first = variances[:, 0].sqrt()
    slope = torch.tanh(theta[:, 4]) * scales.prod(dim=1) / first
    return first, slope, (variances[:, 1] - slope**2).sqrt()


def centered_points(theta: Tensor, noise: Tensor) -> Tensor:
    """Level 0: four points of mean 0, flattened."""
    first, slope, second = (entry.unsqueeze(1) for entry in _factor(theta))
    u, v = noise.unbind(dim=2)
    return torch.stack((first * u, slope * u + second * v), dim=2).flatten(1)


def points(theta: Tensor, noise: Tensor) -> Tensor:
    """Level 1: four points, flattened."""
    return centered_points(theta, noise) + theta[:, :2].repeat(1, 4)


def slcp_log_likelihood(theta: Tensor, x: Tensor) -> Tensor:
    """Log likelihood of an output `x`, shape `(8,)`, at each theta."""
    first, slope, second = (entry.unsqueeze(1) for entry in _factor(theta))
    gap = x.reshape(1, 4, 2) - theta[:, None, :2]
    u = gap[..., 0] / first
    v = (gap[..., 1] - slope * u) / second
    normal = torch.distributions.Normal(u.new_tensor(0.0), u.new_tensor(1.0))
    densities = normal.log_prob(u) + normal.log_prob(v) - (first * second).log()
    return densities.sum(dim=1)


class SLCP(SBIBMTask):
    """Posterior of five parameters, with four modes."""

    name = "slcp"
    simulators = (centered_points, points)
    prior = BoxUniform(-3 * torch.ones(5), 3 * torch.ones(5))
    parameters = {
        0: ("theta_3", "theta_4", "theta_5"),
        1: ("theta_1", "theta_2", "theta_3", "theta_4", "theta_5"),
    }

    @staticmethod
    def noise(n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, 4, 2, generator=generator)


# ------------------------------------------------------------- SIR


def infected(theta: Tensor, days: tuple[int, ...]) -> Tensor:
    """Fraction infected at the given days, by Runge-Kutta; double precision."""
    rate, recovery = theta.double().unbind(dim=1)

    def slope(state: Tensor) -> Tensor:
        new = rate * state[0] * state[1]
        return torch.stack((-new, new - recovery * state[1]))

    start = torch.tensor([1 - INFECTED / POPULATION, INFECTED / POPULATION])
    state = start.double().unsqueeze(1).expand(-1, len(theta))
    h, path = 1 / STEPS_PER_DAY, {0: state[1]}
    for step in range(1, max(days) * STEPS_PER_DAY + 1):
        a = slope(state)
        b = slope(state + h / 2 * a)
        c = slope(state + h / 2 * b)
        state = state + h / 6 * (a + 2 * b + 2 * c + slope(state + h * c))
        if step % STEPS_PER_DAY == 0:
            path[step // STEPS_PER_DAY] = state[1]
    return torch.stack([path[day] for day in days], dim=1).clamp(0, 1)


def _counts(theta: Tensor, noise: Tensor, days: tuple[int, ...]) -> Tensor:
    # the quantile of 0 is -1, and torch may draw 0
    uniforms = noise.clamp_min(1e-12).numpy()
    counts = stats.binom.ppf(uniforms, TRIALS, infected(theta, days).numpy())
    return torch.as_tensor(counts, dtype=torch.float32)


def sparse_counts(theta: Tensor, noise: Tensor) -> Tensor:
    """Level 0: six days, the last of them five times."""
    return _counts(theta, noise, DAYS_LOW)


def counts(theta: Tensor, noise: Tensor) -> Tensor:
    """Level 1: ten days."""
    return _counts(theta, noise, DAYS_HIGH)


def sir_log_likelihood(theta: Tensor, x: Tensor) -> Tensor:
    """Log likelihood of an output `x`, shape `(10,)`, at each theta."""
    fractions = infected(theta, DAYS_HIGH).numpy()
    values = stats.binom.logpmf(x.numpy(), TRIALS, fractions).sum(axis=1)
    return torch.as_tensor(values)


class SIR(SBIBMTask):
    """Posterior of contact rate and recovery rate."""

    name = "sir"
    simulators = (sparse_counts, counts)
    prior = Independent(
        LogNormal(torch.tensor([0.4, 0.125]).log(), torch.tensor([0.5, 0.2])), 1
    )

    @staticmethod
    def noise(n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, 10, dtype=torch.float64, generator=generator)


register_task("slcp", lambda data: SLCP())
register_task("sir", lambda data: SIR())
