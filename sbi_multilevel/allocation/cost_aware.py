r"""A proposal that prefers parameters whose simulations cost less.

The cost :math:`c(\theta)` of a simulation often depends on its parameters. The proposal

.. math::

    q(\theta) = \frac{p(\theta)}{Z\, g(c(\theta))}, \qquad
    Z = \mathbb{E}_p\!\left[\frac{1}{g(c)}\right],

with an increasing function :math:`g \ge 1` draws less of the expensive ones, and the
importance weights :math:`w = p / q = Z g` make a loss that of simulations from the
prior (Bharti et al. 2025). For a budget B there are
:math:`n = B / \mathbb{E}_q[c]` simulations, whose effective sample size is
:math:`n / \mathbb{E}_q[w^2]`,

.. math::

    \mathrm{ESS} = \frac{B}{\mathbb{E}_p[c / g]\; \mathbb{E}_p[g]}
    \le \frac{B}{\mathbb{E}_p[\sqrt c]^2},

by the inequality of Cauchy and Schwarz, with equality for :math:`g \propto \sqrt c`.
The prior has :math:`B / \mathbb{E}_p[c]`, so that the square root needs the share
:math:`\mathbb{E}_p[\sqrt c]^2 / \mathbb{E}_p[c]` of its cost for the same effective
sample size. Here

.. math::

    g(c) = \min\!\left(\max\!\left(\frac{c}{c_0}, 1\right), r\right)^k

with :math:`k = 1/2` by default, :math:`c_0` the 1 % quantile of the cost under the
prior, and a largest ratio r, which bounds weights: :math:`w \le r^k`. Draws from the
prior are accepted with probability :math:`1 / g`.

Weights are computed from the cost *function*. A measured cost also depends on the
noise, and weights that depend on it would be biased; `fit_cost` learns a function from
measured costs.

Reference: Bharti, Huang, Kaski, Briol (2025), *Cost-aware simulation-based inference*,
AISTATS 2025, arXiv:2410.07930, who draw with several exponents k; the exponent 1/2 is
derived above.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations
from sbi_multilevel.level_maps.regression import Regression, polynomials
from sbi_multilevel.simulation.arguments import Cost, costs_at, processed_prior
from sbi_multilevel.utils.argument_types import check_types
from sbi_multilevel.utils.seeds import seeded

_LOW_QUANTILE, _MIN_FITTED = 0.01, 10


class CostAwareProposal(Distribution):
    r"""The proposal of the module, for use as the prior of simulations.

    Args:
        prior: The prior, anything that sbi takes.
        cost: Function from theta, shape `(n, d_theta)`, to positive costs in any unit,
            shape `(n,)`, e.g. as returned by `fit_cost`. For pairs, the cost of both
            sides.
        exponent: k; 0 is the prior.
        max_ratio: r.
        num_draws: Draws from the prior by which :math:`c_0` and Z are estimated.
        seed: Seed of these draws.

    Raises:
        ValueError: If an argument is out of range, or costs are not positive.

    Example:
    --------

    Simulations, which a trainer weights:

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MFNPE, simulate_multilevel
        >>> prior = BoxUniform(torch.zeros(1), torch.ones(1))
        >>> proposal = CostAwareProposal(prior, lambda theta: 10 ** (2 * theta[:, 0]))
        >>> 0.7 < proposal.relative_cost < 0.72
        True
        >>> simulations = simulate_multilevel(
        ...     [lambda theta, noise: theta + noise, lambda theta, u: theta + 2 * u],
        ...     proposal,
        ...     num_simulations=(200, 20),
        ...     noise=lambda n, generator: torch.randn(n, 1, generator=generator),
        ...     show_progress_bars=False,
        ... )
        >>> inference = MFNPE(prior, show_progress_bars=False)
        >>> inference = inference.append_multilevel_simulations(
        ...     proposal.weighted(simulations)
        ... )
    """

    # arguments are checked here
    arg_constraints = {}  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        prior: Any,
        cost: Cost,
        *,
        exponent: float = 0.5,
        max_ratio: float = 100.0,
        num_draws: int = 10_000,
        seed: int = 0,
    ):
        check_types(CostAwareProposal.__init__, locals(), but=("seed",))
        if not 0 <= exponent < math.inf:
            raise ValueError(f"exponent must be in [0, inf), but is {exponent}.")
        if not 1 <= max_ratio < math.inf:
            raise ValueError(
                f"max_ratio must be in [1, inf), but is {max_ratio}. It bounds the "
                "weights."
            )
        if num_draws < 100:
            raise ValueError(f"num_draws must be >= 100, but is {num_draws}.")
        self.prior, self.cost = processed_prior(prior, seed), cost
        self.exponent, self.max_ratio = exponent, max_ratio
        with seeded(seed):
            costs = costs_at(cost, self.prior.sample(torch.Size((num_draws,))))
        self._lowest = torch.quantile(costs, _LOW_QUANTILE)
        g = self._g(costs)
        self._constant = float((1 / g).mean())
        self._relative = float((costs / g).mean() * g.mean() / costs.mean())
        super().__init__(
            batch_shape=self.prior.batch_shape,
            event_shape=self.prior.event_shape,
            validate_args=False,
        )

    @property
    def relative_cost(self) -> float:
        """Cost for an effective sample size, relative to that of the prior."""
        return self._relative

    @property
    def support(self) -> Any:
        """The support of the prior."""
        return self.prior.support

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, shape `(*sample_shape, d_theta)`.

        Args:
            sample_shape: Number of draws, of any shape.
        """
        shape = torch.Size(sample_shape)
        missing, kept = shape.numel(), []
        while missing > 0:
            num = math.ceil(1.2 * missing / self._constant) + 10
            theta = self.prior.sample(torch.Size((num,)))
            accepted = torch.rand(num, device=theta.device) * self._g_of(theta) < 1
            kept.append(theta[accepted][:missing])
            missing -= len(kept[-1])
        if not kept:
            return self.prior.sample(shape)
        return torch.cat(kept).reshape(*shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, with Z as estimated from draws.

        Args:
            value: Parameters, shape `(..., d_theta)`.
        """
        return self.prior.log_prob(value) - self.weights(value).log()

    def weights(self, theta: Tensor) -> Tensor:
        """Importance weights w, of mean 1 over draws, shape `(...,)`.

        Args:
            theta: Parameters, shape `(..., d_theta)`.
        """
        flat = theta.reshape(-1, theta.shape[-1])
        return self._constant * self._g_of(flat).reshape(theta.shape[:-1])

    def weighted(self, simulations: MultilevelSimulations) -> MultilevelSimulations:
        """Simulations of draws from this proposal, with their weights.

        Args:
            simulations: Simulations of `simulate_multilevel` with the proposal as the
                prior. Levels may differ in cost: weights belong to theta.

        Raises:
            ValueError: If they have weights.
        """
        if any(level.weights is not None for level in simulations):
            raise ValueError(
                "simulations have weights. Pass simulations as `simulate_multilevel` "
                "returns them."
            )
        levels = tuple(
            LevelSimulations.trusted(
                each.level, each.theta, each.x, each.x_coarse, self.weights(each.theta)
            )
            for each in simulations
        )
        return replace(simulations, levels=levels)

    def effective_sample_size(self, theta: Tensor) -> float:
        r"""Effective sample size :math:`(\sum w)^2 / \sum w^2`.

        Args:
            theta: Draws from this proposal, shape `(n, d_theta)`.
        """
        weights = self.weights(theta).double()
        return float(weights.sum() ** 2 / weights.square().sum())

    def _g(self, costs: Tensor) -> Tensor:
        return (costs / self._lowest).clamp(1.0, self.max_ratio) ** self.exponent

    def _g_of(self, theta: Tensor) -> Tensor:
        return self._g(costs_at(self.cost, theta)).to(theta.dtype)


@dataclass(frozen=True, eq=False)
class FittedCost:
    """A cost that was learned from measured ones, see `fit_cost`."""

    log_cost: Regression  # of the logarithm of the cost on theta
    factor: float  # mean of the cost over the exponential of the regression
    lowest: float
    highest: float

    def __call__(self, theta: Tensor) -> Tensor:
        """Cost at each theta, shape `(n,)`, for theta of shape `(n, d_theta)`."""
        predicted = self.log_cost(theta.detach().cpu().double().numpy())
        costs = self.factor * np.exp(predicted[:, 0])
        costs = np.clip(costs, self.lowest, self.highest)
        return torch.as_tensor(costs, device=theta.device)


def fit_cost(theta: Tensor, costs: Tensor) -> FittedCost:
    """Learn the cost as a function of theta.

    A ridge regression of the logarithm on quadratic polynomials of theta
    (`sbi_multilevel.level_maps.regression`), corrected so that the mean cost is that
    measured.

    Args:
        theta: Parameters of finished simulations, shape `(n, d_theta)`.
        costs: Cost of each, e.g. seconds, shape `(n,)`; `SimulationStore.costs_of`
            reads them.

    Raises:
        ValueError: If the shapes do not fit, costs are not positive, or there are fewer
            than ten.

    Example:
    --------

    ::

        >>> import torch
        >>> theta = torch.rand(100, 2)
        >>> cost = fit_cost(theta, (3 * theta[:, 0]).exp())
        >>> bool(abs(cost(torch.tensor([[0.5, 0.1]])) / 4.48 - 1) < 0.05)
        True
    """
    check_types(fit_cost, locals())
    if theta.ndim != 2 or costs.shape != theta.shape[:1]:
        raise ValueError(
            f"costs has the shape {tuple(costs.shape)}, but theta "
            f"{tuple(theta.shape)}. Pass one cost for each theta."
        )
    if len(theta) < _MIN_FITTED or not bool(((costs > 0) & costs.isfinite()).all()):
        raise ValueError(
            f"costs must be at least {_MIN_FITTED} positive, finite numbers, but are "
            f"{len(costs)}, the lowest {float(costs.min()) if len(costs) else None}. "
            "Leave out failed simulations, or simulate more."
        )
    inputs, measured = theta.cpu().double().numpy(), costs.cpu().double().numpy()
    features = polynomials(inputs, degree=2)
    model = Regression.fit(features, inputs, np.log(measured)[:, np.newaxis])
    factor = measured.mean() / np.exp(model(inputs)).mean()
    ends = float(measured.min()), float(measured.max())
    return FittedCost(model, float(factor), *ends)
