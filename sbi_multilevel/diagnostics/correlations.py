r"""Correlation of the two sides of a pair, marginally and given theta.

Both x and :math:`x_\mathrm{coarse}` depend on theta, so they are correlated even if
they share no noise. The correlation given theta,

.. math::

    \rho = \frac{\mathbb{E}\, \mathrm{Cov}[x, x_\mathrm{coarse} \mid \theta]}
    {\sqrt{\mathbb{E}\, \mathrm{Var}[x \mid \theta]\;
    \mathbb{E}\, \mathrm{Var}[x_\mathrm{coarse} \mid \theta]}},

is estimated from pairs with distinct theta by two regressions. The first predicts
:math:`x_\mathrm{coarse}` from theta and is fitted to the independent simulations of the
lower level. The second, quadratic in theta and in the first prediction, is fitted to
the residuals of both sides of the pairs, with leave-one-out residuals. For any function
a, and :math:`m(\theta) = \mathbb{E}[x_\mathrm{coarse} \mid \theta]`,

.. math::

    \mathbb{E} [(x - a(\theta)) (x_\mathrm{coarse} - m(\theta))]
    = \mathbb{E}\, \mathrm{Cov}[x, x_\mathrm{coarse} \mid \theta],

so the numerator is unbiased if one of the two regressions is exact; an inexact
regression of the other side attenuates the correlation. `check_pairing`, which runs the
simulators repeatedly at the same theta, requires no regression.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sbi_multilevel.diagnostics.probes import Probe
from sbi_multilevel.diagnostics.tables import abridged, plus_minus
from sbi_multilevel.level_maps.regression import Regression, polynomials, varies

_NUM_RESAMPLES = 200
# smaller shares of residual variance may be errors of the regression
_MIN_NOISE = 0.01


@dataclass(frozen=True, eq=False)
class Correlations:
    """Correlations of x and x_coarse with bootstrap standard errors, shape `(k,)`."""

    raw: np.ndarray  # NaN if a side is constant
    raw_error: np.ndarray
    given_theta: np.ndarray  # NaN if theta explains 99 % of the variance of a side
    given_theta_error: np.ndarray  # given the regressions

    def table(self) -> list[str]:
        """A row for each summary; of many, those with the lowest correlations."""
        columns = self.raw, self.raw_error, self.given_theta, self.given_theta_error
        rows = [
            f"  {s:>7}  {plus_minus(*each[:2]):>13}  {plus_minus(*each[2:]):>13}"
            for s, each in enumerate(zip(*columns))
        ]
        title = "  summary    correlation    given theta"
        ranks = np.nan_to_num(np.abs(self.raw))
        return [title, *abridged(rows, ranks, "with a higher correlation")]


def pair_correlations(
    theta_low: np.ndarray,
    x_low: np.ndarray,
    theta: np.ndarray,
    x: np.ndarray,
    x_coarse: np.ndarray,
    *,
    seed: int = 0,
) -> Correlations:
    """Estimate the correlations of the two sides of pairs.

    Args:
        theta_low: Parameters of the lower level, shape `(n_low, d)`.
        x_low: Outputs of the lower level, shape `(n_low, k)`.
        theta: Parameters of the pairs, shape `(n, d)`.
        x: Outputs of the level, shape `(n, k)`.
        x_coarse: Outputs of the lower level at the same theta and noise, `(n, k)`.
        seed: Seed of the bootstrap.
    """
    both = varies(x) & varies(x_coarse)
    residual, residual_coarse = residuals_given_theta(
        theta_low, x_low, theta, x, x_coarse
    )
    noisy = both.copy()
    for left, side in ((residual, x), (residual_coarse, x_coarse)):
        noisy &= left.var(axis=0) > _MIN_NOISE * side.var(axis=0)
    return Correlations(
        *correlation(x, x_coarse, both, seed),
        *correlation(residual, residual_coarse, noisy, seed),
    )


def residuals_given_theta(
    theta_low: np.ndarray,
    x_low: np.ndarray,
    theta: np.ndarray,
    x: np.ndarray,
    x_coarse: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Residuals of x and x_coarse given theta; arguments as of `pair_correlations`."""
    means = Probe.fit(theta_low, x_low)(theta)
    residuals = []
    for mean, *sides in zip(means.T, x.T, x_coarse.T):
        inputs = np.column_stack([theta, mean])
        targets = np.column_stack(sides) - mean[:, np.newaxis]
        fit = Regression.fit(polynomials(inputs, 2), inputs, targets)
        residuals.append(fit.left_out(inputs, targets))
    both = np.stack(residuals, axis=2)
    return both[:, 0], both[:, 1]


def correlation(
    a: np.ndarray, b: np.ndarray, known: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Correlations of columns, and bootstrap standard errors; NaN if not `known`."""

    def of(chosen: np.ndarray | slice) -> np.ndarray:
        left, right = (v[chosen] - v[chosen].mean(axis=0) for v in (a, b))
        norm = np.sqrt((left**2).sum(axis=0) * (right**2).sum(axis=0))
        return (left * right).sum(axis=0) / np.where(norm > 0, norm, np.inf)

    rng = np.random.default_rng(seed)
    drawn = [of(rng.integers(len(a), size=len(a))) for _ in range(_NUM_RESAMPLES)]
    value, error = of(slice(None)), np.std(drawn, axis=0, ddof=1)
    return np.where(known, value, np.nan), np.where(known, error, np.nan)
