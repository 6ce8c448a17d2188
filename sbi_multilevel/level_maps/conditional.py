r"""Conditional maps: mean and residuals given theta, from low to high fidelity.

With :math:`m_L(\theta), m_H(\theta)` the means of low and high fidelity given theta,

.. math::

    \tilde x = m_H(\theta) + R\,\bigl(x_L - m_L(\theta)\bigr).

:math:`m_L` is a quadratic in theta from the many low-fidelity simulations, and
:math:`m_H = m_L + \Delta` with :math:`\Delta` linear in theta from the few
high-fidelity simulations, shrunk towards a constant by leave-one-out. No pairs are
needed. The kinds of map differ in R: `sbi_multilevel.level_maps.shift`,
`sbi_multilevel.level_maps.full` and `sbi_multilevel.level_maps.scaled`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.pipeline import Pipeline

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.regression import Design, Regression, log_sizes

_LOW_DEGREE, _CHANGE_DEGREE = 2, 1


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

    def change_of_mean(self, high: LevelArrays) -> tuple[Regression, np.ndarray]:
        r"""Regress the change :math:`\Delta` of the mean on theta.

        Returns:
            The regression, and the centered residuals of the high-fidelity simulations,
            shape `(m, k)`, as large as if the mean had not been fitted to them.
        """
        gaps = high.x - self.mean(high.theta)
        change = Regression.fit(self.features, high.theta, gaps)
        residuals = gaps - change(high.theta)
        n = len(residuals)
        freedom = max(n - 1 - high.theta.shape[1], n / 2)
        return change, (residuals - residuals.mean(axis=0)) * np.sqrt(n / freedom)


@dataclass(frozen=True, eq=False)
class ConditionalMap:
    r"""The map :math:`\tilde x = m_H(\theta) + s_H(\theta) R\, e / s_L(\theta)`.

    Args:
        low: Mean and scale of the low-fidelity simulations.
        change: :math:`\Delta`.
        turn: R, shape `(k, k)`; `None` leaves residuals as they are.
        log_scale_change: Logarithm of :math:`s_H / s_L` at theta; `None` where scales
            do not depend on theta.
    """

    low: LowMoments
    change: Regression
    turn: np.ndarray | None = None
    log_scale_change: Callable[[np.ndarray], np.ndarray] | None = None

    def __call__(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Map `x`, shape `(n, k)`, at `theta`, shape `(n, d)`."""
        mean = self.low.mean(theta)
        residuals = x - mean
        if self.log_scale_change is None:
            turned = residuals if self.turn is None else residuals @ self.turn.T
        else:
            assert self.turn is not None
            scale = np.exp(self.low.log_scale(theta))
            growth = np.exp(self.log_scale_change(theta))
            turned = growth * scale * ((residuals / scale) @ self.turn.T)
        return mean + self.change(theta) + turned
