r"""Test for shared noise of two levels, from runs at few thetas and several noises.

Two levels that share nothing but theta have correlated outputs under the prior, so the
marginal correlation of x and :math:`x_\mathrm{coarse}` is no evidence of shared noise.
With m noises :math:`u_1, \dots, u_m` at each theta, the correlation given theta
(`sbi_multilevel.diagnostics.correlations`) is a ratio of three moments, each of which
is estimated without bias from deviations from the mean at each theta. Outputs at the
same theta and different noises serve as unpaired outputs without further runs:

.. math::

    \frac{\mathrm{Var}[x - x_\mathrm{coarse} \mid \theta, \text{paired}]}
    {\mathrm{Var}[x - x_\mathrm{coarse} \mid \theta, \text{unpaired}]}
    = 1 - \frac{2\, \mathrm{Cov}[x, x_\mathrm{coarse} \mid \theta]}
    {\mathrm{Var}[x \mid \theta] + \mathrm{Var}[x_\mathrm{coarse} \mid \theta]} .

The ratio is 0 for levels that differ by a function of theta, 1 without shared noise,
and above 1 if pairs increase the variance. Standard errors are jackknifed over thetas.

Without shared noise the values of :math:`x_\mathrm{coarse}` at the m noises of a theta
are exchangeable given x. A permutation test within thetas is therefore exact for any
distribution and sample size. Its statistic is the covariance of ranks within each
theta, which is robust to heavy tails and to noise that varies with theta; p-values are
adjusted for the number of summaries by the largest standardized statistic of each
permutation (max-T; Westfall and Young 1993).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

_NUM_PERMUTATIONS = 999
# with more summaries, each is compared with its own counterpart only
_MAX_CROSSED = 50
# relative size of deviations that are attributed to rounding in single precision
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class SharedNoise:
    """Shared noise of each summary of a level and of the lower level.

    Args:
        is_noisy: Whether the summary varies at fixed theta, at the level and at the
            lower level, shape `(2, k)`.
        correlation: Correlation given theta, shape `(k,)`; NaN if a side has no noise.
        correlation_error: Its standard error, shape `(k,)`.
        variance_ratio: Ratio of the variances given theta of paired and of unpaired
            differences, shape `(k,)`.
        variance_ratio_error: Its standard error, shape `(k,)`.
        p_value: Adjusted p-value of the hypothesis that the summary and its counterpart
            share no noise, shape `(k,)`.
        counterpart: The summary of the lower level with the largest statistic, shape
            `(k,)`.
        counterpart_p_value: p-value of that one, adjusted for all pairs of summaries;
            equal to `p_value` if there are more than 50 summaries.
    """

    is_noisy: np.ndarray
    correlation: np.ndarray
    correlation_error: np.ndarray
    variance_ratio: np.ndarray
    variance_ratio_error: np.ndarray
    p_value: np.ndarray
    counterpart: np.ndarray
    counterpart_p_value: np.ndarray


def shared_noise(
    x: np.ndarray, x_coarse: np.ndarray, groups: np.ndarray, *, seed: int = 0
) -> SharedNoise:
    """Estimate and test the shared noise of two levels.

    Args:
        x: Outputs of the level, shape `(n, k)`.
        x_coarse: Outputs of the lower level at the same theta and noise, `(n, k)`.
        groups: Index of the theta of each simulation, shape `(n,)`.
        seed: Seed of the permutations.
    """
    order = np.argsort(groups, kind="stable")
    x, x_coarse = x[order].astype(float), x_coarse[order].astype(float)
    _, groups = np.unique(groups[order], return_inverse=True)
    is_noisy = np.stack([has_noise(side, groups) for side in (x, x_coarse)])
    both = is_noisy.all(axis=0)
    sums = _sums_of_products(x, x_coarse, groups)
    with np.errstate(invalid="ignore", divide="ignore"):
        measured = _ratios(sums.sum(axis=1))
        left_out = _ratios(sums.sum(axis=1, keepdims=True) - sums)
    count = left_out.shape[1]
    spread = left_out - left_out.mean(axis=1, keepdims=True)
    errors = np.sqrt((count - 1) / count * (spread**2).sum(axis=1))
    p_values = _permutation_test(x, x_coarse, groups, both, seed)
    columns = (measured[0], errors[0], measured[1], errors[1])
    known = (np.where(both, column, np.nan) for column in columns)
    return SharedNoise(is_noisy, *known, *p_values)


def has_noise(x: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Whether each summary varies within groups by more than rounding, shape `(k,)`."""
    deviation = np.sqrt((_centered(x, groups) ** 2).mean(axis=0))
    return deviation > _ROUNDING * np.abs(x).max(axis=0)


def noise_variance(x: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Variance of each summary given theta, averaged over thetas, shape `(k,)`."""
    _, groups = np.unique(groups, return_inverse=True)
    return _sums_of_products(x, x, groups)[0].mean(axis=0)


def _centered(x: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Deviations from the mean of each group."""
    counts = np.bincount(groups)[:, np.newaxis]
    means = _group_sums(x, groups) / counts
    return x - means[groups]


def _group_sums(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    totals = np.zeros((groups.max() + 1, values.shape[1]))
    np.add.at(totals, groups, values)
    return totals


def _sums_of_products(
    x: np.ndarray, x_coarse: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """Variances of both sides and covariance within each group, shape (3, g, k)."""
    a, b = _centered(x, groups), _centered(x_coarse, groups)
    degrees = np.bincount(groups)[:, np.newaxis] - 1
    return np.stack([_group_sums(p, groups) / degrees for p in (a * a, b * b, a * b)])


def _ratios(sums: np.ndarray) -> np.ndarray:
    """Correlation and variance ratio, shape (2, ...)."""
    fine, coarse, product = sums
    return np.stack([
        product / np.sqrt(fine * coarse),
        1 - 2 * product / (fine + coarse),
    ])


def _permutation_test(
    x: np.ndarray, x_coarse: np.ndarray, groups: np.ndarray, both: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p-values of the own counterparts, best counterparts, and their p-values."""
    a, b = (_centered_ranks(side, groups) for side in (x, x_coarse))
    is_crossed = x.shape[1] <= _MAX_CROSSED
    rng = np.random.default_rng(seed)
    drawn = []
    for index in range(_NUM_PERMUTATIONS + 1):  # the first is the identity
        order = np.argsort(groups + rng.random(len(groups)) * (index > 0))
        drawn.append(a.T @ b[order] if is_crossed else (a * b[order]).sum(axis=0))
    sizes = np.abs(np.stack(drawn))
    # equal scale, so that no summary dominates the maximum
    typical = np.sqrt((sizes**2).mean(axis=0))
    sizes /= np.where(typical > 0, typical, 1.0)
    own = np.diagonal(sizes, axis1=1, axis2=2) if is_crossed else sizes
    p_value = np.where(both, _adjusted(own[:, both], own[0]), np.nan)
    if not is_crossed:
        return p_value, np.arange(len(both)), p_value
    best = sizes[0].argmax(axis=1)
    return p_value, best, _adjusted(sizes.reshape(len(sizes), -1), sizes[0].max(axis=1))


def _adjusted(drawn: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Share of permutations whose largest statistic is at least `observed`."""
    largest = drawn.max(axis=1, initial=0.0)[:, np.newaxis]
    # tolerance, so that ties are not broken by rounding
    return (largest >= observed - 1e-9).mean(axis=0)


def _centered_ranks(x: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Ranks within each group minus their mean."""
    ranks = np.concatenate([
        rankdata(x[groups == group], axis=0) for group in range(groups.max() + 1)
    ])
    return _centered(ranks, groups)
