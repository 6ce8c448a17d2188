r"""Active learning: simulate where the members of an ensemble disagree.

Of the n simulations of a round, :math:`n - k` are drawn from the truncated prior and k
are the points of a pool of M prior draws with the largest disagreement about the
observation (Krouglova et al. 2026, equation 2 and Algorithm 4, MF-TSNPE-AF),

.. math:: a(\theta) = \mathrm{Var}_e[q_e(\theta \mid x_o)] .

Before the first round all members may be the same pre-trained network. They agree
everywhere then, and the active points are the first of the pool: draws from the prior.

Active points are no draws from the truncated prior
:math:`p_R = p\, 1[\theta \in R] / Z`. Approximately, they are draws from the prior
restricted to :math:`A = \{a(\theta) \ge v\}`, of prior mass :math:`k / M`, with v the
lowest score among them (of points with the score v, the share that was acquired
counts). With :math:`\alpha = k / n` the simulations of a round have the density

.. math::

    \tilde p(\theta) = (1 - \alpha)\, p_R(\theta)
    + \alpha\, \frac{M}{k}\, p(\theta)\, 1[\theta \in A],

so that NPE learns the posterior under a prior that is too high on A. The paper accepts
this (Appendix M.2), as is the default here: with few active points the error is small.
`Acquisition(correct=True)` gives each simulation the weight

.. math::

    w(\theta) = \frac{p_R(\theta)}{\tilde p(\theta)}
    = \frac{1[\theta \in R]}{1 - \alpha + \alpha Z \frac{M}{k}\, 1[\theta \in A]}
    \le \frac{1}{1 - \alpha},

which makes the loss that of the truncated prior.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sbi_multilevel.methods.sequential.proposals import Proposals
from sbi_multilevel.methods.sequential.truncation import QuietPosterior
from sbi_multilevel.utils.argument_types import check_field_types

Score = Literal["density", "log_density"]


@dataclass(frozen=True)
class Acquisition:
    """How active points are chosen.

    See `sbi_multilevel.methods.sequential.acquisition`.

    Args:
        share: Share of the simulations of a round that are active points.
        pool_size: Prior draws that they are chosen from; 250 in the code of the paper
            for up to 1 000 simulations.
        on: What the variance is taken of: `"density"` (the paper) or `"log_density"`
            (its code), which prefers points in the tails.
        correct: Whether simulations have importance weights, see the module.
        fixed_pool: Whether the pool is drawn once for all rounds (the paper), so that a
            point can be acquired in several rounds, with other noise, or in each round
            (its code).
        first_round: Whether the first round has active points (the paper). In its code
            the first round is drawn from the prior, so that 16 % of the simulations of
            five rounds are active points.

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
        """Number of active points in a round.

        Args:
            num_simulations: Simulations of the round.

        Raises:
            ValueError: If the pool holds fewer.
        """
        num = num_simulations - int((1 - self.share) * num_simulations)
        num = min(num, num_simulations - 1)  # at least one is drawn from the prior
        if num > self.pool_size:
            raise ValueError(
                f"pool_size={self.pool_size} is smaller than the {num} active points "
                f"of a round of {num_simulations} simulations. Raise it to several "
                "times that number."
            )
        return num


def disagreement(log_probs: Tensor, on: Score) -> Tensor:
    """Variance over members, up to a common factor.

    Args:
        log_probs: Log density of each member at each point, shape `(E, n)`.
        on: What the variance is taken of, see `Acquisition`.

    Returns:
        Scores, shape `(n,)`; 0 where the density of all members is 0.
    """
    somewhere = log_probs.isfinite().any(dim=0)
    if not somewhere.any():
        return torch.zeros(log_probs.shape[1])
    if on == "density":  # scaling keeps the order
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
    """Importance weights of the simulations of a round, see the module.

    Args:
        is_inside: Whether each one lies in the truncated region, shape `(n,)`.
        scores: Disagreement at each one, shape `(n,)`.
        pool_scores: Disagreement at each point of the pool, shape `(M,)`.
        acceptance: Share Z of prior draws inside the region.
        num_active: Number k of active points.

    Returns:
        Weights, shape `(n,)`; 0 outside the region.
    """
    alpha = num_active / len(scores)
    lowest = pool_scores.topk(num_active).values[-1]
    above, tied = (pool_scores > lowest).sum(), (pool_scores == lowest).sum()
    acquired = (scores > lowest) + (scores == lowest) * (num_active - above) / tied
    raised = alpha * acceptance * len(pool_scores) / num_active * acquired
    return is_inside / (1 - alpha + raised)


def propose_active(
    num: int,
    acquisition: Acquisition,
    draw: Callable[[int], Proposals],
    draw_pool: Callable[[], Tensor],
    score: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    inside: Callable[[Tensor], Tensor] = lambda theta: torch.ones(len(theta)),
    acceptance: Callable[[], float] = lambda: 1.0,
) -> Proposals:
    """Draws from the truncated prior, then active points.

    Args:
        num: Number of proposals.
        acquisition: How active points are chosen.
        draw: Draws from the truncated prior.
        draw_pool: Draws what they are chosen from, shape `(M, d_theta)`.
        score: Disagreement at such draws, which only weights need, and at the pool,
            known up to one factor.
        inside: Whether parameters lie in the region; all of them by default.
        acceptance: Share Z of the pool that does.
    """
    num_active = acquisition.num_active(num)
    passive = draw(num - num_active)
    if num_active == 0:
        return passive
    pool = draw_pool()
    of_passive, of_pool = score(passive.theta, pool)
    chosen = of_pool.argsort(descending=True, stable=True)[:num_active]
    theta, weights = torch.cat([passive.theta, pool[chosen]]), torch.ones(num)
    if acquisition.correct:
        scores = torch.cat([of_passive, of_pool[chosen]])
        weights = importance_weights(
            inside(theta), scores, of_pool, acceptance(), num_active
        )
    active = torch.arange(num) >= num - num_active
    return Proposals(theta, weights, passive.acceptance, active)


def disagreement_at(posterior: Any, theta: Tensor, on: Score) -> Tensor:
    """Variance over the members of an ensemble posterior at its default x."""
    log_probs = [QuietPosterior(one).log_prob(theta) for one in posterior.posteriors]
    return disagreement(torch.stack(log_probs), on)


def active_share(
    theta: Tensor, proposals: Proposals, posterior: Any, on: Score
) -> tuple[float, Tensor]:
    """Share of active points among proposals, and which draws could be such.

    Args:
        theta: Draws from the prior, shape `(n, d_theta)`.
        proposals: The proposals, with active points.
        posterior: Ensemble posterior that these were chosen by.
        on: What the variance is taken of.
    """
    active = proposals.theta[proposals.is_active]
    scores = disagreement_at(posterior, torch.cat([theta, active]), on)
    lowest = scores[len(theta) :].min()
    return len(active) / len(proposals.theta), scores[: len(theta)] >= lowest
