r"""Conditional maps: mean and residuals given theta, from low to high fidelity.

With :math:`m_L(\theta), m_H(\theta)` the means of low and high fidelity given theta,

.. math::

    \tilde x = m_H(\theta) + \sqrt{1 + h(\theta)}\; R\,\bigl(x_L - m_L(\theta)\bigr).

:math:`m_L` is a quadratic in theta from the many low-fidelity simulations, and for
feature j

.. math::

    m_{H, j} = m_{L, j} + \delta_j\, m_{L, j} + \Delta_j(\theta)

with :math:`\Delta` linear in theta from the few high-fidelity simulations, shrunk
towards a constant by leave-one-out. :math:`\delta_j` is the coefficient of
:math:`m_{L, j}` in a regression on it and on theta: -1 where high fidelity has no
curvature and low fidelity does, and 0 where the curvature is the same. For k features
whose :math:`\delta_j` have the t-statistics :math:`t_j` with :math:`\nu` degrees of
freedom, the mean square by chance is :math:`c = \nu / (\nu - 2)`. All are shrunk by

.. math::

    1 - c \left( \tfrac1k \textstyle\sum_j t_j^2 \right)^{-1},

and are 0 unless the mean square exceeds 10 c: the errors of features are correlated,
and where the noise depends on theta the :math:`t_j` are too large.

Few high-fidelity simulations leave :math:`\Delta` uncertain. With centered features
:math:`\phi(\theta)` and the ridge penalty :math:`\lambda` of its regression, its
variance relative to that of the residuals is

.. math::

    h(\theta) = \frac1n + \phi(\theta)^\top
    \Bigl(\sum_i \phi_i \phi_i^\top + \lambda I\Bigr)^{-1} \phi(\theta).

As an observation may have any of the possible means, a simulation has the residuals of
its posterior predictive distribution, which are larger by :math:`\sqrt{1 + h}`. Without
this factor posteriors are too narrow. The uncertainty of :math:`\delta` is left out.

No pairs are needed. The kinds of map differ in R, see
`sbi_multilevel.level_maps.unpaired`.

Reference: James, Stein (1961), *Estimation with quadratic loss*, for the shrinkage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.pipeline import Pipeline

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.regression import (
    Design,
    Leverage,
    Regression,
    log_sizes,
    varies,
)

_LOW_DEGREE, _CHANGE_DEGREE = 2, 1
_MIN_FREEDOM = 4  # degrees of freedom of the coefficients of the mean
_FACTOR = 10.0  # by which their squares must exceed those of noise
_MAX_COEFFICIENT = 2.0  # of a larger one the curvature of the mean is but noise
_ROUNDING = 1e-8  # of squares


@dataclass(frozen=True, eq=False)
class ConditionalMap:
    r"""The map :math:`\tilde x = m_H + \sqrt{1 + h}\; R\,(x_L - m_L)`.

    Args:
        low_mean: :math:`m_L`.
        coefficients: :math:`\delta`, shape `(k,)`.
        linear: :math:`\Delta`.
        leverage: h.
        turn: R, a function of theta and of residuals, shape `(n, k)`; `None`
            leaves residuals as they are.
    """

    low_mean: Regression
    coefficients: np.ndarray
    linear: Regression
    leverage: Leverage
    turn: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None

    def __call__(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Map `x`, shape `(n, k)`, at `theta`, shape `(n, d)`."""
        low_mean = self.low_mean(theta)
        mean = low_mean + (self.linear(theta) + self.coefficients * low_mean)
        residuals = x - low_mean
        if self.turn is not None:
            residuals = self.turn(theta, residuals)
        return mean + self.leverage.growth(theta) * residuals


