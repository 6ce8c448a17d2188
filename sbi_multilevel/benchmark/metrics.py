"""Metrics of the benchmark; sbi's own where it has them."""

from __future__ import annotations

from collections.abc import Callable
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


def grid_kl(
    x: Tensor,
    log_density: Tensor,
    log_prob: Callable[[Tensor], Tensor],
    lower: float = -30.0,
    upper: float = 30.0,
    num_points: int = 2_000,
) -> float:
    """KL divergence on a grid, both densities normalised on it, as in the paper's code.

    The exact log density is given at sorted points `x` and interpolated linearly.
    """
    grid = np.linspace(lower, upper, num_points)
    exact = np.interp(grid, x.numpy(), log_density.numpy(), left=-46.0, right=-46.0)
    estimate = log_prob(torch.from_numpy(grid)).numpy()
    p, q = np.exp(exact), np.exp(estimate)
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p * (np.log(p) - np.log(np.maximum(q, 1e-300)))))


def summarise(values: Any) -> dict[str, float]:
    """Mean and median over test points.

    The mean is the metric: a few confident misses, invisible to the median, are what
    makes a posterior wrong.
    """
    values = np.asarray(values, dtype=float)
    return {"mean": float(values.mean()), "median": float(np.median(values))}
