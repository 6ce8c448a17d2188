r"""A synthetic likelihood: how well mapped simulations resemble high-fidelity ones.

Mapped simulations are modelled by a semiparametric synthetic likelihood (Wood 2010; An,
Nott, Drovandi 2020), without a network. Given theta, the standardized and decorrelated
residuals

.. math::  z = \Lambda^{-1/2} V^\top \, \frac{\tilde x - m(\theta)}{s(\theta)}

are independent, each with a kernel density estimate (and 2 % of a wide normal, for
values beyond the range of the simulations). Means m and log scales are quadratic in
theta, or linear in richer features of it
(`sbi_multilevel.level_maps.selection.scorer`); V and :math:`\Lambda` diagonalize the
correlation of the residuals. Held-out high-fidelity simulations are scored by
:math:`\log \tilde p(x \mid \theta)` where a likelihood is to be learned, and by the
posterior that it implies where posteriors are,

.. math::

    \log \frac{\tilde p(x \mid \theta)}
    {\frac1m \sum_j \tilde p(x \mid \theta_j)}, \qquad \theta_j \sim p(\theta),

the gain over the prior in nats at the true theta. It takes seconds, and ranks maps as
networks do that are trained on the mapped simulations.
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

_NUM_PRIOR = 2_000  # draws from the prior
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
        whiten: Matrix that decorrelates standardized residuals, shape `(k, k)`.
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
    def fit(cls, simulations: LevelArrays, degree: int = 2) -> SyntheticLikelihood:
        """Fit to many simulations.

        Args:
            simulations: The simulations.
            degree: Degree in theta of means and log scales.
        """
        theta, x = simulations.theta, simulations.x
        features = polynomials(theta, degree)
        mean = Regression.fit(features, theta, x)
        residuals = x - mean(theta)
        log_scale = Regression.fit(features, theta, log_sizes(residuals))
        residuals = residuals / np.exp(log_scale(theta))
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

    def log_likelihood(self, simulations: LevelArrays) -> np.ndarray:
        """Log density of each x at its own theta, shape `(n,)`."""
        return self.log_prob(simulations.x, simulations.theta)

    def log_posterior_ratio(
        self, simulations: LevelArrays, prior: np.ndarray
    ) -> np.ndarray:
        """Log of posterior over prior at the theta of each simulation, shape `(n,)`.

        Args:
            simulations: The simulations.
            prior: Draws from the prior in random order, shape `(m, d)`.
        """
        prior = prior[:_NUM_PRIOR]
        moments = self._moments(prior)
        evidence = [logsumexp(self._log_prob(x, *moments)) for x in simulations.x]
        likelihood = self.log_likelihood(simulations)
        return likelihood - np.array(evidence) + np.log(len(prior))


def _density(values: np.ndarray) -> np.ndarray:
    """Kernel density estimate at the nodes of the grid, by Silverman's rule."""
    step = _GRID[1] - _GRID[0]
    edges = np.append(_GRID - step / 2, _GRID[-1] + step / 2)
    histogram, _ = np.histogram(values, edges)
    histogram = histogram / (len(values) * step)
    width = min(values.std(), iqr(values) / 1.349 or np.inf)
    bandwidth = 0.9 * width * len(values) ** -0.2
    return gaussian_filter1d(histogram, max(bandwidth / step, 1.0))
