r"""The prior truncated to where the posterior of one observation has its mass.

TSNPE (Deistler, Gonçalves, Macke 2022) simulates from

.. math::

    \tilde p(\theta) \propto p(\theta)\, 1[\theta \in R], \qquad
    R = \{\theta : q(\theta \mid x_o) > \tau\},

where :math:`\tau` leaves out the share :math:`\epsilon` of the mass of q. On R the
proposal is the prior up to a constant, so plain NPE on its rows still learns the
posterior there. Rows of several rounds mix such priors; where the regions of all of
them meet, which is where the posterior of :math:`x_o` is, the mixture is still the
prior up to a constant.

The threshold and the truncated prior are sbi's (`get_density_thresholder`,
`RestrictedPrior`). Where q is a mixture that holds the prior, R is the region of the
mixture without that component (`sbi_multilevel.without_prior`): with it, R
would be the whole prior.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch
from sbi.utils import RestrictedPrior, get_density_thresholder
from torch import Tensor

from sbi_multilevel.estimators.mixture import without_prior
from sbi_multilevel.utils.argument_types import check_field_types

_LOG = logging.getLogger(__name__)
_BLOCK = 10_000


@dataclass(frozen=True)
class Truncation:
    """How the prior is truncated; see `sbi_multilevel.methods.sequential.truncation`.

    Args:
        epsilon: Share of the posterior's mass that is left out.
        num_samples: Posterior samples that the threshold is taken from; with fewer than
            :math:`1 / \\epsilon` it is the lowest density among them.
        sample_with: `"rejection"` draws from the prior until the region accepts;
            `"sir"` (sampling-importance-resampling) draws from the posterior, which is
            approximate, but fast where the region is tiny.
        max_draws: Draws from the prior without one accepted after which rejection
            gives up.

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
        >>> rows = 0.1 * torch.randn(100, 1)  # the network begins at their moments
        >>> posterior = DirectPosterior(posterior_nn("mdn")(rows, rows), prior)
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
                it, as with the hybrid recipe, that component is left out, and a message
                of level INFO is logged.
            prior: The prior.
        """
        alone = without_prior(posterior)
        if alone is not posterior:
            _LOG.info(
                "The posterior is a mixture that holds the prior. Its region of "
                "highest density is taken without that component."
            )
        quiet = QuietPosterior(alone)
        inside = get_density_thresholder(quiet, self.epsilon, self.num_samples)
        return RestrictedPrior(
            prior, inside, posterior=quiet, sample_with=self.sample_with
        )

    def acceptance(self, proposal: RestrictedPrior) -> float:
        """Share of prior draws inside the region, estimated until ten are accepted.

        Args:
            proposal: The truncated prior.

        Raises:
            RuntimeError: If none of `max_draws` is.
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
                "`Truncation(sample_with='sir')`, a larger max_draws, more simulations "
                "a round, or check that the prior can produce this observation."
            )
        return accepted / drawn

    def draw(self, proposal: RestrictedPrior, num: int) -> tuple[Tensor, float]:
        """Draw from the truncated prior.

        Args:
            proposal: The truncated prior.
            num: How many.

        Returns:
            Theta, shape `(num, d_theta)`, and the acceptance rate.

        Raises:
            RuntimeError: If rejection accepts nothing.
        """
        if self.sample_with == "sir":
            return proposal.sample((num,)), float("nan")
        rate = self.acceptance(proposal)
        theta = proposal.sample((num,), print_rejected_frac=False)
        return theta, rate


class QuietPosterior:
    """A posterior of sbi at its default x: no progress bars, no leakage correction.

    A constant factor does not matter to a threshold, and to find it takes samples.
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
