"""The cost of a simulation as a function of theta, learned from measured costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.level_maps.regression import Regression, polynomials
from sbi_multilevel.utils.argument_types import check_types

_MIN_FITTED = 10


@dataclass(frozen=True, eq=False)
class FittedCost:
    """A cost that was learned from measured ones, see `fit_cost`.

    Args:
        log_cost: Regression of the logarithm of the cost on theta.
        factor: Mean of the cost over the exponential of the regression.
        lowest: Lowest cost that is returned.
        highest: Highest cost that is returned.
    """

    log_cost: Regression
    factor: float
    lowest: float
    highest: float

    def __call__(self, theta: Tensor) -> Tensor:
        """Cost at each theta, shape `(n,)`.

        Args:
            theta: Parameters, shape `(n, d_theta)`.
        """
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
    return FittedCost(
        model, float(factor), float(measured.min()), float(measured.max())
    )
