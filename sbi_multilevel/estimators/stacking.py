r"""Stacking weights of a mixture of estimators, by held-out simulations.

With :math:`q_k(i)` the density of simulation i under component k, from members trained
without that simulation, the weights maximize the held-out log score of the mixture plus
the log density of a Dirichlet prior,

.. math::

    \sum_i \log \sum_k w_k\, q_k(i) + \sum_k a_k \log w_k, \qquad
    w_k \ge 0, \; \sum_k w_k = 1,

a concave problem, solved by expectation maximisation. The pseudo-counts :math:`a_k`
keep every weight above about :math:`a_k / n`: with few simulations no component is
excluded by chance, and the loss of a mixture that contains the prior is bounded.

Reference: Yao, Vehtari, Simpson, Gelman (2018), *Using stacking to average Bayesian
predictive distributions*, Bayesian Analysis 13(3).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import logsumexp

_MAX_STEPS, _TOLERANCE = 10_000, 1e-10


def stacking_weights(
    log_densities: np.ndarray,
    pseudo_counts: Sequence[float],
    importance: np.ndarray | None = None,
) -> np.ndarray:
    """Weights of the components.

    Args:
        log_densities: Held-out log density of each simulation under each component,
            shape `(n, k)`; `-inf` is allowed, but not under all components.
        pseudo_counts: :math:`a_k`, one a component.
        importance: Weight of each simulation in the sum, shape `(n,)`, with mean 1;
            `None` for equal weights.

    Returns:
        Weights, shape `(k,)`.

    Example:
    --------

    ::

        >>> import numpy as np
        >>> better, worse = np.zeros(20), np.full(20, -1.0)
        >>> stacking_weights(np.stack([better, worse], axis=1), (0.5, 0.5)).round(2)
        array([0.96, 0.04])
    """
    counts = np.asarray(pseudo_counts, dtype=float)
    weights = np.full(len(counts), 1 / len(counts))
    for _ in range(_MAX_STEPS):
        with np.errstate(divide="ignore"):
            joint = log_densities + np.log(weights)
        shares = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
        if importance is not None:
            shares *= importance[:, None]
        updated = shares.sum(axis=0) + counts
        updated /= updated.sum()
        if np.abs(updated - weights).max() < _TOLERANCE:
            break
        weights = updated
    return updated
