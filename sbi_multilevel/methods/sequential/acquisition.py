r"""Active learning: simulate where the members of an ensemble disagree.

Of the n simulations of a round, :math:`n - k` are drawn from the truncated prior and k
are the points of a pool of M prior draws with the largest score. By default the score
is the disagreement about the observation (Krouglova et al. 2026, equation 2 and
Algorithm 4, MF-TSNPE-AF),

.. math:: a(\theta) = \mathrm{Var}_e[q_e(\theta \mid x_o)] .

Before the first round all members may be the same pre-trained network. They agree
everywhere then, and the active points are the first of the pool: draws from the prior.

*Gain.* `Acquisition(on="gain")` scores by the expected gain in held-out log score.
Suppose that one of the E members is the posterior, each with probability
:math:`1 / E`. Of all densities their mean :math:`\bar q` has the largest expected log
score at :math:`x_o`, and to know the right member would raise it by

.. math::

    \mathbb{E}_e\, \mathrm{KL}(q_e \,\|\, \bar q) = \int g(\theta)\, d\theta, \qquad
    g(\theta) = \frac{1}{E} \sum_e q_e(\theta) \log \frac{q_e(\theta)}{\bar q(\theta)}
    \ge 0,

the Jensen-Shannon divergence of the members; g is not negative by the log-sum
inequality, and 0 where members agree. To second order in :math:`q_e - \bar q`

.. math:: g(\theta) \approx \frac{\mathrm{Var}_e[q_e(\theta)]}{2\, \bar q(\theta)} .

If the variance falls as :math:`1 / m` with the number m of simulations near
:math:`\theta`, one more removes the share :math:`1 / m` of g there. Of draws from the
prior there are :math:`m \propto p(\theta)`, so that the gain is proportional to

.. math::

    a(\theta) = \frac{g(\theta)}{p(\theta)}
    = \mathbb{E}_e\!\left[r_e \log \frac{r_e}{\bar r}\right], \qquad
    r_e(\theta) = \frac{q_e(\theta)}{p(\theta)} .

As :math:`\mathrm{Var}_e[\log q_e] \approx \mathrm{Var}_e[q_e] / \bar q^2`, the gain
under a uniform prior lies between the variances of the density and of its logarithm.
It does not see errors that all members share. The members of a likelihood have
:math:`p(\theta)\, q_e(x_o \mid \theta)` in place of :math:`q_e`, and count by their
evidence.

*Cost.* With a cost :math:`c(\theta)` of a simulation, `Acquisition(cost=...)`, the
score is :math:`a(\theta) / c(\theta)`. Let :math:`\lambda` be the lowest ratio of the
chosen points. To replace some of them by others of the same cost C removes at least
:math:`\lambda C` from the sum of a and adds at most :math:`\lambda C`: no points of the
pool that cost the same, or less, have a larger sum. This holds for any a, so also for a
variance, whose sum is the variance that the points cover.

*Weights.* Active points are no draws from the truncated prior
:math:`p_R = p\, 1[\theta \in R] / Z`. Approximately, they are draws from the prior
restricted to :math:`A = \{s(\theta) \ge v\}`, of prior mass :math:`k / M`, with s the
score and v the lowest among them (of points with the score v, the share that was
acquired counts). With :math:`\alpha = k / n` the simulations of a round have the
density

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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import cloudpickle
import torch
from torch import Tensor

from sbi_multilevel.methods.sequential.state import Proposals
from sbi_multilevel.methods.sequential.truncation import QuietPosterior
from sbi_multilevel.simulation.arguments import Cost, costs_at
from sbi_multilevel.utils.argument_types import check_field_types

Score = Literal["density", "log_density", "gain"]


@dataclass(frozen=True)
class Acquisition:
    """How active points are chosen.

    See `sbi_multilevel.methods.sequential.acquisition`.

    Args:
        share: Share of the simulations of a round that are active points.
        pool_size: Prior draws that they are chosen from; 250 in the code of the paper
            for up to 1 000 simulations.
        on: What the score is: the variance of the `"density"` (the paper) or of the
            `"log_density"` (its code), which prefers points in the tails, or the
            expected `"gain"` in held-out log score.
        correct: Whether simulations have importance weights, see the module.
        fixed_pool: Whether the pool is drawn once for all rounds (the paper), so that a
            point can be acquired in several rounds, with other noise, or in each round
            (its code).
        first_round: Whether the first round has active points (the paper). In its code
            the first round is drawn from the prior, so that 16 % of the simulations of
            five rounds are active points.
        cost: Function from theta, shape `(n, d_theta)`, to the positive cost of a
            simulation, or of a pair, shape `(n,)`, in any unit, by which scores are
            divided; e.g. as returned by `sbi_multilevel.allocation.fit_cost`. Equal
            costs by default. A checkpoint does not hold it: pass the same to resume.

    Raises:
        ValueError: If a setting is out of range; on use, if costs are not positive and
            finite, or not one for each theta.

    Example:
    --------

    ::

        >>> Acquisition(share=0.2, pool_size=250).num_active(50)
        10

    The expected gain for the cost of a simulation:

    ::

        >>> acquisition = Acquisition(on="gain", cost=lambda theta: theta[:, 0].exp())
    """

    share: float = 0.2
    pool_size: int = 250
    on: Score = "density"
    correct: bool = False
    fixed_pool: bool = True
    first_round: bool = True
    cost: Cost | None = field(default=None, repr=False)

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

    def scores(self, theta: Tensor, log_probs: Tensor, prior: Any) -> Tensor:
        """Scores of points, divided by their cost, up to a common factor.

        Args:
            theta: The points, shape `(n, d_theta)`.
            log_probs: Log density of each member at each point, shape `(E, n)`.
            prior: The prior.

        Raises:
            ValueError: If costs are not valid, see the class.
        """
        if self.on == "gain":
            log_probs = log_probs - prior.log_prob(theta)
        # NaN of one member is no density; the other members have theirs
        log_probs = log_probs.masked_fill(log_probs.isnan(), -torch.inf)
        scores = disagreement(log_probs, self.on)
        return scores if self.cost is None else scores / costs_at(self.cost, theta)

    def __getstate__(self) -> dict[str, Any]:
        """The cost goes by cloudpickle, as it may be a local function."""
        return {**vars(self), "cost": cloudpickle.dumps(self.cost)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, cost=cloudpickle.loads(state["cost"]))


def disagreement(log_probs: Tensor, on: Score) -> Tensor:
    """Disagreement of members, up to a common factor.

    Args:
        log_probs: Log density of each member at each point, shape `(E, n)`; relative to
            the prior for the gain.
        on: What the score is, see `Acquisition`.

    Returns:
        Scores, shape `(n,)`; 0 where the density of all members is 0.
    """
    somewhere = log_probs.isfinite().any(dim=0)
    if not somewhere.any():
        return torch.zeros(log_probs.shape[1])
    if on == "gain":
        scores = _gain(log_probs.double(), somewhere)
    else:
        if on == "density":  # scaling keeps the order
            values = (log_probs - log_probs[:, somewhere].max()).exp()
        else:
            values = log_probs.clamp_min(-1e6)
        scores = (values - values[0]).var(dim=0)  # exactly 0 where members agree
    return torch.where(somewhere, scores, torch.zeros_like(scores))


def _gain(log_ratios: Tensor, somewhere: Tensor) -> Tensor:
    """Mean of r log(r / mean r) over members; exactly 0 where they agree."""
    highest = log_ratios.amax(dim=0)
    ratios = (log_ratios - highest).exp()
    gains = torch.xlogy(ratios, ratios / ratios.mean(dim=0)).mean(dim=0).clamp_min(0)
    return (highest - highest[somewhere].max()).exp() * gains


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
        scores: Score of each one, shape `(n,)`.
        pool_scores: Score of each point of the pool, shape `(M,)`.
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
    passive: Proposals,
    pool: Tensor,
    scores: Sequence[Tensor],
    num_active: int,
    correct: bool,
    inside: Callable[[Tensor], Tensor] = lambda theta: torch.ones(len(theta)),
    acceptance: Callable[[], float] = lambda: 1.0,
) -> Proposals:
    """Draws from the truncated prior, then active points.

    Args:
        passive: Draws from the truncated prior.
        pool: What active points are chosen from, shape `(M, d_theta)`.
        scores: Scores of the draws, which only weights need, and of the pool, known up
            to one factor.
        num_active: Number of active points.
        correct: Whether simulations have importance weights.
        inside: Whether parameters lie in the region; all of them by default.
        acceptance: Share Z of the pool that does.
    """
    of_passive, of_pool = scores
    chosen = of_pool.argsort(descending=True, stable=True)[:num_active]
    theta = torch.cat([passive.theta, pool[chosen]])
    weights = torch.ones(len(theta))
    if correct:
        each = torch.cat([of_passive, of_pool[chosen]])
        weights = importance_weights(
            inside(theta), each, of_pool, acceptance(), num_active
        )
    is_active = torch.arange(len(theta)) >= len(passive.theta)
    return Proposals(theta, weights, passive.acceptance, is_active)


def scores_at(posterior: Any, theta: Tensor, acquisition: Acquisition) -> Tensor:
    """Scores by the members of an ensemble posterior at its default x."""
    members = posterior.posteriors
    log_probs = torch.stack([QuietPosterior(one).log_prob(theta) for one in members])
    return acquisition.scores(theta, log_probs, members[0].prior)


def active_share(
    theta: Tensor, proposals: Proposals, posterior: Any, acquisition: Acquisition
) -> tuple[float, Tensor]:
    """Share of active points among proposals, and which draws could be such.

    Args:
        theta: Draws from the prior, shape `(n, d_theta)`.
        proposals: The proposals, with active points.
        posterior: Ensemble posterior that these were chosen by.
        acquisition: How they were chosen.
    """
    active = proposals.theta[proposals.is_active]
    scores = scores_at(posterior, torch.cat([theta, active]), acquisition)
    lowest = scores[len(theta) :].min()
    return len(active) / len(proposals.theta), scores[: len(theta)] >= lowest
