"""What is simulated in a round."""

from __future__ import annotations

from typing import Any

import torch
from sbi.utils import RestrictedPrior
from torch import Tensor

from sbi_multilevel.sequential.acquisition import (
    Acquisition,
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
    proposal = truncation.truncate(posterior, prior)
    passive, rate = truncation.draw(proposal, num - num_active)
    pool = prior.sample((acquisition.pool_size,))
    scores = _disagreement(posterior, pool, acquisition)
    chosen = scores.argsort(descending=True)[:num_active]
    theta, weights = torch.cat([passive, pool[chosen]]), torch.ones(num)
    if acquisition.correct:
        weights = _weights(
            theta, float(scores[chosen].min()), num_active, proposal, posterior,
            truncation, acquisition,
        )  # fmt: skip
    return Proposals(theta, weights, rate, num_active)


def _weights(
    theta: Tensor,
    lowest_acquired: float,
    num_active: int,
    proposal: RestrictedPrior,
    posterior: Any,
    truncation: Truncation,
    acquisition: Acquisition,
) -> Tensor:
    return importance_weights(
        proposal._accept_reject_fn(theta),
        _disagreement(posterior, theta, acquisition),
        lowest_acquired,
        truncation.acceptance(proposal),
        num_active,
        acquisition.pool_size,
    )


def _disagreement(posterior: Any, theta: Tensor, acquisition: Acquisition) -> Tensor:
    log_probs = [QuietPosterior(one).log_prob(theta) for one in posterior.posteriors]
    return disagreement(torch.stack(log_probs), acquisition.on)
