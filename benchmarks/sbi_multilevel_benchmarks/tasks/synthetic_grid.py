r"""Synthetic tasks whose levels solve an ordinary differential equation on two grids.

One more kind of the tasks of `synthetic`, with the same metrics. x are 8 readings
:math:`v(0.5), v(1), \dots, v(4)` of a solution with noise :math:`s\, u`, :math:`u \sim
N(0, I)`, which the levels share. They differ in the number of steps of Euler's scheme,
so that the error of the low fidelity is a smooth function of theta. The prior is
uniform on :math:`[-1, 1]^{d_\theta}`. `synthetic-grid` is logistic growth,

.. math::

    \dot v = (1.5 + \theta_1)\, v (1 - v), \qquad v(0) = 0.3 + 0.2\, \theta_2,

with 8 and 64 steps and :math:`s = 0.1`, and `validation-grid` a damped oscillator,

.. math::

    \ddot v = -(1.5 + \theta_1 / 2)^2\, v - (0.4 + 0.3\, \theta_2)\, \dot v, \qquad
    v(0) = 1 + \theta_3 / 2, \quad \dot v(0) = 0,

with 32 and 256 steps and :math:`s = 0.3`. The likelihood is Gaussian, and the posterior
is normalized by the midpoint rule on a grid of theta.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_multilevel_benchmarks.tasks.synthetic import register_synthetic

DURATION, NUM_READINGS = 4.0, 8
_BLOCK = 20  # outputs at all points of the grid in memory at once


def logistic(theta: Tensor, num_steps: int) -> Tensor:
    """Readings of logistic growth, shape `(n, 8)`, of theta of shape `(n, 2)`."""
    rate, start = 1.5 + theta[:, 0], 0.3 + 0.2 * theta[:, 1]
    return _readings(start.unsqueeze(0), lambda v: rate * v * (1 - v), num_steps)


def oscillator(theta: Tensor, num_steps: int) -> Tensor:
    """Readings of a damped oscillator, shape `(n, 8)`, of theta of shape `(n, 3)`."""
    frequency, damping = 1.5 + theta[:, 0] / 2, 0.4 + 0.3 * theta[:, 1]
    start = 1 + theta[:, 2] / 2

    def slope(state: Tensor) -> Tensor:
        v, speed = state
        return torch.stack((speed, -(frequency**2) * v - damping * speed))

    return _readings(torch.stack((start, 0 * start)), slope, num_steps)


def _readings(
    state: Tensor, slope: Callable[[Tensor], Tensor], num_steps: int
) -> Tensor:
    """The first component of the solution from a state of shape `(k, n)`."""
    stride, values = num_steps // NUM_READINGS, []
    for i in range(1, num_steps + 1):
        state = state + DURATION / num_steps * slope(state)
        if i % stride == 0:
            values.append(state[0])
    return torch.stack(values, dim=1)


@dataclass(frozen=True)
class Solver:
    """Simulator of a level.

    Args:
        solution: Readings as a function of theta and the number of steps.
        num_steps: Number of steps, a multiple of 8.
        scale: Scale s of the noise.
        grid_shape: Number of cells of the grid along each parameter.
    """

    solution: Callable[[Tensor, int], Tensor]
    num_steps: int
    scale: float
    grid_shape: tuple[int, ...]

    def __call__(self, theta: Tensor, noise: Tensor) -> Tensor:
        """Simulate x, shape `(n, 8)`.

        Args:
            theta: Parameters, shape `(n, d_theta)`.
            noise: Standard normals, of which the first 8 columns are used.
        """
        mean = self.solution(theta, self.num_steps)
        return mean + self.scale * noise[:, :NUM_READINGS]

    def log_posterior(self, theta: Tensor, x: Tensor) -> Tensor:
        """Exact log posterior density, see `LinearLevel.log_posterior`."""
        theta, x = theta.double(), x.double()
        axes = [(2 * torch.arange(n).double() + 1) / n - 1 for n in self.grid_shape]
        on_grid = self.solution(torch.cartesian_prod(*axes), self.num_steps)
        # of the mean likelihood; constants of the density cancel
        log_evidence = [
            torch.logsumexp(self._exponent(torch.cdist(part, on_grid)), dim=1)
            for part in x.split(_BLOCK)
        ]
        distance = (x - self.solution(theta, self.num_steps)).norm(dim=1)
        log_volume = sum(math.log(2 / n) for n in self.grid_shape)  # of a cell
        return self._exponent(distance) - torch.cat(log_evidence) - log_volume

    def _exponent(self, distance: Tensor) -> Tensor:
        return -0.5 * (distance / self.scale) ** 2


def _parts(high: Solver, num_low_steps: int) -> tuple:
    corner = torch.ones(len(high.grid_shape))
    low = replace(high, num_steps=num_low_steps)
    return BoxUniform(-corner, corner), (low, high), high.log_posterior


SOLVERS = {
    "synthetic-grid": (Solver(logistic, 64, 0.1, (150, 150)), 8),
    "validation-grid": (Solver(oscillator, 256, 0.3, (40, 40, 40)), 32),
}
for _name, _given in SOLVERS.items():
    register_synthetic(_name, partial(_parts, *_given))
