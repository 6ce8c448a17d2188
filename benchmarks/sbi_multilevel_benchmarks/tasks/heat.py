r"""Heat: a one-dimensional heat equation on 64 and on 8 cells, with an exact posterior.

.. math::

    \frac{\partial u}{\partial t} = \kappa \frac{\partial^2 u}{\partial s^2}
    \text{ on } [0, 1], \qquad \frac{\partial u}{\partial s} = 0 \text{ at the ends},
    \qquad u(s, 0) = \exp\!\left(-\frac{(s - m)^2}{2 w^2}\right).

Theta is :math:`(\log_{10} \kappa, m, w)`: diffusivity, and position and width of the
source. The prior is uniform on :math:`[-2.5, -1] \times [0.2, 0.8] \times [0.03,
0.15]`. Five sensors at :math:`s = 0.1, 0.3, \dots, 0.9` are read at :math:`t = 0.1,
0.3, 1`,

.. math:: x_{ij} = u(s_i, t_j) + 0.05\, \varepsilon_{ij}, \qquad \varepsilon_{ij} \sim
    N(0, 1),

with the same :math:`\varepsilon` at both levels. Lengths, times and temperatures have
no unit. The constants are those of this benchmark and of no paper.

*Levels.* With n cells of width :math:`h = 1/n` (64 at level 1, 8 at level 0), the cells
start from the exact mean of the source, and exchange heat with their neighbors,

.. math::

    \dot u_j = \frac{\kappa}{h^2} (u_{j-1} - 2 u_j + u_{j+1}), \qquad
    u_0 = u_1, \; u_{n+1} = u_n.

The modes of this system are :math:`\cos(\pi k (j - 1/2) h)` with decay rates :math:`4
\kappa \sin^2(\pi k h / 2) / h^2` (Strang 1999, SIAM Review 41, 135: the discrete cosine
transform), so that time is not discretised. Sensors interpolate linearly between the
centers of cells. The error of both is :math:`O(h^2)`. The cost is that of the dense
transform, :math:`n^2`. `cost_of` is that of a common solver instead, which depends on
theta: an explicit scheme is stable with steps of at most :math:`h^2 / (2 \kappa)`, so
it takes :math:`2 \kappa n^2` of them until time 1.

The solution is a function of theta, so the likelihood of level 1 is Gaussian, and the
posterior is sampled on a grid.
"""

from __future__ import annotations

import math
from functools import cache, partial

import torch
from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions import Normal

from sbi_multilevel_benchmarks.posterior_task import PosteriorTask, sample_density
from sbi_multilevel_benchmarks.registry import register_task

NUM_CELLS = (8, 64)
SENSORS, TIMES = (0.1, 0.3, 0.5, 0.7, 0.9), (0.1, 0.3, 1.0)
ERROR = 0.05  # standard deviation of a reading
GRID_SIZE = 32

_BLOCK = 20_000  # solutions in memory at once


@cache
def _modes(num_cells: int) -> tuple[Tensor, Tensor]:
    """Orthonormal modes, `(cells, modes)`, and their decay rates over diffusivity."""
    k = torch.arange(num_cells, dtype=torch.float64)
    modes = torch.cos(math.pi * (k[:, None] + 0.5) * k / num_cells)
    rates = (2 * num_cells * torch.sin(math.pi * k / (2 * num_cells))) ** 2
    return modes / modes.norm(dim=0), rates


@cache
def _interpolation(num_cells: int) -> Tensor:
    """Weights of the cells in each reading of a sensor, shape `(sensors, cells)`."""
    place = torch.tensor(SENSORS, dtype=torch.float64) * num_cells - 0.5
    cells = torch.arange(num_cells, dtype=torch.float64)
    # the temperature is constant beyond the center of the first and of the last cell
    place = place.clamp(0, num_cells - 1)
    return (1 - (place[:, None] - cells).abs()).clamp_min(0)


def source(theta: Tensor, num_cells: int) -> Tensor:
    """Mean of the source in each cell, shape `(n, num_cells)`."""
    _, middle, width = theta.double().unsqueeze(2).unbind(dim=1)
    edges = torch.arange(num_cells + 1, dtype=torch.float64) / num_cells
    integral = torch.erf((edges - middle) / (width * math.sqrt(2)))
    factor = width * math.sqrt(math.pi / 2) * num_cells
    return factor * integral.diff(dim=1)


def evolve(start: Tensor, diffusivity: Tensor, time: float) -> Tensor:
    """Temperature of the cells at a time.

    Args:
        start: Temperature of the cells at time 0, shape `(n, num_cells)`.
        diffusivity: Diffusivities, shape `(n,)`.
        time: The time.
    """
    modes, rates = _modes(start.shape[1])
    decay = torch.exp(-time * diffusivity.unsqueeze(1) * rates)
    return (start @ modes * decay) @ modes.T


def readings(theta: Tensor, num_cells: int) -> Tensor:
    """Sensors without error, times in order, shape `(n, 15)`, double precision."""
    start, diffusivity = source(theta, num_cells), 10 ** theta[:, 0].double()
    sensors = _interpolation(num_cells).T
    parts = [evolve(start, diffusivity, time) @ sensors for time in TIMES]
    return torch.cat(parts, dim=1)


def measured(theta: Tensor, noise: Tensor, num_cells: int) -> Tensor:
    """Sensors with error, shape `(n, 15)`."""
    return (readings(theta, num_cells) + ERROR * noise).float()


def log_likelihood(theta: Tensor, x: Tensor, num_cells: int = NUM_CELLS[1]) -> Tensor:
    """Exact log likelihood of an output `x`, shape `(15,)`, at each theta."""
    parts = [
        Normal(readings(part, num_cells), ERROR).log_prob(x.double()).sum(dim=1)
        for part in theta.split(_BLOCK)
    ]
    return torch.cat(parts)


class Heat(PosteriorTask):
    """Posterior of diffusivity, position and width of a source of heat."""

    name = "heat"
    simulators = tuple(partial(measured, num_cells=cells) for cells in NUM_CELLS)
    costs = (1.0, 64.0)  # squares of the numbers of cells, relative
    prior = BoxUniform(torch.tensor([-2.5, 0.2, 0.03]), torch.tensor([-1.0, 0.8, 0.15]))

    def __init__(self):
        self.true_theta, self.observations = self.simulate_high(10, seed=10_000)

    @staticmethod
    def noise(n: int, generator: torch.Generator) -> Tensor:
        """Errors of the sensors, shape `(n, 15)`."""
        return torch.randn(n, len(SENSORS) * len(TIMES), generator=generator)

    @staticmethod
    def cost_of(theta: Tensor, noise: Tensor) -> Tensor:
        """Steps of an explicit scheme on the cells of level 1, shape `(n,)`.

        Args:
            theta: Parameters, shape `(n, 3)`.
            noise: Errors of the sensors, on which the cost does not depend.
        """
        return 2 * 10 ** theta[:, 0] * NUM_CELLS[1] ** 2 * TIMES[-1]

    def reference(self, index: int) -> Tensor:
        return self.exact_posterior(self.observations[index], self.num_samples)

    def exact_posterior(self, x_o: Tensor, num_samples: int, seed: int = 0) -> Tensor:
        """Samples of the exact posterior of an observation `x_o`, shape `(15,)`."""
        support = self.prior.support.base_constraint
        return sample_density(
            partial(log_likelihood, x=x_o),
            support.lower_bound,
            support.upper_bound,
            num_samples,
            GRID_SIZE,
            seed,
        )


register_task("heat", lambda data: Heat())
