r"""The maps that need no pairs: `none`, `gain`, and the conditional maps.

`"none"`: low-fidelity x as it is, :math:`\tilde x = x_L`.

`"gain"`: a gain and an offset of each feature. With :math:`m_L(\theta)` the mean of low
fidelity given theta (`sbi_multilevel.level_maps.conditional`),

.. math::

    \tilde x_j = b_j + a_j \left[ m_{L, j}(\theta)
    + \sqrt{1 + h_j(\theta)}\, \bigl(x_{L, j} - m_{L, j}(\theta)\bigr) \right] .

Gain and offset are those of a regression of the few high-fidelity simulations on
:math:`m_{L, j}`: two numbers a feature, whatever the number of parameters, where
`"shift"` fits a slope for each parameter. Residuals are multiplied by the gain as well,
so that the map is right where the levels differ in scale, unit or sign, and wrong where
they differ in their signal. It is not used for more than 200 features, as those of
images are far from quadratic in theta. The change of the gain :math:`\delta_j = a_j -
1`, of variance :math:`v_j`, is shrunk by the factor :math:`f_j = \max(0, 1 - v_j /
\hat\delta_j^2)` (James and Stein 1961), so that a gain that does not differ from 1 by
its standard error stays 1. With fewer than four simulations all gains are 1. The
uncertainty of gain and offset,

.. math::

    h_j(\theta) = \frac1n + f_j \frac{(m_{L, j}(\theta) - \bar m_{L, j})^2}
    {\sum_i (m_{L, j}(\theta_i) - \bar m_{L, j})^2},

makes residuals as large as those of the posterior predictive distribution.

**Conditional maps** correct the mean given theta, and differ in what they do with the
residuals; symbols are those of `sbi_multilevel.level_maps.conditional`.

`"shift"`: the residuals stay, :math:`R = 1`.

`"full"`: their covariance :math:`\Sigma_L` is replaced by :math:`\Sigma_H`, that of the
high-fidelity residuals with the shrinkage of Ledoit and Wolf (2004), *A
well-conditioned estimator for large-dimensional covariance matrices*. The linear map is
the optimal transport between two normals,

.. math::  R = \Sigma_L^{-1/2} (\Sigma_L^{1/2} \Sigma_H \Sigma_L^{1/2})^{1/2}
    \Sigma_L^{-1/2}.

`"scaled"`: as `"full"`, for residuals whose scale depends on theta. With :math:`x_L -
m_L = s_L(\theta)\, e`, the logarithms of the scales are regressed on theta like the
means, and the transport R acts on standardized residuals,

.. math::  \tilde x = m_H(\theta) + \sqrt{1 + h(\theta)}\; s_H(\theta)\, R\, e .

`"homoscedastic"`: noise that has the same distribution at every theta,

.. math::  \tilde x = m_H(\theta) + \sqrt{1 + h(\theta)}\; R\, e_\pi,

with :math:`e_\pi` the standardized residual of another low-fidelity simulation, drawn
at random. The maps above keep the residual at its own theta, and with it whatever
depends on theta at low fidelity alone: the scale of the noise, and the errors of a
quadratic :math:`m_L`. A network takes both for information on theta. This map keeps the
shape of the noise only.

`"normal"`: as `"homoscedastic"`, with :math:`\varepsilon \sim N(0, \Sigma_H)` in the
place of :math:`R\, e_\pi`. Of low fidelity only the mean is used. Residuals with heavy
tails that are rescaled to the variance of normal noise are too narrow at the center,
where most observations are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from sklearn.covariance import ledoit_wolf

from sbi_multilevel.level_maps.arrays import LevelArrays, drawn
from sbi_multilevel.level_maps.base import LevelMap, LevelMapKind
from sbi_multilevel.level_maps.conditional import (
    ConditionalMap,
    LowMoments,
    regress_on_mean,
)
from sbi_multilevel.level_maps.regression import (
    MIN_FOR_SLOPES,
    Regression,
    log_sizes,
    spread,
)

_MAX_LOG_CHANGE = 2.0  # of a scale, which few simulations may overestimate


class NoMap(LevelMapKind):
    """See the module."""

    name = "none"
    min_simulations = 1

    def fit(self, low: LevelArrays, high: LevelArrays, seed: int) -> LevelMap:
        """Fit nothing."""
        return lambda theta, x: x


@dataclass(frozen=True, eq=False)
class GainMap:
    r"""See the module.

    Args:
        mean: :math:`m_L`.
        gain: a, shape `(k,)`.
        offset: b, shape `(k,)`.
        center: :math:`\bar m_L`, shape `(k,)`.
        slope_variance: :math:`f_j` over the sum of squares, shape `(k,)`.
        count: n.
    """

    mean: Regression
    gain: np.ndarray
    offset: np.ndarray
    center: np.ndarray
    slope_variance: np.ndarray
    count: int

    def __call__(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Map `x`, shape `(n, k)`, at `theta`, shape `(n, d)`."""
        mean = self.mean(theta)
        variance = 1 / self.count + self.slope_variance * (mean - self.center) ** 2
        return self.offset + self.gain * (mean + np.sqrt(1 + variance) * (x - mean))


class Gain(LevelMapKind):
    """See the module."""

    name = "gain"
    max_features = 200

    def fit(self, low: LevelArrays, high: LevelArrays, seed: int) -> GainMap:
        """Fit gains and offsets."""
        low_mean = low.cached(LowMoments.fit).mean
        mean = low_mean(high.theta)
        change, factor = _change_of_gain(mean, high.x - mean)
        center = mean.mean(axis=0)
        squares = ((mean - center) ** 2).sum(axis=0)
        slope_variance = np.divide(
            factor, squares, np.zeros_like(factor), where=factor > 0
        )
        gain = 1 + change
        offset = high.x.mean(axis=0) - gain * center
        return GainMap(low_mean, gain, offset, center, slope_variance, len(high))


