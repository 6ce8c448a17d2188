"""Calibration of a posterior over test simulations, by the diagnostics of sbi."""

from __future__ import annotations

import warnings
from typing import Any

from sbi.diagnostics import check_tarp, run_sbc, run_tarp
from sbi.inference import DirectPosterior
from scipy.stats import kstest
from torch import Tensor

from sbi_multilevel.estimators.mixture import MixtureEstimator
from sbi_multilevel.utils.seeds import seeded

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
        As `calibration`; empty for estimators with mass outside the prior, as rejection
        sampling may not end.
    """
    if not isinstance(estimator, MixtureEstimator):
        return {}
    posterior = DirectPosterior(estimator, prior)
    return calibration(posterior, theta[:_NUM_TESTS], x[:_NUM_TESTS])


def calibration(posterior: Any, theta: Tensor, x: Tensor) -> dict[str, list[float]]:
    """SBC and TARP of an amortized posterior.

    Args:
        posterior: Posterior of sbi with `sample_batched`.
        theta: Test parameters, drawn from the prior, shape `(n, d_theta)`.
        x: Their outputs at the highest level, shape `(n, *x_shape)`.

    Returns:
        `sbc`: for each parameter, the Kolmogorov-Smirnov distance of its ranks to the
        uniform distribution (about :math:`0.87 / \\sqrt n` if calibrated); and `atc`:
        TARP's area to the curve, positive if posteriors are too wide and negative if
        they are too narrow.
    """
    options: dict[str, Any] = {
        "num_posterior_samples": _NUM_SAMPLES,
        "show_progress_bar": False,
        "use_batched_sampling": True,
    }
    with seeded(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the number of simulations
        ranks, _ = run_sbc(theta, x, posterior, **options)
        ecp, alpha = run_tarp(theta, x, posterior, **options)
    atc, _ = check_tarp(ecp, alpha)
    distances = [
        float(kstest(column.numpy() / _NUM_SAMPLES, "uniform").statistic)
        for column in ranks.T
    ]
    return {"sbc": distances, "atc": [float(atc)]}
