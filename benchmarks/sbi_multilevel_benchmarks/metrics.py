"""Metrics of the benchmark, from sbi where it has them."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from sbi.utils.metrics import biased_mmd, c2st
from sbi.utils.sbiutils import within_support
from torch import Tensor

from sbi_multilevel.utils.seeds import seeded

__all__ = [
    "biased_mmd",
    "c2st",
    "grid_kl",
    "nlpd",
    "nltp",
    "nrmse",
    "posterior_density",
    "summarize",
]


def posterior_density(
    estimator: Any, prior: Any, theta: Tensor, x: Tensor
) -> dict[str, list[float]]:
    """`nlpd` with and without normalization within the prior.

    Args:
        estimator: As in `nlpd`.
        prior: As in `nlpd`.
        theta: As in `nlpd`.
        x: As in `nlpd`.

    Returns:
        `nlpd`, normalized within the prior, and `nlpd_raw`, of the network itself.
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
    r"""Negative log posterior density (NLPD) at test simulations.

    .. math:: -\log q(\theta_i \mid x_i) + \log \int_{p(\theta) > 0}
        q(\theta \mid x_i)\, d\theta

    Args:
        estimator: Conditional density estimator of theta given x.
        theta: Test parameters, shape `(n, d_theta)`.
        x: Their outputs at the highest level, shape `(n, *x_shape)`.
        prior: Prior within which the density is normalized, as in the posteriors of
            sbi; `None` for the density of the network, without the second term.
        num_samples: Samples for the integral at each x. If all are outside the prior,
            one is counted as inside.

    Returns:
        Values at each simulation, shape `(n,)`.
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
    """KL divergence of densities normalized on a grid, as in the code of the paper.

    Args:
        log_density: Exact log density at the points of a regular grid, shape `(m,)`.
        log_prob: Log density of the estimate at the same points, shape `(m,)`.

    Returns:
        The divergence of the estimate from the exact density, both given that x lies
        within the grid, so that errors in the tails beyond it are ignored.
    """
    exact = torch.log_softmax(log_density, dim=0)
    estimate = torch.log_softmax(log_prob, dim=0)
    return float(torch.sum(exact.exp() * (exact - estimate)))


def nltp(posterior: Any, theta: Tensor, x: Tensor) -> Tensor:
    r"""Negative log of the true parameter, :math:`-\log q(\theta_i \mid x_i)`.

    Args:
        posterior: An object with the `log_prob` of sbi's posteriors.
        theta: True parameters, shape `(k, d_theta)`.
        x: Their observations, shape `(k, *x_shape)`.

    Returns:
        Values of each observation, shape `(k,)`; infinite if the posterior density is
        0. Posteriors of sbi are not normalized within the prior.
    """
    takes = inspect.signature(posterior.log_prob).parameters
    options = {"norm_posterior": False} if "norm_posterior" in takes else {}
    values = []
    for each, x_o in zip(theta.unsqueeze(1), x.unsqueeze(1)):
        values.append(-posterior.log_prob(each, x=x_o, **options).detach().reshape(()))
    return torch.stack(values)


def nrmse(samples: Tensor, true_theta: Tensor) -> Tensor:
    r"""Root mean squared error of posterior samples, over the range of true parameters.

    For observation i and parameter j, as in the code of Krouglova et al. (2026),

    .. math:: \sqrt{\tfrac1m \sum_s (\theta_{isj} - \theta^*_{ij})^2} \;/\;
        (\max_i \theta^*_{ij} - \min_i \theta^*_{ij}),

    averaged over the parameters. Errors are those of samples, not of the posterior
    mean, so the exact posterior does not have an NRMSE of 0.

    Args:
        samples: Posterior samples, shape `(k, m, d_theta)`.
        true_theta: True parameters, shape `(k, d_theta)`.

    Returns:
        Values of each observation, shape `(k,)`; the paper has their mean.

    Raises:
        ValueError: If there are fewer than two observations.
    """
    if len(true_theta) < 2:
        raise ValueError(
            f"true_theta has {len(true_theta)} observations, but its range needs at "
            "least 2. Pass the true parameters of more observations."
        )
    span = true_theta.amax(dim=0) - true_theta.amin(dim=0)
    squares = (samples - true_theta.unsqueeze(1)).square().mean(dim=1)
    return (squares.sqrt() / span.clamp_min(1e-12)).mean(dim=1)


def summarize(values: Any) -> dict[str, float]:
    """Mean and median over test points.

    The mean is the metric: the median is not affected by a few test points where the
    estimate is overconfident.
    """
    values = np.asarray(values, dtype=float)
    return {"mean": float(values.mean()), "median": float(np.median(values))}
