r"""Conditional maps: mean and residuals of a cheap simulator, given theta, set right.

With :math:`m_L(\theta), m_H(\theta)` the means of low and high fidelity given theta,

.. math::

    \tilde x = m_H(\theta) + R\,\bigl(x_L - m_L(\theta)\bigr).

:math:`m_L` is a quadratic in theta from the many cheap rows, :math:`m_H = m_L + \Delta`
with :math:`\Delta` linear in theta from the few dear ones, shrunk towards a constant as
leave-one-out says. No pairs are needed. The residuals are turned by R:

`"shift"`
    :math:`R = 1`: means only.

`"full"`
    The covariance :math:`\Sigma_H` of the dear residuals, shrunk as Ledoit and Wolf
    (2004) say, is put in place of the cheap :math:`\Sigma_L` by the linear map that
    moves a normal the least (optimal transport),
    :math:`R = \Sigma_L^{-1/2} (\Sigma_L^{1/2} \Sigma_H \Sigma_L^{1/2})^{1/2}
    \Sigma_L^{-1/2}`.

`"scaled"`
    As `"full"`, for residuals whose scale depends on theta,
    :math:`x_L - m_L = s_L(\theta)\, e`: their logarithms are regressed on theta like
    the means, and R acts between standardised residuals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.covariance import ledoit_wolf
from sklearn.pipeline import Pipeline

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.regression import (
    Regression,
    log_sizes,
    polynomials,
    spread,
)

ConditionalKind = Literal["shift", "full", "scaled"]

_LOW_DEGREE, _CHANGE_DEGREE = 2, 1
# the change of a log scale that few rows may claim at most
_MAX_LOG_SCALE = 2.0


@dataclass(frozen=True, eq=False)
class LowMean:
    """What is known of the cheap rows alone, shared by the maps of all folds.

    Args:
        rows: The cheap rows.
        features: Features of theta for what changes between the levels.
        mean: :math:`m_L`.
        log_scale: Logarithm of :math:`s_L`, up to a constant.
    """

    rows: LevelArrays
    features: Pipeline
    mean: Regression
    log_scale: Regression

    @classmethod
    def fit(cls, rows: LevelArrays) -> LowMean:
        """Regress the cheap rows on theta."""
        quadratic = polynomials(rows.theta, _LOW_DEGREE)
        mean = Regression.fit(quadratic, rows.theta, rows.x)
        sizes = log_sizes(rows.x - mean(rows.theta))
        return cls(
            rows,
            polynomials(rows.theta, _CHANGE_DEGREE),
            mean,
            Regression.fit(quadratic, rows.theta, sizes),
        )


@dataclass(frozen=True, eq=False)
class ConditionalMap:
    r"""The map :math:`\tilde x = m_H(\theta) + s_H(\theta) R\, e / s_L(\theta)`.

    Args:
        low: Mean and scale of the cheap rows.
        change: :math:`\Delta`.
        turn: R, shape `(k, k)`; `None` leaves residuals as they are.
        log_scale_change: Logarithm of :math:`s_H / s_L` at theta; `None` where scales
            do not depend on theta.
    """

    low: LowMean
    change: Regression
    turn: np.ndarray | None
    log_scale_change: Callable[[np.ndarray], np.ndarray] | None

    def __call__(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Move rows `x`, shape `(n, k)`, at `theta`, shape `(n, d)`."""
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


def fit_conditional(
    kind: ConditionalKind, low: LowMean, high: LevelArrays
) -> ConditionalMap:
    """Fit a conditional map.

    Args:
        kind: `"shift"`, `"full"` or `"scaled"`.
        low: What is known of the cheap rows.
        high: Dear rows; pairs are not used.
    """
    gaps = high.x - low.mean(high.theta)
    change = Regression.fit(low.features, high.theta, gaps)
    if kind == "shift":
        return ConditionalMap(low, change, None, None)
    dear = _unconstrained(gaps - change(high.theta), high.theta.shape[1])
    cheap = low.rows.x - low.mean(low.rows.theta)
    growth = None
    if kind == "scaled":
        known = low.log_scale(high.theta)
        growth = _bounded(
            Regression.fit(low.features, high.theta, log_sizes(dear) - known)
        )
        cheap = cheap / np.exp(low.log_scale(low.rows.theta))
        dear = dear / np.exp(known + growth(high.theta))
    return ConditionalMap(low, change, transport(cheap, dear), growth)


def _unconstrained(residuals: np.ndarray, num_parameters: int) -> np.ndarray:
    """Residuals centred, and as large as if the mean had not been fitted to them."""
    n = len(residuals)
    freedom = max(n - 1 - num_parameters, n / 2)
    return (residuals - residuals.mean(axis=0)) * np.sqrt(n / freedom)


def _bounded(regression: Regression) -> Callable[[np.ndarray], np.ndarray]:
    return lambda theta: np.clip(regression(theta), -_MAX_LOG_SCALE, _MAX_LOG_SCALE)


def transport(cheap: np.ndarray, dear: np.ndarray) -> np.ndarray:
    """R, the optimal transport between normals with the covariances of two samples.

    Args:
        cheap: Many centred rows, shape `(n, k)`.
        dear: Few centred rows, shape `(m, k)`, whose correlation is shrunk.
    """
    from_scale = spread(cheap)
    to_scale = np.sqrt((dear**2).mean(axis=0))
    to_scale = np.where(to_scale > 0, to_scale, 1.0)
    source = np.atleast_2d(np.cov((cheap / from_scale).T))
    target, _ = ledoit_wolf(dear / to_scale, assume_centered=True)
    root, inverse = _roots(source)
    middle, _ = _roots(root @ target @ root)
    turn = inverse @ middle @ inverse
    return to_scale[:, None] * turn / from_scale[None, :]


def _roots(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Square root and inverse square root of a covariance."""
    values, vectors = np.linalg.eigh(covariance)
    values = np.clip(values, 1e-12 * values.max(), None)
    root = (vectors * np.sqrt(values)) @ vectors.T
    return root, (vectors / np.sqrt(values)) @ vectors.T
