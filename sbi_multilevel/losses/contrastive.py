r"""Losses of neural ratio estimation for each simulation; pure functions.

A classifier :math:`h` of pairs :math:`(\theta, x)` is trained to tell
:math:`\theta_i`, which :math:`x_i` was simulated at, from *contrastive* parameters
:math:`\theta'_1, \dots, \theta'_C`, independent draws from the prior. The logits of a
simulation are

.. math::  h_{i0} = h(\theta_i, x_i), \qquad h_{ij} = h(\theta'_j, x_i).

sbi averages the loss over a batch. A multilevel loss needs that of each simulation,

========  ===========================================================================
NRE-A     :math:`\tfrac12\left[ -\log \sigma(h_{i0}) - \log \sigma(-h_{i1}) \right]`
NRE-B     :math:`-h_{i0} + \log \sum_{j=0}^{C} e^{h_{ij}}`
NRE-C     as NRE-B for K classes, with a further class of independent pairs, see
          `independent_loss`
BNRE      as NRE-A, with a penalty on the balance :math:`b_i = \sigma(h_{i0}) +
          \sigma(h_{i1}) - 1`, see `balance_penalties`
========  ===========================================================================

whose means over simulations are the losses of sbi.

References: Hermans et al. (2020), arXiv:1903.04057 (NRE-A); Durkan et al. (2020),
arXiv:2002.03712 (NRE-B); Miller et al. (2022), arXiv:2210.06170 (NRE-C); Delaunoy et
al. (2022), arXiv:2208.13624 (BNRE).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import softplus


def binary_loss(logits: Tensor) -> Tensor:
    """Loss of NRE-A.

    Args:
        logits: Logits at the own and at one contrastive theta, shape `(n, 2)`.

    Returns:
        Loss of each simulation, shape `(n,)`.
    """
    return (softplus(-logits[:, 0]) + softplus(logits[:, 1])) / 2


def softmax_loss(logits: Tensor) -> Tensor:
    """Loss of NRE-B.

    Args:
        logits: Logits at the own theta, then at contrastive ones, shape `(n, 1 + C)`.

    Returns:
        Loss of each simulation, shape `(n,)`.
    """
    return torch.logsumexp(logits, dim=1) - logits[:, 0]


def independent_loss(logits: Tensor, gamma: float) -> Tensor:
    r"""Loss of NRE-C.

    .. math::

        -\frac{1}{1 + \gamma} \log \frac{K}{K + \gamma \sum_{k=1}^{K} e^{h_{ik}}}
        - \frac{\gamma}{1 + \gamma} \log \frac{\gamma e^{h_{i0}}}
        {K + \gamma \big( e^{h_{i0}} + \sum_{k=K+1}^{2K-1} e^{h_{ik}} \big)}

    Args:
        logits: Logits at the own theta, then at :math:`2 K - 1` contrastive ones, shape
            `(n, 2 K)`.
        gamma: Odds :math:`\gamma` of a dependent pair.

    Returns:
        Loss of each simulation, shape `(n,)`.
    """
    count = logits.shape[1] // 2
    own, apart, beside = logits.split([1, count, count - 1], dim=1)
    log_gamma, log_count = math.log(gamma), math.log(count)
    independent = logits.new_full((len(logits), 1), log_count)

    def log_total(values: Tensor) -> Tensor:
        return torch.logsumexp(torch.cat([log_gamma + values, independent], 1), dim=1)

    of_none = log_count - log_total(apart)
    of_own = log_gamma + own[:, 0] - log_total(torch.cat([own, beside], dim=1))
    return -(of_none + gamma * of_own) / (1 + gamma)


def balance_penalties(
    logits: Mapping[int, Tensor], weights: Mapping[int, float], strength: float
) -> dict[int, Tensor]:
    r"""The penalty of BNRE as a loss of each simulation.

    The penalty is :math:`\lambda B^2`, with B the expected balance, estimated by the
    signed sum of the means of :math:`b_i` over the terms. A square is no sum over
    simulations, but

    .. math::  \lambda B \, (2\, b_i - \bar b_i),

    with B and :math:`\bar b_i = b_i` held constant, has the same signed sum of means,
    and the same gradient.

    Args:
        logits: Logits of each term by its index, as for `binary_loss`.
        weights: Weight of each term by its index.
        strength: Factor :math:`\lambda` of the penalty.

    Returns:
        Penalty of each simulation of each term.
    """
    balances = {m: each.sigmoid().sum(dim=1) - 1 for m, each in logits.items()}
    means = [weights[m] * each.detach().mean() for m, each in balances.items()]
    expected = torch.stack(means).sum()
    return {
        m: strength * expected * (2 * each - each.detach())
        for m, each in balances.items()
    }


def log_posterior_ratio(own: Tensor, others: Tensor) -> Tensor:
    r"""Log ratio of posterior to prior, normalized over parameters from the prior.

    .. math:: h_{i0} - \log \frac1{M + 1} \sum_{j=0}^{M} e^{h_{ij}}

    Ratios of NRE-B have an unknown factor that depends on x. The sum contains the own
    theta, so that the value is at most :math:`\log (M + 1)`.

    Args:
        own: Logits at the own theta, shape `(n,)`.
        others: Logits at M draws from the prior, shape `(n, M)`.
    """
    every = torch.cat([own[:, None], others], dim=1)
    return own - (torch.logsumexp(every, dim=1) - math.log(every.shape[1]))
