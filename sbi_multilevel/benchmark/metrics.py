"""Metrics of the benchmark; sbi's own where it has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sbi.utils.metrics import biased_mmd, c2st
from torch import Tensor

__all__ = ["biased_mmd", "c2st", "grid_kl", "nlpd", "summarise"]


def nlpd(estimator: Any, theta: Tensor, x: Tensor) -> Tensor:
    r"""Negative log posterior density :math:`-\log q(\theta_i \mid x_i)` of each row.

    Args:
        estimator: Conditional density estimator of theta given x.
        theta: Test parameters, shape `(n, d_theta)`.
        x: Their outputs at the highest level, shape `(n, *x_shape)`.

    Returns:
        Values of each row, shape `(n,)`. The density is the network's own, without a
        correction for mass outside the prior.
    """
    with torch.no_grad():
        return -estimator.log_prob(theta.unsqueeze(0), x)[0]


def grid_kl(log_density: Tensor, log_prob: Tensor) -> float:
    """KL divergence on a grid, both densities normalised on it, as in the paper's code.

    Args:
        log_density: Exact log density at the points of an even grid, shape `(m,)`.
        log_prob: Log density of the estimate at the same points, shape `(m,)`.

    Returns:
        The divergence of the estimate from the exact density, both given that x lies
        on the grid: errors in tails beyond it do not count.
    """
    exact = torch.log_softmax(log_density, dim=0)
    estimate = torch.log_softmax(log_prob, dim=0)
    return float(torch.sum(exact.exp() * (exact - estimate)))


def summarise(values: Any) -> dict[str, float]:
    """Mean and median over test points.

    The mean is the metric: a few confident misses, invisible to the median, are what
    makes a posterior wrong.
    """
    values = np.asarray(values, dtype=float)
    return {"mean": float(values.mean()), "median": float(np.median(values))}
