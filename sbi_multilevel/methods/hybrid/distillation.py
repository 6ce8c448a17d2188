r"""One network in place of the mixture.

With :math:`q = \sum_k w_k q_k` the mixture of all networks, without the prior, one more
network of the user's own kind is trained on draws from it,

.. math::

    \phi^* = \arg\min_\phi - \frac1n \sum_i \log q_\phi(\tilde\theta_i \mid x_i),
    \qquad \tilde\theta_i \sim q(\cdot \mid x_i),

with the mapped simulations and the high-fidelity simulations as :math:`x_i` (for
likelihoods with theta and x exchanged). The minimum is that of the mean
Kullback-Leibler divergence from the mixture, so no further simulations are needed, and
draws are free. The loss at :math:`x_j` that were left out,

.. math::

    \Delta = \frac1m \sum_j \log \frac{q(\tilde\theta_j \mid x_j)}
        {q_{\phi^*}(\tilde\theta_j \mid x_j)},

the mean over eight draws at each, is an unbiased estimate of this divergence. The
network takes the place of the mixture if :math:`\Delta < 0.02` nats; posteriors then
cost as much as those of one network. The prior remains a component, with its weight.

Reference: Hinton, Vinyals, Dean (2015), *Distilling the knowledge in a neural network*,
arXiv:1503.02531, for classifiers; here for densities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor

from sbi_multilevel.methods.hybrid.members import MemberTrainer

MAX_LOSS = 0.02  # nats a simulation
_NUM_DRAWS = 8  # from the mixture at each x
_CHECKED_SHARE, _MAX_CHECKED = 0.1, 2_000
_MIN_CONDITIONS = 20


def distill(
    members: MemberTrainer,
    networks: Sequence[ConditionalDensityEstimator],
    weights: Tensor,
    conditions: Tensor,
) -> tuple[ConditionalDensityEstimator, float, float]:
    """Train one network on draws from a mixture.

    Args:
        members: Trains networks.
        networks: The networks of the mixture.
        weights: Weight of each, shape `(k,)`.
        conditions: What the densities are conditioned on, shape `(n, *shape)`, in
            random order.

    Returns:
        The network, its mean loss in log density relative to the mixture, in nats, and
        the standard error of that; infinite if there are too few conditions.
    """
    first = networks[int(weights.argmax())]
    num_checked = min(int(_CHECKED_SHARE * len(conditions)), _MAX_CHECKED)
    if len(conditions) - num_checked < _MIN_CONDITIONS or num_checked < 2:
        return first, math.inf, math.inf
    checked, used = conditions.split([num_checked, len(conditions) - num_checked])
    count = len(checked)
    used, checked = (
        each.repeat(_NUM_DRAWS, *[1] * (each.ndim - 1)) for each in (used, checked)
    )
    student = members.student(first, _draw(networks, weights, used), used)
    drawn = _draw(networks, weights, checked)
    with torch.no_grad():
        log_densities = torch.stack([-each.loss(drawn, checked) for each in networks])
        target = torch.logsumexp(log_densities + weights.log()[:, None], dim=0)
        gaps = (target + student.loss(drawn, checked)).reshape(_NUM_DRAWS, count)
    gaps = gaps.mean(dim=0)
    error = gaps.std() / math.sqrt(count)
    return student, float(gaps.mean()), float(error)


def _draw(
    networks: Sequence[ConditionalDensityEstimator], weights: Tensor, conditions: Tensor
) -> Tensor:
    """A draw from the mixture at each condition."""
    chosen = torch.multinomial(weights, len(conditions), replacement=True)
    drawn = conditions.new_empty(len(conditions), *networks[0].input_shape)
    one = torch.Size((1,))
    for index, network in enumerate(networks):
        places = chosen == index
        if places.any():
            with torch.no_grad():
                drawn[places] = network.sample(one, conditions[places])[0]
    return drawn