class Shift(LevelMapKind):
    """See the module."""

    name = "shift"
    min_simulations = 1

    def fit(self, low: LevelArrays, high: LevelArrays, seed: int) -> ConditionalMap:
        """Fit the change of the mean."""
        return low.cached(LowMoments.fit).change_of_mean(high)[0]


class Full(LevelMapKind):
    """See the module."""

    name = "full"
    max_features = 200

    def fit(self, low: LevelArrays, high: LevelArrays, seed: int) -> ConditionalMap:
        """Fit the change of the mean and the transport."""
        moments = low.cached(LowMoments.fit)
        shift, residuals = moments.change_of_mean(high)
        matrix = transport(moments.residuals, residuals)
        return replace(shift, turn=lambda theta, left: left @ matrix.T)


@dataclass(frozen=True, eq=False)
class ScaledTurn:
    r"""R of `"scaled"`, which depends on theta.

    Args:
        log_scale: Logarithm of :math:`s_L`.
        log_change: Logarithm of :math:`s_H / s_L`.
        matrix: Transport of standardized residuals, shape `(k, k)`.
    """

    log_scale: Regression
    log_change: Callable[[np.ndarray], np.ndarray]
    matrix: np.ndarray

    def __call__(self, theta: np.ndarray, left: np.ndarray) -> np.ndarray:
        """Turn residuals, shape `(n, k)`."""
        scale = np.exp(self.log_scale(theta))
        turned = (left / scale) @ self.matrix.T
        return np.exp(self.log_change(theta)) * scale * turned


class Scaled(LevelMapKind):
    """See the module."""

    name = "scaled"
    max_features = 200

    def fit(self, low: LevelArrays, high: LevelArrays, seed: int) -> ConditionalMap:
        """Fit the changes of mean and scale and the transport."""
        moments = low.cached(LowMoments.fit)
        shift, residuals = moments.change_of_mean(high)
        log_scale = moments.log_scale(high.theta)
        sizes = log_sizes(residuals) - log_scale
        log_change = _bounded(Regression.fit(moments.features, high.theta, sizes))
        matrix = transport(
            moments.standardized(low.theta),
            residuals / np.exp(log_scale + log_change(high.theta)),
        )
        return replace(shift, turn=ScaledTurn(moments.log_scale, log_change, matrix))


class Homoscedastic(LevelMapKind):
    """See the module."""

    name = "homoscedastic"
    max_features = 200

    def fit(self, low: LevelArrays, high: LevelArrays, seed: int) -> ConditionalMap:
        """Fit the change of the mean and the transport of the noise."""
        moments = low.cached(LowMoments.fit)
        sample = self._noise(low, moments, seed)
        sample -= sample.mean(axis=0)
        shift, residuals = moments.change_of_mean(high)
        noise = sample @ transport(sample, residuals).T
        return replace(shift, turn=lambda theta, left: drawn(noise, len(left), seed))

    def _noise(self, low: LevelArrays, moments: LowMoments, seed: int) -> np.ndarray:
        return moments.standardized(low.theta)


class Normal(Homoscedastic):
    """See the module."""

    name = "normal"

    def _noise(self, low: LevelArrays, moments: LowMoments, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).normal(size=low.x.shape)


KINDS = (NoMap(), Gain(), Shift(), Full(), Scaled(), Homoscedastic(), Normal())


def transport(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """R, the optimal transport between normals with the covariances of two samples.

    Args:
        source: Many centered residuals, shape `(n, k)`.
        target: Few centered residuals, shape `(m, k)`, whose correlation is shrunk.

    Returns:
        The matrix, shape `(k, k)`.
    """
    from_scale = spread(source)
    to_scale = np.sqrt((target**2).mean(axis=0))
    standardized = target / np.where(to_scale > 0, to_scale, 1.0)
    covariance = np.atleast_2d(np.cov((source / from_scale).T))
    shrunk, _ = ledoit_wolf(standardized, assume_centered=True)
    root, inverse = _roots(covariance)
    middle, _ = _roots(root @ shrunk @ root)
    return to_scale[:, None] * (inverse @ middle @ inverse) / from_scale[None, :]


def _bounded(regression: Regression) -> Callable[[np.ndarray], np.ndarray]:
    return lambda theta: np.clip(regression(theta), -_MAX_LOG_CHANGE, _MAX_LOG_CHANGE)


def _roots(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Square root and inverse square root of a covariance."""
    values, vectors = np.linalg.eigh(covariance)
    values = np.clip(values, 1e-12 * values.max(), None)
    root = (vectors * np.sqrt(values)) @ vectors.T
    return root, (vectors / np.sqrt(values)) @ vectors.T


def _change_of_gain(
    mean: np.ndarray, gaps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    r"""The shrunk :math:`\delta_j` and the factors :math:`f_j`, each of shape `(k,)`;
    0 where a mean does not vary."""
    if len(gaps) < MIN_FOR_SLOPES:
        return np.zeros(gaps.shape[1]), np.zeros(gaps.shape[1])
    no_inputs = np.empty((len(gaps), 0))
    change, variance = regress_on_mean(no_inputs, mean, gaps)
    square = np.maximum(change**2, np.finfo(float).tiny)
    factor = np.where(change == 0, 0.0, np.clip(1 - variance / square, 0, 1))
    return change * factor, factor
