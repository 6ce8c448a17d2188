"""Metrics of the benchmark; sbi's own where it has them."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from sbi.utils.metrics import biased_mmd, c2st
from sbi.utils.sbiutils import within_support
from torch import Tensor

from sbi_multilevel.simulation.noise import seeded

__all__ = [
    "biased_mmd",
    "c2st",
    "grid_kl",
    "nlpd",
    "nltp",
    "nrmse",
    "posterior_density",
    "summarise",
]


def posterior_density(
    estimator: Any, prior: Any, theta: Tensor, x: Tensor
) -> dict[str, list[float]]:
    """`nlpd` of each row as users get it, and as papers state it.

    Args:
        estimator: As in `nlpd`.
        prior: As in `nlpd`.
        theta: As in `nlpd`.
        x: As in `nlpd`.

    Returns:
        `nlpd`, corrected for mass outside the prior, and `nlpd_raw`, the network's own.
    """
    corrected, raw = nlpd(estimator, theta, x, prior), nlpd(estimator, theta, x)
    return {"nlpd": corrected.tolist(), "nlpd_raw": raw.tolist()}


def nlpd(
    estimator: Any,
    theta: Tensor,
    x: Tensor,
    prior: Any | None = None,
    num_samples: int = 1_000,
) -> Tensor:
    r"""Negative log posterior density of each row.

    .. math:: -\log q(\theta_i \mid x_i) + \log \int_{p(\theta) > 0}
        q(\theta \mid x_i)\, d\theta

    Args:
        estimator: Conditional density estimator of theta given x.
        theta: Test parameters, shape `(n, d_theta)`.
        x: Their outputs at the highest level, shape `(n, *x_shape)`.
        prior: Where the density is normalised, as the posteriors of sbi are; `None`
            for the network's own density, that leaves out the second term.
        num_samples: Samples for the integral at each x. Where all are outside the
            prior, one counts as inside.

    Returns:
        Values of each row, shape `(n,)`.
    """
    with torch.no_grad():
        values = -estimator.log_prob(theta.unsqueeze(0), x)[0]
        if prior is None:
            return values
        with seeded(2):
            samples = estimator.sample((num_samples,), x)
    inside = within_support(prior, samples.flatten(0, 1))
    count = inside.view(num_samples, len(x)).sum(dim=0).clamp(min=1)
    return values + torch.log(count / num_samples)


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


def nltp(posterior: Any, theta: Tensor, x: Tensor) -> Tensor:
    r"""Negative log of the true parameter, :math:`-\log q(\theta_i \mid x_i)`.

    Args:
        posterior: Anything with the `log_prob` of sbi's posteriors.
        theta: True parameters, shape `(k, d_theta)`.
        x: Their observations, shape `(k, *x_shape)`.

    Returns:
        Values of each observation, shape `(k,)`; infinite where the posterior gives
        the true parameter no mass. The density is the network's own, as in `nlpd`.
    """
    takes = inspect.signature(posterior.log_prob).parameters
    options = {"norm_posterior": False} if "norm_posterior" in takes else {}
    values = []
    for row, x_o in zip(theta.unsqueeze(1), x.unsqueeze(1)):
        values.append(-posterior.log_prob(row, x=x_o, **options).detach().reshape(()))
    return torch.stack(values)


def nrmse(samples: Tensor, true_theta: Tensor) -> Tensor:
    r"""Root mean squared error of posterior samples, over the range of true parameters.

    For observation i and parameter j, as in the code of Krouglova et al. (2026),

    .. math:: \sqrt{\tfrac1m \sum_s (\theta_{isj} - \theta^*_{ij})^2} \;/\;
        (\max_i \theta^*_{ij} - \min_i \theta^*_{ij}),

    averaged over the parameters. The square is taken of each sample, not of the
    posterior mean, so the spread of the posterior counts, not only its place: the
    exact posterior does not score 0.

    Args:
        samples: Posterior samples, shape `(k, m, d_theta)`.
        true_theta: True parameters, shape `(k, d_theta)`.

    Returns:
        Values of each observation, shape `(k,)`; their mean is the published figure.

    Raises:
        ValueError: If there are less than two observations, hence no range.
    """
    if len(true_theta) < 2:
        raise ValueError(
            f"true_theta has {len(true_theta)} rows, but its range needs at least 2. "
            "Pass the true parameters of more observations."
        )
    span = true_theta.amax(dim=0) - true_theta.amin(dim=0)
    squares = (samples - true_theta.unsqueeze(1)).square().mean(dim=1)
    return (squares.sqrt() / span.clamp_min(1e-12)).mean(dim=1)


def summarise(values: Any) -> dict[str, float]:
    """Mean and median over test points.

    The mean is the metric: a few confident misses, invisible to the median, are what
    makes a posterior wrong.
    """
    values = np.asarray(values, dtype=float)
    return {"mean": float(values.mean()), "median": float(np.median(values))}
