r"""A mixture that is made wider if held-out simulations show that it is too narrow.

Let q be the mixture, :math:`q_e` the member that was not trained on the high-fidelity
simulation i, and :math:`\tilde\theta_{ij} \sim q(\cdot \mid x_i)`. The rank

.. math::

    u_i = \frac1m \sum_{j=1}^{m}
    1\left[ q_e(\tilde\theta_{ij} \mid x_i) < q_e(\theta_i \mid x_i) \right],

in which equal densities count as one half, has the mean 1/2 if q is the posterior,
whatever the function :math:`q_e` (and correspondingly for likelihoods, with theta and x
exchanged). If q is too narrow, or biased, the density of :math:`\theta_i` is more often
below that of the draws, and the mean is less. For n simulations of equal weight its
standard error is at most :math:`1 / \sqrt{12 n}`. All networks get the smallest of
`SCALES` of their base distributions (`sbi_multilevel.estimators.widening`) for which
the mean rank is at least 1/2 minus one standard error, or the largest scale if there is
none. A calibrated mixture is thus changed in one of six cases, and then little.

The other members of the mixture were trained on simulation i. Their draws are therefore
closer to :math:`\theta_i` than they should be, which raises the ranks: the scale is
rather too small than too large, and members that memorized the simulations are not
detected. With a scale for each member alone, that of its own held-out log score, the
mixture would be too wide, as it is wider than its members.

Ranks of densities are those of Talts, Betancourt, Simpson, Vehtari, Gelman (2018),
*Validating Bayesian inference algorithms with simulation-based calibration*,
arXiv:1804.06788; the use of the held-out member is ours.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor

from sbi_multilevel.estimators.widening import can_be_widened, widened
from sbi_multilevel.methods.hybrid.summary import Calibration
from sbi_multilevel.utils.seeds import seeded

if TYPE_CHECKING:
    from sbi_multilevel.methods.hybrid.members import MemberTrainer

SCALES = (1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0)
_NUM_DRAWS = 100  # from the mixture at each simulation
_NUM_AT_ONCE = 100  # simulations, whose draws are in memory


def calibrate(
    members: MemberTrainer, mixture: Any, held_out: Sequence[Any]
) -> tuple[Any, Calibration | None]:
    """Make the networks of a mixture wider if it is too narrow.

    Args:
        members: The simulations and their folds.
        mixture: The mixture.
        held_out: For each fold the network that was not trained on it.

    Returns:
        The mixture, and its calibration; `None` if it is not one of flows.
    """
    if not members.config.widen:
        return mixture, None
    if not all(map(can_be_widened, held_out)):
        warnings.warn(
            "widen=True has no effect, as the networks are no flows with a normal base "
            "distribution. Use e.g. density_estimator='nsf', or leave it out.",
            stacklevel=2,
        )
        return mixture, None
    networks, has_prior = mixture.members, mixture.prior is not None
    alone = [members.mixed([network], torch.ones(1)) for network in held_out]
    columns = (members.level.theta, members.level.x)
    columns = [each.to(members.trainer._device) for each in columns]
    inputs, conditions = columns if mixture.target == "theta" else columns[::-1]
    weights = torch.as_tensor(members.high.all_weights)
    weights = weights / weights.sum()
    error = float(weights.square().sum() / 12) ** 0.5
    mean_ranks = []
    for scale in SCALES:
        if scale != 1:
            wider = [widened(network, scale) for network in networks]
            mixture = members.mixed(wider, mixture.weights, has_prior)
        with seeded(members.run.seed):
            ranks = held_out_ranks(mixture, alone, members.folds, inputs, conditions)
        mean_ranks.append(float((weights * ranks).sum()))
        if mean_ranks[-1] >= 0.5 - error:
            break
    return mixture, Calibration(mean_ranks[0], error, SCALES[len(mean_ranks) - 1])


def held_out_ranks(
    mixture: ConditionalDensityEstimator,
    held_out: Sequence[ConditionalDensityEstimator],
    folds: Sequence[Any],
    inputs: Tensor,
    conditions: Tensor,
) -> Tensor:
    """Rank of each simulation among draws from a mixture, see the module.

    Args:
        mixture: The mixture.
        held_out: For each fold the density by which its simulations are ranked.
        folds: Indices of the simulations of each fold.
        inputs: What the densities are of, shape `(n, *input_shape)`.
        conditions: What they are conditioned on, shape `(n, *condition_shape)`.

    Returns:
        Ranks in [0, 1], in double precision, shape `(n,)`.
    """
    ranks = torch.empty(len(inputs), dtype=torch.float64)
    for density, fold in zip(held_out, folds):
        for part in np.array_split(fold, math.ceil(len(fold) / _NUM_AT_ONCE)):
            given = conditions[part]
            with torch.no_grad():
                drawn = mixture.sample(torch.Size((_NUM_DRAWS,)), given)
                own = density.log_prob(inputs[part].unsqueeze(0), given).cpu()
                others = density.log_prob(drawn, given).cpu()
            halves = (others < own).double() + (others <= own).double()
            ranks[part] = halves.mean(dim=0) / 2
    return ranks
