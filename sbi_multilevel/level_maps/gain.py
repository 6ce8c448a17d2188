r"""The map `"gain"`: a gain and an offset of each feature.

With :math:`m_L(\theta)` the mean of low fidelity given theta, which the many
low-fidelity simulations show (`sbi_multilevel.level_maps.conditional`),

.. math::

    \tilde x_j = b_j + a_j \left[ m_{L, j}(\theta)
    + \sqrt{1 + h_j(\theta)}\, \bigl(x_{L, j} - m_{L, j}(\theta)\bigr) \right] .

Gain and offset are those of a regression of the few high-fidelity simulations on
:math:`m_{L, j}`: two numbers a feature, whatever the number of parameters, where
`"shift"` fits a slope for each parameter. No pairs are needed. Residuals are multiplied
by the gain as well, so that the map is right where the levels differ in scale, unit or
sign, and wrong where they differ in their signal.

The change of the gain :math:`\delta_j = a_j - 1`, of variance :math:`v_j`, is shrunk by
the factor :math:`f_j = \max(0, 1 - v_j / \hat\delta_j^2)`, so that a gain that does not
differ from 1 by its standard error stays 1. With fewer than four simulations all gains
are 1. The uncertainty of gain and offset,

.. math::

    h_j(\theta) = \frac1n + f_j \frac{(m_{L, j}(\theta) - \bar m_{L, j})^2}
    {\sum_i (m_{L, j}(\theta_i) - \bar m_{L, j})^2},

makes residuals as large as those of the posterior predictive distribution, see
`sbi_multilevel.level_maps.conditional`.

Reference: James, Stein (1961), *Estimation with quadratic loss*, for the shrinkage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.base import LevelMapKind, register_level_map
from sbi_multilevel.level_maps.conditional import LowMoments, regress_on_mean
from sbi_multilevel.level_maps.regression import MIN_FOR_SLOPES, Regression


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
        moved = mean + np.sqrt(1 + variance) * (x - mean)
        return self.offset + self.gain * moved


class Gain(LevelMapKind):
    """See the module."""

    name = "gain"

    def fit(self, low: LevelArrays, high: LevelArrays, seed: int) -> GainMap:
        """Fit gains and offsets; pairs are not used."""
        regression = low.cached(LowMoments.fit).mean
        mean = regression(high.theta)
        change, factor = _change_of_gain(mean, high.x - mean)
        center = mean.mean(axis=0)
        squares = ((mean - center) ** 2).sum(axis=0)
        slope_variance = np.divide(
            factor, squares, np.zeros_like(factor), where=factor > 0
        )
        offset = high.x.mean(axis=0) - (1 + change) * center
        return GainMap(
            regression, 1 + change, offset, center, slope_variance, len(high)
        )


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


register_level_map(Gain())
