r"""The prior truncated to where the posterior of one observation has its mass.

TSNPE (Deistler, Gonçalves, Macke 2022) simulates from

.. math::

    \tilde p(\theta) \propto p(\theta)\, 1[\theta \in R], \qquad
    R = \{\theta : q(\theta \mid x_o) > \tau\},

with :math:`\tau` such that R holds the mass :math:`1 - \epsilon` of q. On R the
proposal is the prior up to a constant, so NPE on its simulations learns the posterior
there. The simulations of several rounds come from a mixture of truncated priors. On the
intersection of their regions, which should hold the posterior of :math:`x_o`, the
mixture is the prior up to a constant.

The threshold and the truncated prior are sbi's (`get_density_thresholder`,
`RestrictedPrior`). If the prior is a component of q, R is the region of q without that
component (`sbi_multilevel.without_prior`); otherwise R would be the whole prior.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch
from sbi.utils import RestrictedPrior, get_density_thresholder
from sbi.utils.sbiutils import within_support
from torch import Tensor

from sbi_multilevel.estimators.mixture import without_prior
from sbi_multilevel.methods.sequential.state import Proposals
from sbi_multilevel.utils.argument_types import check_field_types

_LOG = logging.getLogger(__name__)
_BLOCK = 10_000


@dataclass(frozen=True)
class Truncation:
    """How the prior is truncated; see `sbi_multilevel.methods.sequential.truncation`.

    Args:
        epsilon: Mass of the posterior outside the region.
        num_samples: Posterior samples that the threshold is estimated from; with fewer
            than :math:`1 / \\epsilon` it is the lowest density among them.
        sample_with: `"rejection"` draws from the prior and keeps what lies in the
            region; `"sir"` (sampling-importance-resampling) draws from the posterior,
            which is approximate, but fast where the region is small.
        max_draws: Draws from the prior after which rejection stops with an error if
            none was accepted.

    Raises:
        ValueError: If a setting is out of range.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.inference import DirectPosterior
        >>> from sbi.neural_nets import posterior_nn
        >>> from sbi.utils import BoxUniform
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> _ = torch.manual_seed(0)
        >>> theta = 0.1 * torch.randn(100, 1)  # sets the scale of the network
        >>> posterior = DirectPosterior(posterior_nn("mdn")(theta, theta), prior)
        >>> posterior = posterior.set_default_x(torch.zeros(1, 1))
        >>> truncation = Truncation(epsilon=0.1, num_samples=1_000)
        >>> truncated = truncation.truncate(posterior, prior)
        >>> theta, acceptance = truncation.draw(truncated, 5)
        >>> theta.shape, acceptance < 0.5
        (torch.Size([5, 1]), True)
    """

    epsilon: float = 1e-6
    num_samples: int = 100_000
    sample_with: Literal["rejection", "sir"] = "rejection"
    max_draws: int = 1_000_000

    def __post_init__(self) -> None:
        check_field_types(self)
        if not 0 <= self.epsilon < 1:
            raise ValueError(f"epsilon must be in [0, 1), but is {self.epsilon}.")
        if min(self.num_samples, self.max_draws) < 1:
            raise ValueError(
                "num_samples and max_draws must be >= 1, but are "
                f"{self.num_samples} and {self.max_draws}."
            )
        if self.sample_with not in ("rejection", "sir"):
            raise ValueError(
                "sample_with must be 'rejection' or 'sir', but is "
                f"{self.sample_with!r}."
            )

    def truncate(self, posterior: Any, prior: Any) -> RestrictedPrior:
        """The prior inside the region of the posterior at its default x.

        Args:
            posterior: Posterior of sbi with a default x. If the prior is a component of
                it, as in `HybridNPE`, that component is left out, and a message of
                level INFO is logged.
            prior: The prior.
        """
        alone = without_prior(posterior)
        if alone is not posterior:
            _LOG.info(
                "The prior is a component of the posterior. The region of highest "
                "density is that of the posterior without this component."
            )
        quiet = QuietPosterior(alone)
        inside = get_density_thresholder(quiet, self.epsilon, self.num_samples)
        return RestrictedPrior(
            prior, inside, posterior=quiet, sample_with=self.sample_with
        )

    def acceptance(self, proposal: RestrictedPrior) -> float:
        """Share of prior draws inside the region, from draws until ten are accepted.

        Args:
            proposal: The truncated prior.

        Raises:
            RuntimeError: If none of `max_draws` is accepted.
        """
        drawn, accepted = 0, 0
        while drawn < self.max_draws and accepted < 10:
            theta = proposal._prior.sample((min(_BLOCK, self.max_draws - drawn),))
            drawn += len(theta)
            accepted += int(proposal._accept_reject_fn(theta).sum())
        if accepted == 0:
            raise RuntimeError(
                f"The truncated prior accepted 0 of {drawn} draws from the prior "
                f"(acceptance rate below {1 / drawn:.0e}). Use "
                "`Truncation(sample_with='sir')`, a larger max_draws, or more "
                "simulations per round, or check that the prior can produce this "
                "observation."
            )
        return accepted / drawn

    def draw(self, proposal: RestrictedPrior, num: int) -> tuple[Tensor, float]:
        """Draw from the truncated prior.

        Args:
            proposal: The truncated prior.
            num: Number of draws.

        Returns:
            Theta, shape `(num, d_theta)`, and the acceptance rate; NaN with `"sir"`.

        Raises:
            RuntimeError: If rejection accepts nothing.
        """
        if self.sample_with == "sir":
            return proposal.sample((num,)), float("nan")
        rate = self.acceptance(proposal)
        theta = proposal.sample((num,), print_rejected_frac=False)
        return theta, rate


class Region:
    """The part of the prior that a round draws from.

    Args:
        prior: The prior.
        truncation: How the prior is truncated.
        posterior: The posterior by which it is truncated; `None` in the first round,
            which draws from the whole prior.
    """

    def __init__(self, prior: Any, truncation: Truncation, posterior: Any):
        self.prior, self.truncation, self.truncated = prior, truncation, None
        if posterior is not None:
            self.truncated = truncation.truncate(posterior, prior)

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


class QuietPosterior:
    """A posterior of sbi at its default x, without progress bars and normalization.

    Thresholds do not depend on the normalization, which would take samples.
    """

    def __init__(self, posterior: Any):
        self._posterior = posterior

    def sample(self, sample_shape: Any, **kwargs: Any) -> Tensor:
        """Samples, shape `(*sample_shape, d_theta)`."""
        return self._posterior.sample(sample_shape, show_progress_bars=False)

    @torch.no_grad()
    def log_prob(self, theta: Tensor, **kwargs: Any) -> Tensor:
        """Log density up to a constant, shape `(n,)`."""
        blocks = torch.as_tensor(theta).split(_BLOCK)
        return torch.cat([
            self._posterior.log_prob(block, norm_posterior=False) for block in blocks
        ])
