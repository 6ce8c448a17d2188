r"""Expected coverage of a posterior at simulations from the truncated prior.

For :math:`\theta^* \sim \tilde p(\theta)` and :math:`x^* \sim p(x \mid \theta^*)` let

.. math::

    c(\theta^*, x^*) = \Pr\left[ q(\theta \mid x^*) > q(\theta^* \mid x^*) \,\middle|\,
    \theta \in R \right], \qquad \theta \sim q(\theta \mid x^*),

be the level of the smallest region of highest density that holds :math:`\theta^*`. The
*expected coverage* of the regions of a level is the share of c below that level
(Deistler, Gonçalves, Macke 2022). If q is the posterior under the truncated prior, c is
uniform on (0, 1), and the expected coverage equals the level. For posteriors that are
too narrow it is smaller. Samples outside R are left out, since :math:`\tilde p` has no
mass there.

The ranks are those of sbi's own diagnostic, `sbi.diagnostics.run_sbc`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from sbi.diagnostics import run_sbc
from torch import Tensor

_NUM_SAMPLES = 100


def coverage_levels(
    posterior: Any, theta: Tensor, x: Tensor, inside: Callable[[Tensor], Tensor]
) -> Tensor:
    """Level of the smallest region of the posterior that holds each true theta.

    Args:
        posterior: Posterior of sbi with `sample_batched` and `log_prob`.
        theta: True parameters inside the region, shape `(n, d_theta)`.
        x: Their outputs, shape `(n, *x_shape)`.
        inside: Whether parameters lie in the region R.

    Returns:
        Levels, shape `(n,)`, from 100 samples each; 1 where no sample is in the region.
    """
    if len(theta) == 0:
        return torch.zeros(0)

    def density(theta: Tensor, x: Tensor) -> Tensor:
        log_prob = posterior.log_prob(theta, x=x.unsqueeze(0), norm_posterior=False)
        return torch.where(inside(theta), log_prob, -torch.inf)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few simulations
        ranks, _ = run_sbc(
            theta,
            x,
            _Unrejected(posterior),
            num_posterior_samples=_NUM_SAMPLES,
            # count samples of higher density, and samples outside the region
            reduce_fns=[lambda *at: -density(*at), lambda at, _: inside(at).float()],
            show_progress_bar=False,
        )
    denser, outside = ranks.T
    num_inside = _NUM_SAMPLES - outside
    levels = (denser + 0.5) / (num_inside + 1)  # midway between samples
    return torch.where(num_inside > 0, levels, 1.0)


class _Unrejected:
    """A posterior that samples without rejection, so that leakage costs no time."""

    def __init__(self, posterior: Any):
        self._posterior = posterior

    def sample_batched(self, sample_shape: Any, x: Tensor, **kwargs: Any) -> Tensor:
        """Samples, shape `(*sample_shape, n, d_theta)`."""
        return self._posterior.sample_batched(
            sample_shape, x=x, reject_outside_prior=False, show_progress_bars=False
        )
