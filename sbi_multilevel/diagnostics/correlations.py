r"""Correlation of the two sides of pairs, over the prior and beyond theta.

Both sides follow theta, so x and :math:`x_\mathrm{coarse}` are correlated even where
they share no noise. What is left beyond theta,

.. math::

    \rho = \frac{\mathbb{E}\, \mathrm{Cov}[x, x_\mathrm{coarse} \mid \theta]}
    {\sqrt{\mathbb{E}\, \mathrm{Var}[x \mid \theta]\;
    \mathbb{E}\, \mathrm{Var}[x_\mathrm{coarse} \mid \theta]}},

is estimated here from rows of one noise a theta, by two regressions. One, of
:math:`x_\mathrm{coarse}` on theta, is fitted to the rows of the level below, many and
no part of the pairs. The other, of what the first leaves of both sides, quadratic in
theta and in the first one, is fitted to the pairs, leave-one-out. For any function a,
and :math:`m(\theta) = \mathbb{E}[x_\mathrm{coarse} \mid \theta]`,

.. math::

    \mathbb{E} [(x - a(\theta)) (x_\mathrm{coarse} - m(\theta))]
    = \mathbb{E}\, \mathrm{Cov}[x, x_\mathrm{coarse} \mid \theta],

so that the numerator is right if theta is removed from one of the sides, and what is
left on the other only makes the correlation smaller. `check_pairing`, which runs the
simulators, needs no regression.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sbi_multilevel.diagnostics.probes import Probe
from sbi_multilevel.level_maps.regression import Regression, polynomials, varies

_NUM_RESAMPLES = 200
# share of the variance beyond theta below which a regression cannot tell it from none
_MIN_NOISE = 0.01


@dataclass(frozen=True, eq=False)
class Correlations:
    """Of x and x_coarse, an entry a summary.

    Args:
        raw: Correlation over the prior, shape `(k,)`; NaN where a side is constant.
        raw_error: Its standard error (bootstrap).
        beyond_theta: Correlation given theta, shape `(k,)`; NaN where theta explains
            all but 1 % of a side.
        beyond_theta_error: Its standard error, the regressions given.
    """

    raw: np.ndarray
    raw_error: np.ndarray
    beyond_theta: np.ndarray
    beyond_theta_error: np.ndarray


def pair_correlations(
    theta_low: np.ndarray,
    x_low: np.ndarray,
    theta: np.ndarray,
    x: np.ndarray,
    x_coarse: np.ndarray,
    *,
    seed: int = 0,
) -> Correlations:
    """Correlations of the two sides of pairs.

    Args:
        theta_low: Parameters of the rows of the level below, shape `(n_low, d)`.
        x_low: Their outputs, shape `(n_low, k)`.
        theta: Parameters of the pairs, shape `(n, d)`.
        x: Outputs of the level, shape `(n, k)`.
        x_coarse: Outputs of the level below at the same theta and noise, `(n, k)`.
        seed: Seed of the bootstrap.

    Example:
    --------

    Theta is all that these levels share:

    ::

        >>> rng = np.random.default_rng(0)
        >>> theta = rng.uniform(-1, 1, size=(700, 1))
        >>> x, x_coarse = (theta + 0.2 * rng.normal(size=(700, 1)) for _ in range(2))
        >>> pairs = theta[:200], x[:200], x_coarse[:200]
        >>> found = pair_correlations(theta[200:], x_coarse[200:], *pairs)
        >>> bool(found.raw > 0.8), bool(abs(found.beyond_theta) < 0.2)
        (True, True)
    """
    both = varies(x) & varies(x_coarse)
    residual, residual_coarse = beyond_theta(theta_low, x_low, theta, x, x_coarse)
    noisy = both & _is_noisy(residual, x) & _is_noisy(residual_coarse, x_coarse)
    return Correlations(
        *correlation(x, x_coarse, both, seed),
        *correlation(residual, residual_coarse, noisy, seed),
    )


def beyond_theta(
    theta_low: np.ndarray,
    x_low: np.ndarray,
    theta: np.ndarray,
    x: np.ndarray,
    x_coarse: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Both sides of pairs without what follows from theta, each of shape `(n, k)`.

    Args:
        theta_low: As of `pair_correlations`, like the others.
        x_low: Outputs of the level below.
        theta: Parameters of the pairs.
        x: Outputs of the level.
        x_coarse: Outputs of the level below at the pairs.
    """
    means = Probe.fit(theta_low, x_low)(theta)
    residuals = []
    for mean, *sides in zip(means.T, x.T, x_coarse.T):
        inputs = np.column_stack([theta, mean])
        targets = np.column_stack(sides) - mean[:, np.newaxis]
        fit = Regression.fit(polynomials(inputs, 2), inputs, targets)
        residuals.append(fit.left_out(inputs, targets))
    both = np.stack(residuals, axis=2)
    return both[:, 0], both[:, 1]


def _is_noisy(residual: np.ndarray, x: np.ndarray) -> np.ndarray:
    return residual.var(axis=0) > _MIN_NOISE * x.var(axis=0)


def correlation(
    a: np.ndarray, b: np.ndarray, known: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Correlations of columns and their bootstrap standard errors.

    Args:
        a: Shape `(n, k)`.
        b: Shape `(n, k)`.
        known: Columns to look at, shape `(k,)`; NaN for the others.
        seed: Seed of the bootstrap.
    """

    def of(rows: np.ndarray | slice) -> np.ndarray:
        left, right = (v[rows] - v[rows].mean(axis=0) for v in (a, b))
        norm = np.sqrt((left**2).sum(axis=0) * (right**2).sum(axis=0))
        return (left * right).sum(axis=0) / np.where(norm > 0, norm, np.inf)

    rng = np.random.default_rng(seed)
    drawn = [of(rng.integers(len(a), size=len(a))) for _ in range(_NUM_RESAMPLES)]
    value, error = of(slice(None)), np.std(drawn, axis=0, ddof=1)
    return np.where(known, value, np.nan), np.where(known, error, np.nan)
