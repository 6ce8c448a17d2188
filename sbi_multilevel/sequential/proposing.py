"""What is simulated in a round."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sbi_multilevel.sequential.acquisition import (
    Acquisition,
    Score,
    disagreement,
    importance_weights,
)
from sbi_multilevel.sequential.rounds import Proposals
from sbi_multilevel.sequential.truncation import QuietPosterior, Truncation


def propose_truncated(
    num: int, prior: Any, posterior: Any, truncation: Truncation
) -> Proposals:
    """Draws from the truncated prior.

    Args:
        num: How many.
        prior: The prior.
        posterior: Posterior with the observation as its default x.
        truncation: How the prior is truncated.
    """
    proposal = truncation.truncate(posterior, prior)
    theta, rate = truncation.draw(proposal, num)
    return Proposals(theta, torch.ones(num), rate)


def propose_active(
    num: int,
    prior: Any,
    posterior: Any,
    truncation: Truncation,
    acquisition: Acquisition,
) -> Proposals:
    """Draws from the truncated prior, then active points.

    Arguments are those of `propose_truncated`; the posterior is an ensemble.
    """
    num_active = acquisition.num_active(num)
    if num_active == 0:
        return propose_truncated(num, prior, posterior, truncation)
    proposal = truncation.truncate(posterior, prior)
    passive, rate = truncation.draw(proposal, num - num_active)
    pool = prior.sample((acquisition.pool_size,))
    # in one go, as scores have a factor of their own in each
    scores = disagreement_at(posterior, torch.cat([passive, pool]), acquisition.on)
    chosen = scores[len(passive) :].argsort(descending=True)[:num_active]
    rows = torch.cat([torch.arange(len(passive)), len(passive) + chosen])
    theta, weights = torch.cat([passive, pool])[rows], torch.ones(num)
    if acquisition.correct:
        weights = importance_weights(
            proposal._accept_reject_fn(theta),
            scores[rows],
            float(scores[rows][-num_active:].min()),
            truncation.acceptance(proposal),
            num_active,
            acquisition.pool_size,
        )
    active = torch.arange(num) >= len(passive)
    return Proposals(theta, weights, rate, active)


def disagreement_at(posterior: Any, theta: Tensor, on: Score) -> Tensor:
    """Variance over the members of an ensemble posterior at its default x."""
    log_probs = [QuietPosterior(one).log_prob(theta) for one in posterior.posteriors]
    return disagreement(torch.stack(log_probs), on)
