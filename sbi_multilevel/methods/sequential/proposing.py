"""What is simulated in a round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sbi.utils import RestrictedPrior
from sbi.utils.sbiutils import within_support
from torch import Tensor

from sbi_multilevel.methods.sequential.acquisition import (
    Acquisition,
    Score,
    disagreement,
    importance_weights,
)
from sbi_multilevel.methods.sequential.rounds import Proposals
from sbi_multilevel.methods.sequential.truncation import QuietPosterior, Truncation


@dataclass(frozen=True, eq=False)
class Region:
    """The part of the prior that a round draws from.

    Args:
        prior: The prior.
        truncation: How the prior is truncated.
        truncated: The truncated prior; `None` in the first round, which draws from all
            of the prior.
    """

    prior: Any
    truncation: Truncation
    truncated: RestrictedPrior | None = None

    def inside(self, theta: Tensor) -> Tensor:
        """Which parameters lie in it, shape `(n,)`."""
        if self.truncated is None:
            return within_support(self.prior, theta)
        return self.truncated._accept_reject_fn(theta)

    def acceptance(self) -> float:
        """Share of prior draws that lie in it."""
        if self.truncated is None:
            return 1.0
        return self.truncation.acceptance(self.truncated)

    def draw(self, num: int) -> Proposals:
        """Draws from the prior inside of it."""
        if self.truncated is None:
            theta, rate = self.prior.sample((num,)), 1.0
        else:
            theta, rate = self.truncation.draw(self.truncated, num)
        return Proposals(theta, torch.ones(num), rate)


def propose_active(
    num: int,
    region: Region,
    posterior: Any,
    acquisition: Acquisition,
    pool: Tensor | None = None,
) -> Proposals:
    """Draws from a region, then active points.

    Args:
        num: How many in all.
        region: Where the first ones are drawn.
        posterior: Ensemble posterior with the observation as its default x.
        acquisition: How active points are chosen.
        pool: What they are chosen from, shape `(M, d_theta)`; drawn here if `None`.
    """
    num_active = acquisition.num_active(num)
    if num_active == 0:
        return region.draw(num)
    passive = region.draw(num - num_active)
    if pool is None:
        pool = region.prior.sample((acquisition.pool_size,))
    # in one go, as scores have a factor of their own in each
    both = torch.cat([passive.theta, pool])
    scores = disagreement_at(posterior, both, acquisition.on)
    pool_scores = scores[len(passive.theta) :]
    chosen = pool_scores.argsort(descending=True, stable=True)[:num_active]
    rows = torch.cat([torch.arange(num - num_active), num - num_active + chosen])
    theta, weights = both[rows], torch.ones(num)
    if acquisition.correct:
        weights = importance_weights(
            region.inside(theta),
            scores[rows],
            pool_scores,
            region.acceptance(),
            num_active,
        )
    active = torch.arange(num) >= num - num_active
    return Proposals(theta, weights, passive.acceptance, active)


def disagreement_at(posterior: Any, theta: Tensor, on: Score) -> Tensor:
    """Variance over the members of an ensemble posterior at its default x."""
    log_probs = [QuietPosterior(one).log_prob(theta) for one in posterior.posteriors]
    return disagreement(torch.stack(log_probs), on)
