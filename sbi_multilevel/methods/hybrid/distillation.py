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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor

from sbi_multilevel.methods.hybrid.members import MemberTrainer

if TYPE_CHECKING:
    from sbi_multilevel.estimators.mixture import MixtureEstimator
    from sbi_multilevel.methods.hybrid.trainer import HybridTrainer

MAX_LOSS = 0.02  # nats a simulation
_NUM_DRAWS = 8  # from the mixture at each x
_CHECKED_SHARE = 0.1
_MIN_CONDITIONS = 20


def distill(
    members: MemberTrainer, mixture: MixtureEstimator, conditions: Tensor
) -> tuple[Any, float, float]:
    """Train one network on draws from a mixture.

    Args:
        members: Trains networks.
        mixture: The mixture.
        conditions: What the densities are conditioned on, with transformed tails, shape
            `(n, *shape)`, in random order.

    Returns:
        The network, its mean loss in log density relative to the mixture, in nats, and
        the standard error of that; infinite if there are too few conditions.
    """
    owner, parts = members.trainer, _Parts.of(mixture, members.trainer)
    conditions = conditions[: owner._max_distilled]
    best = int(parts.weights[: len(parts.densities)].argmax())
    first = owner._network_of(parts.densities[best])
    num_checked = min(int(_CHECKED_SHARE * len(conditions)), owner._max_checked)
    if len(conditions) - num_checked < _MIN_CONDITIONS or num_checked < 2:
        return first, math.inf, math.inf
    checked, used = conditions.split([num_checked, len(conditions) - num_checked])
    count = len(checked)
    used, checked = (
        each.repeat(_NUM_DRAWS, *[1] * (each.ndim - 1)) for each in (used, checked)
    )
    student = members.student(first, parts.draw(used), used)
    drawn = parts.draw(checked)
    with torch.no_grad():
        loss = owner._as_density(student).loss(drawn, checked)
        gaps = (parts.log_prob(drawn, checked) + loss).reshape(_NUM_DRAWS, count)
    gaps = gaps.mean(dim=0)
    error = gaps.std() / math.sqrt(count)
    return student, float(gaps.mean()), float(error)


@dataclass(frozen=True, eq=False)
class _Parts:
    """The components of a mixture that one network takes the place of.

    Args:
        densities: The densities of the networks.
        weights: Weight of each, shape `(k,)`; with a prior, its weight last.
        prior: The prior, if the network takes its place, too.
    """

    densities: Sequence[ConditionalDensityEstimator]
    weights: Tensor
    prior: Any | None = None

    @classmethod
    def of(cls, mixture: MixtureEstimator, trainer: HybridTrainer) -> _Parts:
        """The networks; the prior only where it cannot stay beside one network."""
        if trainer._needs_one_network:
            return cls(mixture.members, mixture.weights, mixture.prior)
        weights = mixture.member_weights
        return cls(mixture.members, weights / weights.sum())

    def draw(self, conditions: Tensor) -> Tensor:
        """A draw at each condition."""
        chosen = torch.multinomial(self.weights, len(conditions), replacement=True)
        drawn = conditions.new_empty(len(conditions), *self.densities[0].input_shape)
        one = torch.Size((1,))
        for index in chosen.unique().tolist():
            places = chosen == index
            if index == len(self.densities):
                assert self.prior is not None
                drawn[places] = self.prior.sample(torch.Size((int(places.sum()),)))
                continue
            with torch.no_grad():
                density = self.densities[index]
                drawn[places] = density.sample(one, conditions[places])[0]
        return drawn

    def log_prob(self, drawn: Tensor, conditions: Tensor) -> Tensor:
        """Log density of draws, shape `(n,)`."""
        values = [-each.loss(drawn, conditions) for each in self.densities]
        if self.prior is not None:
            values.append(self.prior.log_prob(drawn))
        log_weights = self.weights.log()[:, None]
        return torch.logsumexp(torch.stack(values) + log_weights, dim=0)
