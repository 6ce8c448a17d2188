r"""Active learning: simulate where the members of an ensemble disagree.

Of the n simulations of a round, :math:`n - k` are drawn from the truncated prior and k
are the points of a pool of M prior draws with the largest disagreement about the
observation (Krouglova et al. 2026, equation 2 and Algorithm 4, MF-TSNPE-AF),

.. math:: a(\theta) = \mathrm{Var}_e[q_e(\theta \mid x_o)] .

Where the members agree everywhere, as they do before the first round if all start from
one pre-trained network, the active points are the first of the pool: draws from the
prior.

Acquired points are no draws from the truncated prior
:math:`p_R = p\, 1[\theta \in R] / Z`. They come, nearly, from the prior restricted to
:math:`A = \{a(\theta) \ge v\}`, which holds the share :math:`k / M` of it, v being the
lowest acquired score (of points that tie at v the share that was acquired counts). With
:math:`\alpha = k / n` the rows of a round have the density

.. math::

    \tilde p(\theta) = (1 - \alpha)\, p_R(\theta)
    + \alpha\, \frac{M}{k}\, p(\theta)\, 1[\theta \in A],

so that plain NPE on them learns a posterior under a prior that is too high on A: it
leans toward the points of largest disagreement. The paper does so (Appendix M.2), and
by default so do we; few points do little harm. `Acquisition(correct=True)` gives each
row the weight

.. math::

    w(\theta) = \frac{p_R(\theta)}{\tilde p(\theta)}
    = \frac{1[\theta \in R]}{1 - \alpha + \alpha Z \frac{M}{k}\, 1[\theta \in A]}
    \le \frac{1}{1 - \alpha},

which makes the loss that of the truncated prior again, and acquired points count for
less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sbi_multilevel.utils.argument_types import check_field_types

Score = Literal["density", "log_density"]


@dataclass(frozen=True)
class Acquisition:
    """How active points are chosen; see `sbi_multilevel.methods.sequential.acquisition`.

    Args:
        share: Share of the simulations of a round that are active points.
        pool_size: Prior draws that they are chosen from; 250 in the code of the paper
            for up to 1 000 simulations.
        on: Whether the variance is that of the densities (the paper) or of the log
            densities (its code), which looks for points in the tails.
        correct: Whether rows get importance weights, see above.
        fixed_pool: Whether the pool is drawn once for all rounds (the paper), so that a
            point can be acquired in several rounds, each time with other noise, or in
            each round (its code).
        first_round: Whether the first round has active points, too (the paper). In its
            code all of the first round is drawn from the prior, which leaves 16 % of
            five rounds for active points.

    Raises:
        ValueError: If a setting is out of range.

    Example:
    --------

    ::

        >>> Acquisition(share=0.2, pool_size=250).num_active(50)
        10
    """

    share: float = 0.2
    pool_size: int = 250
    on: Score = "density"
    correct: bool = False
    fixed_pool: bool = True
    first_round: bool = True

    def __post_init__(self) -> None:
        check_field_types(self)
        if not 0 < self.share < 1:
            raise ValueError(f"share must be in (0, 1), but is {self.share}.")
        if self.on not in get_args(Score):
            raise ValueError(
                f"on must be one of {get_args(Score)}, but is {self.on!r}."
            )
        if self.pool_size < 1:
            raise ValueError(f"pool_size must be >= 1, but is {self.pool_size}.")

    def num_active(self, num_simulations: int) -> int:
        """Active points among the simulations of a round.

        Args:
            num_simulations: Simulations of the round.

        Raises:
            ValueError: If they are more than the pool holds.
        """
        num = num_simulations - int((1 - self.share) * num_simulations)
        num = min(num, num_simulations - 1)  # at least one is drawn
        if num > self.pool_size:
            raise ValueError(
                f"pool_size={self.pool_size} is smaller than the {num} active points "
                f"of a round of {num_simulations} simulations. Raise it to several "
                "times that."
            )
        return num


def disagreement(log_probs: Tensor, on: Score) -> Tensor:
    """Variance over members, up to a common factor.

    Args:
        log_probs: Log density of each member at each point, shape `(E, n)`.
        on: What the variance is of.

    Returns:
        Scores, shape `(n,)`; 0 where no member has any density.
    """
    somewhere = log_probs.isfinite().any(dim=0)
    if not somewhere.any():
        return torch.zeros(log_probs.shape[1])
    if on == "density":  # scaled by the largest, which keeps the order
        values = (log_probs - log_probs[:, somewhere].max()).exp()
    else:
        values = log_probs.clamp_min(-1e6)
    scores = (values - values[0]).var(dim=0)  # exactly 0 where members agree
    return torch.where(somewhere, scores, torch.zeros_like(scores))


def importance_weights(
    is_inside: Tensor,
    scores: Tensor,
    pool_scores: Tensor,
    acceptance: float,
    num_active: int,
) -> Tensor:
    """Weights of the rows of a round, see the formula of this module.

    Args:
        is_inside: Whether each row lies in the truncated region, shape `(n,)`.
        scores: Disagreement at each row, shape `(n,)`.
        pool_scores: Disagreement at each point of the pool, shape `(M,)`.
        acceptance: Share Z of prior draws inside the region.
        num_active: Acquired points k.

    Returns:
        Weights, shape `(n,)`; 0 outside of the region.
    """
    alpha = num_active / len(scores)
    lowest = pool_scores.topk(num_active).values[-1]
    above, tied = (pool_scores > lowest).sum(), (pool_scores == lowest).sum()
    acquired = (scores > lowest) + (scores == lowest) * (num_active - above) / tied
    raised = alpha * acceptance * len(pool_scores) / num_active * acquired
    return is_inside / (1 - alpha + raised)
