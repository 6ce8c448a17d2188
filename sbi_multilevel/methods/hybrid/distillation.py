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
from typing import Any

import torch
from torch import Tensor

from sbi_multilevel.estimators.mixture import MixtureEstimator
from sbi_multilevel.methods.hybrid.members import MemberTrainer
from sbi_multilevel.methods.hybrid.pool import LevelStep
from sbi_multilevel.methods.hybrid.summary import Distillation
from sbi_multilevel.utils.seeds import seeded

_MAX_LOSS = 0.02  # nats a simulation
_NUM_DRAWS = 8  # from the mixture at each x
_CHECKED_SHARE = 0.1
_MIN_CONDITIONS = 20


def distill(
    members: MemberTrainer, mixture: MixtureEstimator, step: LevelStep
) -> tuple[Any, Distillation]:
    """One network in place of those of a mixture, if it loses little.

    Args:
        members: Trains networks.
        mixture: The mixture.
        step: The step to the highest level, from which the pool follows.

    Returns:
        The network, or the mixture, and how well they agree.
    """
    owner = members.trainer
    pool = step.map_all(members.high).followed_by(members.high)
    theta, x = members.columns(pool)
    generator = torch.Generator().manual_seed(members.run.seed)
    order = torch.randperm(len(pool), generator=generator)
    given = (x if mixture.target == "theta" else theta)[order].to(owner._device)
    # the prior stays beside the network where it can
    parts = mixture if owner._needs_one_network else mixture.without_prior()
    with seeded(members.run.seed):
        network, loss, error = _student(members, parts, given[: owner._max_distilled])
    wanted = members.config.distill
    is_used = loss < _MAX_LOSS if wanted == "auto" else math.isfinite(loss)
    estimator: Any = mixture
    if is_used or owner._needs_one_network:
        estimator = owner._in_place_of(mixture, network).to(given.device).eval()
    return estimator, Distillation(loss, error, estimator is not mixture)


def _student(
    members: MemberTrainer, mixture: MixtureEstimator, conditions: Tensor
) -> tuple[Any, float, float]:
    """A network trained on draws at these conditions, its mean loss, and the error.

    Both are infinite if there are too few conditions.
    """
    owner, densities = members.trainer, mixture.members
    first = owner._network_of(densities[int(mixture.member_weights.argmax())])
    num_checked = min(int(_CHECKED_SHARE * len(conditions)), owner._max_checked)
    if len(conditions) - num_checked < _MIN_CONDITIONS or num_checked < 2:
        return first, math.inf, math.inf
    repeats = _NUM_DRAWS, *[1] * (conditions.ndim - 1)
    used = conditions[num_checked:].repeat(repeats)
    student = members.student(first, _draw(mixture, used), used)
    checked = conditions[:num_checked].repeat(repeats)
    drawn = _draw(mixture, checked)
    with torch.no_grad():
        gaps = _log_prob(mixture, drawn, checked)
        gaps = gaps + owner._as_density(student).loss(drawn, checked)
    gaps = gaps.reshape(_NUM_DRAWS, num_checked).mean(dim=0)
    error = gaps.std() / math.sqrt(num_checked)
    return student, float(gaps.mean()), float(error)


@torch.no_grad()
def _draw(mixture: MixtureEstimator, conditions: Tensor) -> Tensor:
    """A draw at each condition, which has transformed tails already."""
    chosen = torch.multinomial(mixture.weights, len(conditions), replacement=True)
    drawn = conditions.new_empty(len(conditions), *mixture.input_shape)
    for index in chosen.unique().tolist():
        places = chosen == index
        if index < len(mixture.members):
            density, one = mixture.members[index], torch.Size((1,))
            drawn[places] = density.sample(one, conditions[places])[0]
        else:
            assert mixture.prior is not None
            drawn[places] = mixture.prior.sample(torch.Size((int(places.sum()),)))
    return drawn


def _log_prob(mixture: MixtureEstimator, drawn: Tensor, conditions: Tensor) -> Tensor:
    """Log density of draws, shape `(n,)`."""
    values = [-each.loss(drawn, conditions) for each in mixture.members]
    if mixture.prior is not None:
        values.append(mixture.prior_log_prob(drawn))  # draws may be outside
    log_weights = mixture.weights.log()[:, None]
    return torch.logsumexp(torch.stack(values) + log_weights, dim=0)
