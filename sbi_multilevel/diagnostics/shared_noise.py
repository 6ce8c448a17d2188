r"""Whether two levels share their noise, from runs at a few thetas and several noises.

Levels that share nothing but theta have outputs that are correlated over the prior, so
a correlation of x and :math:`x_\mathrm{coarse}` proves nothing. With m noises
:math:`u_1, \dots, u_m` at each theta, theta drops out: within a theta,

.. math::

    \rho = \frac{\mathbb{E}\, \mathrm{Cov}[x, x_\mathrm{coarse} \mid \theta]}
    {\sqrt{\mathbb{E}\, \mathrm{Var}[x \mid \theta]\;
    \mathbb{E}\, \mathrm{Var}[x_\mathrm{coarse} \mid \theta]}}

is estimated without bias in its three moments by sums over deviations from the mean of
each theta, whatever the outputs are as functions of theta. Rows of another noise at the
same theta are deliberately unpaired, and cost no further run:

.. math::

    \frac{\mathrm{Var}[x - x_\mathrm{coarse} \mid \theta, \text{paired}]}
    {\mathrm{Var}[x - x_\mathrm{coarse} \mid \theta, \text{unpaired}]}
    = 1 - \frac{2\, \mathrm{Cov}[x, x_\mathrm{coarse} \mid \theta]}
    {\mathrm{Var}[x \mid \theta] + \mathrm{Var}[x_\mathrm{coarse} \mid \theta]} .

It is 0 for levels that differ by a function of theta, 1 where no noise is shared, and
above 1 where pairs are worse than independent rows. Standard errors are jackknifed over
thetas.

If the levels share no noise, :math:`x_\mathrm{coarse}` at the m noises of a theta can
be permuted without changing the law of anything: an exact test, for any distribution
and any number of rows. Its statistic is the covariance of ranks within each theta, so
that heavy tails and noise that grows with theta do not spoil it; p-values are adjusted
for the number of summaries by the largest standardised statistic of each permutation
(max-T; Westfall and Young 1993).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

_NUM_PERMUTATIONS = 999
# of more summaries than this, each is compared with its own counterpart alone
_MAX_CROSSED = 50
# deviations below this share of the largest value are rounding, in single precision
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class SharedNoise:
    """What two levels have in common at the same theta, an entry a summary.

    Args:
        is_noisy: Whether the summary varies at a fixed theta, at the level and at the
            one below, shape `(2, k)`.
        correlation: Correlation given theta, shape `(k,)`; NaN where a side has no
            noise.
        correlation_error: Its standard error.
        variance_ratio: Variance of the difference given theta of pairs, over that of
            rows of different noise, shape `(k,)`.
        variance_ratio_error: Its standard error.
        p_value: Adjusted p-value of "no noise is shared" by the summary and its
            counterpart, shape `(k,)`.
        counterpart: The summary of the level below that it follows most, shape `(k,)`.
        counterpart_p_value: The p-value for that one, adjusted for all pairs of
            summaries; that of `p_value` where there are more than 50.
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
    """Compare two levels at the same thetas and noises.

    Args:
        x: Outputs of the level, shape `(n, k)`.
        x_coarse: Those of the level below at the same theta and noise, `(n, k)`.
        groups: Number of the theta of each row, shape `(n,)`.
        seed: Seed of the permutations.

    Example:
    --------

    ::

        >>> rng = np.random.default_rng(0)
        >>> groups = np.repeat(np.arange(10), 5)
        >>> noise, theta = rng.normal(size=(50, 1)), 9.0 * groups[:, np.newaxis]
        >>> pairs = shared_noise(theta + 2 * noise, -theta + noise, groups)
        >>> pairs.correlation.round(6), pairs.variance_ratio.round(6)  # 1 - 2 * 2 / 5
        (array([1.]), array([0.2]))
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
    deviation = np.sqrt((_centred(x, groups) ** 2).mean(axis=0))
    return deviation > _ROUNDING * np.abs(x).max(axis=0)


def noise_variance(x: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Variance of each summary given theta, averaged over thetas, shape `(k,)`.

    Args:
        x: Outputs, shape `(n, k)`.
        groups: Number of the theta of each row, shape `(n,)`.
    """
    _, groups = np.unique(groups, return_inverse=True)
    return _sums_of_products(x, x, groups)[0].mean(axis=0)


def _centred(x: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Deviations from the mean of the group."""
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
    """Variances of both sides and their covariance at each theta, shape (3, g, k)."""
    a, b = _centred(x, groups), _centred(x_coarse, groups)
    freedom = np.bincount(groups)[:, np.newaxis] - 1
    return np.stack([_group_sums(p, groups) / freedom for p in (a * a, b * b, a * b)])


def _ratios(sums: np.ndarray) -> np.ndarray:
    """Correlation and ratio of variances, shape (2, ...)."""
    fine, coarse, product = sums
    return np.stack([
        product / np.sqrt(fine * coarse),
        1 - 2 * product / (fine + coarse),
    ])


def _permutation_test(
    x: np.ndarray,
    x_coarse: np.ndarray,
    groups: np.ndarray,
    both: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p-values of the counterparts by place, the best counterparts, their p-values."""
    a, b = (_centred_ranks(side, groups) for side in (x, x_coarse))
    is_crossed = x.shape[1] <= _MAX_CROSSED
    rng = np.random.default_rng(seed)
    drawn = []
    for index in range(_NUM_PERMUTATIONS + 1):  # the first one is what was observed
        order = np.argsort(groups + rng.random(len(groups)) * (index > 0))
        drawn.append(a.T @ b[order] if is_crossed else (a * b[order]).sum(axis=0))
    sizes = np.abs(np.stack(drawn))
    # of unit size if no noise is shared: few rows that vary must not set the largest
    typical = np.sqrt((sizes**2).mean(axis=0))
    sizes /= np.where(typical > 0, typical, 1.0)
    own = np.diagonal(sizes, axis1=1, axis2=2) if is_crossed else sizes
    p_value = np.where(both, _adjusted(own[:, both], own[0]), np.nan)
    if not is_crossed:
        return p_value, np.arange(len(both)), p_value
    best = sizes[0].argmax(axis=1)
    return p_value, best, _adjusted(sizes.reshape(len(sizes), -1), sizes[0].max(axis=1))


def _adjusted(drawn: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Share of the rows of `drawn` whose largest entry is as large as `observed`."""
    largest = drawn.max(axis=1, initial=0.0)[:, np.newaxis]
    # rounding must not decide between equal values
    return (largest >= observed - 1e-9).mean(axis=0)


def _centred_ranks(x: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Ranks within groups, minus their mean; 0 where all values tie."""
    ranks = np.concatenate([
        rankdata(x[groups == group], axis=0) for group in range(groups.max() + 1)
    ])
    return _centred(ranks, groups)
