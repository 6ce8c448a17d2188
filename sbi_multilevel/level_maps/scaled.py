r"""The map `"scaled"`: as `"full"`, for residuals whose scale depends on theta.

With :math:`x_L - m_L = s_L(\theta)\, e`, the logarithms of the scales are regressed on
theta like the means, and the transport R acts on standardized residuals,

.. math::  \tilde x = m_H(\theta) + s_H(\theta)\, R\, e .
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.base import LevelMapKind, register_level_map
from sbi_multilevel.level_maps.conditional import ConditionalMap, LowMoments
from sbi_multilevel.level_maps.full import transport
from sbi_multilevel.level_maps.regression import Regression, log_sizes

_MAX_LOG_CHANGE = 2.0  # of a scale, which few simulations may overestimate


class Scaled(LevelMapKind):
    """See the module."""

    name = "scaled"
    max_features = 200

    def fit(self, low: LevelArrays, high: LevelArrays, seed: int) -> ConditionalMap:
        """Fit the changes of mean and scale and the transport; pairs are not used."""
        moments = low.cached(LowMoments.fit)
        change, residuals = moments.change_of_mean(high)
        log_scale = moments.log_scale(high.theta)
        sizes = log_sizes(residuals) - log_scale
        growth = _bounded(Regression.fit(moments.features, high.theta, sizes))
        turn = transport(
            moments.residuals / np.exp(moments.log_scale(low.theta)),
            residuals / np.exp(log_scale + growth(high.theta)),
        )
        return ConditionalMap(moments, change, turn, growth)


def _bounded(regression: Regression) -> Callable[[np.ndarray], np.ndarray]:
    return lambda theta: np.clip(regression(theta), -_MAX_LOG_CHANGE, _MAX_LOG_CHANGE)


register_level_map(Scaled())
