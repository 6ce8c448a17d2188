r"""Calibration of a posterior over test simulations, by the diagnostics of sbi.

Coverage is the share of test parameters within the region of highest posterior density
of credibility :math:`\alpha`, as in the code of Hikida et al. (2025):

.. math::

    C(\alpha) = \frac1n \sum_i 1\left[\Pr_{\theta \sim q(\theta \mid x_i)}
    \left(q(\theta \mid x_i) > q(\theta_i \mid x_i)\right) < \alpha\right].

It is :math:`\alpha` if q is calibrated, and less if q is too narrow. TARP's curve does
not show this at every credibility: its regions are balls around random points, and a
posterior that is too narrow has a value near 0.5 at :math:`\alpha = 0.5`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from sbi.diagnostics import check_tarp, run_sbc, run_tarp
from sbi.inference import DirectPosterior
from sbi.utils.sbiutils import within_support
from scipy.stats import kstest
from torch import Tensor

from sbi_multilevel.estimators.mixture import MixtureEstimator
from sbi_multilevel.utils.seeds import seeded

CREDIBILITIES = (0.5, 0.9)
_NUM_SAMPLES = _NUM_TESTS = 200


def calibration_of_network(
    estimator: Any, prior: Any, theta: Tensor, x: Tensor
) -> dict[str, list[float]]:
    """`calibration` of a density estimator of theta, at the first 200 simulations.

    Args:
        estimator: The estimator.
        prior: The prior.
        theta: As in `calibration`.
        x: As in `calibration`.

    Returns:
        As `calibration`; coverage only for estimators with mass outside the prior, as
        rejection sampling may not end.
    """
    theta, x = theta[:_NUM_TESTS], x[:_NUM_TESTS]
    if isinstance(estimator, MixtureEstimator):
        return calibration(DirectPosterior(estimator, prior), theta, x)
    with seeded(1), torch.no_grad():
        samples = estimator.sample((_NUM_SAMPLES,), x)
        exact = estimator.log_prob(theta.unsqueeze(0), x)
        values = estimator.log_prob(samples, x)
    inside = within_support(prior, samples.flatten(0, 1)).view_as(values)
    return coverage(values.masked_fill(~inside, torch.nan), exact[0])


def calibration_inside(
    estimator: Any, theta: Tensor, x: Tensor
) -> dict[str, list[float]]:
    """SBC and coverage of a density estimator without mass outside the prior.

    Args:
        estimator: The estimator of theta.
        theta: As in `calibration`; the first 200 are used.
        x: As in `calibration`.

    Returns:
        `sbc` as in `calibration`, and those of `coverage`.
    """
    theta, x = theta[:_NUM_TESTS], x[:_NUM_TESTS]
    with seeded(1), torch.no_grad():
        samples = estimator.sample((_NUM_SAMPLES,), x)
        values = estimator.log_prob(torch.cat((theta.unsqueeze(0), samples)), x)
    ranks = (samples < theta).sum(dim=0)
    return {"sbc": _distances(ranks), **coverage(values[1:], values[0])}


def calibration(posterior: Any, theta: Tensor, x: Tensor) -> dict[str, list[float]]:
    """SBC, TARP and coverage of an amortized posterior.

    Args:
        posterior: Posterior of sbi with `sample_batched`.
        theta: Test parameters, drawn from the prior, shape `(n, d_theta)`.
        x: Their outputs at the highest level, shape `(n, *x_shape)`.

    Returns:
        `sbc`: for each parameter, the Kolmogorov-Smirnov distance of its ranks to the
        uniform distribution (about :math:`0.87 / \\sqrt n` if calibrated); `atc`:
        TARP's area to the curve, positive if posteriors are too wide and negative if
        they are too narrow; and those of `coverage`.
    """
    options: dict[str, Any] = {
        "num_posterior_samples": _NUM_SAMPLES,
        "show_progress_bar": False,
        "use_batched_sampling": True,
    }
    with seeded(1), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the number of simulations
        samples = posterior.sample_batched(
            (_NUM_SAMPLES,), x=x, show_progress_bars=False
        )
        drawn: Any = _Drawn(samples)
        ranks, _ = run_sbc(theta, x, drawn, **options)
        ecp, alpha = run_tarp(theta, x, drawn, **options)
        values = _log_density(posterior, torch.cat((theta.unsqueeze(0), samples)), x)
    atc, _ = check_tarp(ecp, alpha)
    return {
        "sbc": _distances(ranks),
        "atc": [float(atc)],
        **coverage(values[1:], values[0]),
    }


@dataclass(frozen=True)
class _Drawn:
    """A posterior that returns samples drawn before, which take most of the time."""

    samples: Tensor

    def sample_batched(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.samples


def coverage(samples: Tensor, exact: Tensor) -> dict[str, list[float]]:
    """Coverage of regions of highest density, see the module.

    Args:
        samples: Log density of m samples of each posterior, shape `(m, n)`; NaN for
            samples outside the prior, which are left out. If all are, the regions of
            the posterior are empty.
        exact: Log density of the test parameters, shape `(n,)`.

    Returns:
        `coverage_50` and `coverage_90`, a value each.
    """
    counts = (~samples.isnan()).sum(dim=0)
    above = (samples > exact).sum(dim=0) / counts  # NaN without samples
    return {
        f"coverage_{100 * level:.0f}": [(above < level).double().mean().item()]
        for level in CREDIBILITIES
    }


def _distances(ranks: Tensor) -> list[float]:
    """Distance of the ranks of each parameter to the uniform distribution."""
    return [
        float(kstest(column.numpy() / _NUM_SAMPLES, "uniform").statistic)
        for column in ranks.T
    ]


def _log_density(posterior: Any, theta: Tensor, x: Tensor) -> Tensor:
    """Log density up to a constant of each x; theta of shape `(m, n, d_theta)`."""
    if isinstance(posterior, DirectPosterior):
        return posterior.log_prob_batched(theta, x, norm_posterior=False)
    pairs = zip(theta.unbind(dim=1), x.unsqueeze(1))
    return torch.stack([posterior.potential(t, x=x_o) for t, x_o in pairs], dim=1)
