"""The parameters of a round: draws from a region of the prior, and active points."""

from __future__ import annotations

from collections.abc import Callable
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
from sbi_multilevel.methods.sequential.proposals import Proposals
from sbi_multilevel.methods.sequential.settings import RoundSettings, Stream
from sbi_multilevel.methods.sequential.truncation import QuietPosterior, Truncation
from sbi_multilevel.utils.seeds import seeded


@dataclass(frozen=True, eq=False)
class Region:
    """The part of the prior that a round draws from.

    Args:
        prior: The prior.
        truncation: How the prior is truncated.
        truncated: The truncated prior; `None` in the first round, which draws from the
            whole prior.
    """

    prior: Any
    truncation: Truncation
    truncated: RestrictedPrior | None = None

    def inside(self, theta: Tensor) -> Tensor:
        """Which parameters lie in the region, shape `(n,)`."""
        if self.truncated is None:
            return within_support(self.prior, theta)
        return self.truncated._accept_reject_fn(theta)

    def acceptance(self) -> float:
        """Share of prior draws that lie in the region."""
        if self.truncated is None:
            return 1.0
        return self.truncation.acceptance(self.truncated)

    def draw(self, num: int) -> Proposals:
        """Draws from the prior inside the region."""
        if self.truncated is None:
            theta, rate = self.prior.sample((num,)), 1.0
        else:
            theta, rate = self.truncation.draw(self.truncated, num)
        return Proposals(theta, torch.ones(num), rate)


@dataclass(frozen=True, eq=False)
class Proposer:
    """Draws the parameters of a round, reproducibly.

    Args:
        settings: The settings of the run.
        build_posterior: Returns the current posterior at the observation.
    """

    settings: RoundSettings
    build_posterior: Callable[[], Any]

    def region(self, round_: int) -> Region:
        """The region of a round, the same at each call."""
        with seeded(self.settings.seed_of(Stream.REGION, round_)):
            return self._region(self.build_posterior() if round_ > 0 else None)

    def draw(
        self, num: int, round_: int, index: int, acquisition: Acquisition | None
    ) -> Proposals:
        """Proposals of a round.

        Args:
            num: How many.
            round_: The round, from 0.
            index: How often proposals were drawn in this round before.
            acquisition: How active points are chosen; `None` for none.
        """
        with seeded(self.settings.seed_of(Stream.PROPOSALS, round_, index)):
            if acquisition is None and round_ == 0:
                return self._region(None).draw(num)
            posterior = self.build_posterior()
            region = self._region(posterior if round_ > 0 else None)
            if acquisition is None:
                return region.draw(num)
            pool = self._pool(index, acquisition) if acquisition.fixed_pool else None
            return propose_active(num, region, posterior, acquisition, pool)

    def add_density(
        self,
        weights: Tensor,
        theta: Tensor,
        num: int,
        proposals: Proposals | None,
        region: Region,
    ) -> Tensor:
        """Add weights that give prior draws the density of the proposals of a round.

        Args:
            weights: Weights of earlier rounds, shape `(n,)`.
            theta: Draws from the prior, shape `(n, d_theta)`.
            num: Sum of the weights to add, if the region holds any of the draws.
            proposals: The proposals; `None` if simulations were made without them.
            region: The region of the round.

        Returns:
            Weights, shape `(n,)`.
        """
        share, acquired = 0.0, torch.zeros(len(theta))
        acquisition = self.settings.acquisition
        if proposals and acquisition is not None and not acquisition.correct:
            active = proposals.theta[proposals.is_active]
            share = len(active) / len(proposals.theta)
            if share > 0:
                both = torch.cat([theta, active])
                scores = disagreement_at(self.build_posterior(), both, acquisition.on)
                acquired = scores[: len(theta)] >= scores[len(theta) :].min()
        inside = _equal_shares(region.inside(theta))
        return (
            weights + (1 - share) * num * inside + share * num * _equal_shares(acquired)
        )

    def _region(self, posterior: Any) -> Region:
        prior, truncation = self.settings.prior, self.settings.truncation
        truncated = None if posterior is None else truncation.truncate(posterior, prior)
        return Region(prior, truncation, truncated)

    def _pool(self, index: int, acquisition: Acquisition) -> Tensor:
        """The pool of active points, the same in all rounds.

        Later draws of one round have other pools, so that no point is acquired twice.
        """
        with seeded(self.settings.seed_of(Stream.POOL, index)):
            return self.settings.prior.sample((acquisition.pool_size,))


def propose_active(
    num: int,
    region: Region,
    posterior: Any,
    acquisition: Acquisition,
    pool: Tensor | None = None,
) -> Proposals:
    """Draws from a region, then active points.

    Args:
        num: Number of proposals.
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
    # in one call, as scores are known up to a factor that differs between calls
    both = torch.cat([passive.theta, pool])
    scores = disagreement_at(posterior, both, acquisition.on)
    pool_scores = scores[len(passive.theta) :]
    chosen = pool_scores.argsort(descending=True, stable=True)[:num_active]
    indices = torch.cat([torch.arange(num - num_active), num - num_active + chosen])
    theta, weights = both[indices], torch.ones(num)
    if acquisition.correct:
        weights = importance_weights(
            region.inside(theta),
            scores[indices],
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


def _equal_shares(chosen: Tensor) -> Tensor:
    """Equal weights of the chosen ones, with sum 1; zeros where none is chosen."""
    return chosen / chosen.sum().clamp_min(1)
