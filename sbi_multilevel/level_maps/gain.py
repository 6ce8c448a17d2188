r"""The map `"gain"`: a gain and an offset of each feature.

.. math::  \tilde x_j = a_j\, x_{L, j} + b_j .

With :math:`m_L(\theta)` the mean of low fidelity given theta, which the many
low-fidelity simulations show (`sbi_multilevel.level_maps.conditional`), the mean of
high fidelity is :math:`a_j\, m_{L, j}(\theta) + b_j`. Gain and offset are those of a
regression of the few high-fidelity simulations on :math:`m_{L, j}`: two numbers a
feature, whatever the number of parameters, where `"shift"` fits a slope for each
parameter. No pairs are needed. Residuals are multiplied by the gain as well, so that
the map is right where the levels differ in scale, unit or sign, and wrong where they
differ in their signal.

The change of the gain :math:`\delta_j = a_j - 1`, of variance :math:`v_j`, is shrunk by
the factor :math:`\max(0, 1 - v_j / \hat\delta_j^2)`, so that a gain that does not
differ from 1 by its standard error stays 1. With fewer than four simulations all gains
are 1.

Reference: James, Stein (1961), *Estimation with quadratic loss*, for the shrinkage.
"""

from __future__ import annotations

import numpy as np

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.base import LevelMap, LevelMapKind, register_level_map
from sbi_multilevel.level_maps.conditional import LowMoments, regress_on_mean
from sbi_multilevel.level_maps.regression import MIN_FOR_SLOPES


class Gain(LevelMapKind):
    """See the module."""

    name = "gain"

    def fit(self, low: LevelArrays, high: LevelArrays, seed: int) -> LevelMap:
        """Fit gains and offsets; pairs are not used."""
        mean = low.cached(LowMoments.fit).mean(high.theta)
        change = _change_of_gain(mean, high.x - mean)
        offset = high.x.mean(axis=0) - (1 + change) * mean.mean(axis=0)
        return lambda theta, x: (1 + change) * x + offset


def _change_of_gain(mean: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    r"""The shrunk :math:`\delta_j`, 0 where a mean does not vary, shape `(k,)`."""
    if len(gaps) < MIN_FOR_SLOPES:
        return np.zeros(gaps.shape[1])
    no_inputs = np.empty((len(gaps), 0))
    change, variance = regress_on_mean(no_inputs, mean, gaps)
    square = np.maximum(change**2, np.finfo(float).tiny)
    return change * np.clip(1 - variance / square, 0, 1)


register_level_map(Gain())