@dataclass(frozen=True, eq=False)
class LowMoments:
    """Mean and scale of low-fidelity simulations given theta, shared by all folds.

    Args:
        residuals: x minus its mean given theta, shape `(n, k)`.
        features: Features of theta for what changes between the levels.
        mean: :math:`m_L`.
        log_scale: Logarithm of :math:`s_L`, up to a constant.
    """

    residuals: np.ndarray
    features: Pipeline
    mean: Regression
    log_scale: Regression

    @classmethod
    def fit(cls, low: LevelArrays) -> LowMoments:
        """Regress low-fidelity simulations on theta."""
        quadratic = low.of_theta(Design.of, _LOW_DEGREE)
        mean = quadratic.fit(low.x)
        residuals = low.x - quadratic.predict(mean)
        log_scale = quadratic.fit(log_sizes(residuals))
        features = low.of_theta(Design.of, _CHANGE_DEGREE).features
        return cls(residuals, features, mean, log_scale)

    def standardized(self, theta: np.ndarray) -> np.ndarray:
        """The residuals, which are at `theta`, over their scale, shape `(n, k)`."""
        return self.residuals / np.exp(self.log_scale(theta))

    def change_of_mean(self, high: LevelArrays) -> tuple[ConditionalMap, np.ndarray]:
        """Regress the change of the mean on theta.

        Returns:
            The map that leaves residuals as they are, and the centered residuals of the
            high-fidelity simulations with the variance of the noise, shape `(m, k)`.
        """
        mean = self.mean(high.theta)
        gaps = high.x - mean
        coefficients = coefficients_of_mean(high.theta, mean, gaps)
        rest = gaps - coefficients * mean
        linear = Regression.fit(self.features, high.theta, rest)
        noise, leverage = linear.noise(high.theta, rest)
        return ConditionalMap(self.mean, coefficients, linear, leverage), noise


def coefficients_of_mean(
    inputs: np.ndarray, mean: np.ndarray, gaps: np.ndarray
) -> np.ndarray:
    r"""The shrunk coefficients :math:`\delta_j`, shape `(k,)`.

    Args:
        inputs: What else the gaps are regressed on, shape `(n, d)`: parameters of
            high-fidelity simulations, and of pairs also low-fidelity x.
        mean: :math:`m_L` at these parameters, shape `(n, k)`.
        gaps: The simulations minus that mean, shape `(n, k)`.

    Returns:
        The coefficients; 0 for a feature whose mean is linear in the inputs, or whose
        coefficient would exceed 2, and for all if the simulations are too few.
    """
    freedom = len(inputs) - inputs.shape[1] - 2
    if freedom < _MIN_FREEDOM:
        return np.zeros(gaps.shape[1])
    fitted, variance = regress_on_mean(inputs, mean, gaps)
    fitted = np.where(np.abs(fitted) > _MAX_COEFFICIENT, 0.0, fitted)
    known = variance > 0
    if not known.any():
        return fitted
    size = np.mean(fitted[known] ** 2 / variance[known])
    by_chance = freedom / (freedom - 2)
    if size <= _FACTOR * by_chance:
        return np.zeros_like(fitted)
    return fitted * (1 - by_chance / size)


def regress_on_mean(
    inputs: np.ndarray, mean: np.ndarray, gaps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficient of each mean in a regression on it and on the inputs.

    Args:
        inputs: Shape `(n, d)`, with d + 2 below n.
        mean: Shape `(n, k)`.
        gaps: What is regressed, shape `(n, k)`.

    Returns:
        The coefficients, 0 where a mean is linear in the inputs, and their variances,
        0 where the fit is exact or there is no coefficient, each of shape `(k,)`.
    """
    constant = np.ones((len(inputs), 1))
    basis = np.linalg.qr(np.hstack((constant, inputs - inputs.mean(axis=0))))[0]
    curved, rest = (each - basis @ (basis.T @ each) for each in (mean, gaps))
    squares = np.sum(curved**2, axis=0)
    is_curved = squares > _ROUNDING * np.sum((mean - mean.mean(axis=0)) ** 2, axis=0)
    squares = np.where(is_curved & varies(mean), squares, np.inf)
    fitted = np.sum(curved * rest, axis=0) / squares
    freedom = len(inputs) - inputs.shape[1] - 2
    residuals = rest - fitted * curved
    return fitted, np.sum(residuals**2, axis=0) / freedom / squares
