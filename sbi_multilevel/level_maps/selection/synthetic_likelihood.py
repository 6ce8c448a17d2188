r"""A synthetic likelihood: how well moved rows resemble dear ones, without a network.

Moved rows are modelled by a semiparametric synthetic likelihood (Wood 2010; An, Nott,
Drovandi 2020). Given theta, the standardised and decorrelated residuals

.. math::  z = \Lambda^{-1/2} V^\top \, \frac{\tilde x - m(\theta)}{s(\theta)}

are independent, each with a kernel density estimate (and 2 % of a wide normal, for
rows beyond all that were seen). Means m and log scales are quadratic in theta, or
linear in richer features of it (`sbi_multilevel.level_maps.selection.scorer`), V and
:math:`\Lambda` diagonalise the correlation of the residuals. Dear rows that the map has
not seen are judged under it: by :math:`\log \tilde p(x \mid \theta)` where a likelihood
is to be learned, and by the posterior that it implies where posteriors are,

.. math::

    \log \frac{\tilde p(x \mid \theta)}
    {\frac1m \sum_j \tilde p(x \mid \theta_j)}, \qquad \theta_j \sim p(\theta),

how many nats more than the prior it gives the true theta. This is no model to infer
with, but it takes seconds, and it ranks maps as networks trained on the moved rows do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.special import logsumexp
from scipy.stats import iqr, norm

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.regression import (
    Regression,
    log_sizes,
    polynomials,
    spread,
)

_NUM_PRIOR = 2_000  # thetas that stand for the prior
_MIN_EIGENVALUE = 1e-6  # of a correlation matrix
_GRID = np.linspace(-10, 10, 801)
_WIDE_SHARE, _WIDE_SCALE = 0.02, 3.0


@dataclass(frozen=True, eq=False)
class SyntheticLikelihood:
    """See the module.

    Args:
        mean: Mean of each feature given theta.
        log_scale: Logarithm of the scale of each feature, up to `scale`.
        scale: Standard deviation of the residuals over `exp(log_scale)`.
        whiten: Matrix that decorrelates standardised residuals, shape `(k, k)`.
        log_determinant: Logarithm of its determinant.
        densities: Density of each entry of z at the nodes of a grid, shape `(k, g)`.
    """

    mean: Regression
    log_scale: Regression
    scale: np.ndarray
    whiten: np.ndarray
    log_determinant: float
    densities: np.ndarray

    @classmethod
    def fit(cls, rows: LevelArrays, degree: int = 2) -> SyntheticLikelihood:
        """Fit to many rows.

        Args:
            rows: The rows.
            degree: Of the polynomials of theta that means and log scales are.
        """
        features = polynomials(rows.theta, degree)
        mean = Regression.fit(features, rows.theta, rows.x)
        residuals = rows.x - mean(rows.theta)
        log_scale = Regression.fit(features, rows.theta, log_sizes(residuals))
        residuals = residuals / np.exp(log_scale(rows.theta))
        scale = spread(residuals)
        correlation = np.atleast_2d(np.cov((residuals / scale).T))
        values, vectors = np.linalg.eigh(correlation)
        values = np.clip(values, _MIN_EIGENVALUE, None)
        whiten = vectors / np.sqrt(values)
        densities = [_density(column) for column in ((residuals / scale) @ whiten).T]
        log_determinant = -0.5 * np.log(values).sum()
        return cls(mean, log_scale, scale, whiten, log_determinant, np.stack(densities))

    def log_prob(self, x: np.ndarray, theta: np.ndarray) -> np.ndarray:
        """Log density of each x, shape `(m, k)`, at its theta, shape `(m, d)`."""
        return self._log_prob(x, *self._moments(theta))

    def _moments(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.mean(theta), np.exp(self.log_scale(theta)) * self.scale

    def _log_prob(
        self, x: np.ndarray, mean: np.ndarray, scale: np.ndarray
    ) -> np.ndarray:
        z = ((x - mean) / scale) @ self.whiten
        near = [
            np.interp(column, _GRID, density, left=0.0, right=0.0)
            for column, density in zip(z.T, self.densities)
        ]
        far = norm.pdf(z, scale=_WIDE_SCALE).T
        density = (1 - _WIDE_SHARE) * np.stack(near) + _WIDE_SHARE * far
        log_density = np.log(np.maximum(density, 1e-300)).sum(axis=0)
        return log_density - np.log(scale).sum(axis=1) + self.log_determinant

    def log_likelihood(self, rows: LevelArrays) -> np.ndarray:
        """Log density of each row at its own theta, shape `(n,)`."""
        return self.log_prob(rows.x, rows.theta)

    def log_posterior_ratio(self, rows: LevelArrays, prior: np.ndarray) -> np.ndarray:
        """Log of posterior over prior at the theta of each row, shape `(n,)`.

        Args:
            rows: The rows.
            prior: Draws from the prior in any order that is random, shape `(m, d)`.
        """
        prior = prior[:_NUM_PRIOR]
        moments = self._moments(prior)
        evidence = [logsumexp(self._log_prob(x, *moments)) for x in rows.x]
        return self.log_likelihood(rows) - np.array(evidence) + np.log(len(prior))


def _density(values: np.ndarray) -> np.ndarray:
    """Kernel density estimate at the nodes of the grid, by Silverman's rule."""
    step = _GRID[1] - _GRID[0]
    edges = np.append(_GRID - step / 2, _GRID[-1] + step / 2)
    histogram, _ = np.histogram(values, edges)
    histogram = histogram / (len(values) * step)
    width = min(values.std(), iqr(values) / 1.349 or np.inf)
    bandwidth = 0.9 * width * len(values) ** -0.2
    return gaussian_filter1d(histogram, max(bandwidth / step, 1.0))
