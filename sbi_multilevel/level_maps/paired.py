r"""The maps that need pairs: the difference between the sides of pairs.

`"paired"`: by linear regression,

.. math::

    \tilde x = x_L + d(x_L, \theta) + \sqrt{1 + h(x_L, \theta)}\; \varepsilon, \qquad
    d(x_\mathrm{coarse}, \theta) \approx x - x_\mathrm{coarse}.

`d` is linear in low-fidelity x and theta, with a ridge penalty chosen by leave-one-out.
What low-fidelity x does not determine is noise: :math:`\varepsilon` is the vector of
residuals of one pair, drawn with replacement, over :math:`\sqrt{1 - h}`, so that it has
the variance of the noise. With :math:`1 + h` that of the posterior predictive
distribution is drawn, in which d is uncertain, most where pairs are far; h is as in
`sbi_multilevel.level_maps.conditional`, with the features of d.

`"paired_quadratic"`: the same, but `d` is quadratic in x and theta.

`"paired_process"`: by a Gaussian process of low-fidelity x and theta for each feature
(`sbi_multilevel.level_maps.process`),

.. math::  \tilde x = x_L + d(x_L, \theta) + s(x_L, \theta)\, \varepsilon

with its mean `d` and its predictive standard deviation `s`, which is large far from the
pairs. The noise :math:`\varepsilon` is the vector of leave-one-out residuals of one
pair over their own standard deviations, so that correlations of features are kept.

Where the levels differ in the curvature of their means, :math:`\delta\, m_L(\theta)` is
added to d, with :math:`\delta` that of a regression of the difference on :math:`m_L`,
theta and low-fidelity x, shrunk as in `sbi_multilevel.level_maps.conditional`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.preprocessing import StandardScaler

from sbi_multilevel.level_maps.arrays import LevelArrays, drawn
from sbi_multilevel.level_maps.base import LevelMap, LevelMapKind
from sbi_multilevel.level_maps.conditional import LowMoments, coefficients_of_mean
from sbi_multilevel.level_maps.process import Process
from sbi_multilevel.level_maps.regression import (
    Leverage,
    Regression,
    blocks,
    polynomials,
    spread,
)

# cost grows with the cube of the pairs, and with the features
_MAX_PAIRS, _MAX_ENTRIES = 400, 1_500
_BLOCK = 2_000


@dataclass(frozen=True, eq=False)
class PairedMap:
    """Adds the difference by regression.

    Args:
        difference: Regression of the difference between the levels.
        residuals: Residuals of the pairs with the variance of the noise, shape
            `(m, k)`.
        leverage: h.
        seed: Seed of the draws of residuals.
    """

    difference: Regression
    residuals: np.ndarray
    leverage: Leverage
    seed: int

    def __call__(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Map `x`, shape `(n, k)`, at `theta`, shape `(n, d)`."""
        inputs = np.hstack((x, theta))
        noise = drawn(self.residuals, len(x), self.seed)
        return x + self.difference(inputs) + self.leverage.growth(inputs) * noise


@dataclass(frozen=True, eq=False)
class ProcessMap:
    """Adds the difference by processes.

    Args:
        inputs: Standardizes low-fidelity x and theta.
        processes: Process of the standardized difference of each feature.
        mean: Mean of the difference of each feature, shape `(k,)`.
        scale: Standard deviation of the difference of each feature, shape `(k,)`.
        residuals: Standardized leave-one-out residuals of the pairs, shape `(m, k)`.
        seed: Seed of the draws of residuals.
    """

    inputs: StandardScaler
    processes: Sequence[Process]
    mean: np.ndarray
    scale: np.ndarray
    residuals: np.ndarray
    seed: int

    def __call__(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Map `x`, shape `(n, k)`, at `theta`, shape `(n, d)`."""
        noise, moved = drawn(self.residuals, len(x), self.seed), np.empty_like(x)
        for rows in blocks(len(x), _BLOCK):
            inputs = self.inputs.transform(np.hstack((x[rows], theta[rows])))
            predicted = [process.predict(inputs) for process in self.processes]
            mean, deviation = (np.stack(each, axis=1) for each in zip(*predicted))
            change = mean + deviation * noise[rows]
            moved[rows] = x[rows] + self.mean + self.scale * change
        return moved


class Paired(LevelMapKind):
    """See the module."""

    name = "paired"
    needs_pairs = True
    max_features = 2_000
    degree = 1

    def fit(self, low: LevelArrays, high: LevelArrays, seed: int) -> LevelMap:
        """Fit the difference to pairs, beside the part of the mean."""
        assert high.x_coarse is not None
        inputs, gaps = np.hstack((high.x_coarse, high.theta)), high.x - high.x_coarse
        low_mean = low.cached(LowMoments.fit).mean
        mean = low_mean(high.theta)
        coefficients = coefficients_of_mean(inputs, mean, gaps)
        if not coefficients.any():
            return self._fit(low, inputs, gaps, seed)
        rest = high.x - coefficients * mean - high.x_coarse
        move = self._fit(low, inputs, rest, seed)
        return lambda theta, x: move(theta, x) + coefficients * low_mean(theta)

    def _fit(
        self, low: LevelArrays, inputs: np.ndarray, gaps: np.ndarray, seed: int
    ) -> LevelMap:
        """Fit d.

        Args:
            low: Low-fidelity simulations.
            inputs: Low-fidelity x and theta of the pairs, shape `(m, k + d_theta)`.
            gaps: Differences between their sides, shape `(m, k)`.
            seed: Seed of the noise.
        """
        features = low.cached(self._features)
        difference = Regression.fit(features, inputs, gaps)
        return PairedMap(difference, *difference.noise(inputs, gaps), seed)

    def _features(self, low: LevelArrays):
        return polynomials(np.hstack((low.x, low.theta)), self.degree)


class PairedQuadratic(Paired):
    """See the module."""

    name = "paired_quadratic"
    max_features = 50
    degree = 2


class PairedProcess(Paired):
    """See the module."""

    name = "paired_process"
    max_features = 12
    is_local = True

    def _fit(
        self, low: LevelArrays, inputs: np.ndarray, gaps: np.ndarray, seed: int
    ) -> LevelMap:
        """Fit processes to pairs, to the first if they are many."""
        scaler, most = low.cached(_scaler), _MAX_ENTRIES // gaps.shape[1]
        at = scaler.transform(inputs[:_MAX_PAIRS][:most])
        gaps = gaps[:_MAX_PAIRS][:most]
        mean, scale = gaps.mean(axis=0), spread(gaps)
        processes = [Process.fit(at, each) for each in ((gaps - mean) / scale).T]
        residuals = np.stack([each.left_out() for each in processes], axis=1)
        return ProcessMap(scaler, processes, mean, scale, residuals, seed)


def _scaler(low: LevelArrays) -> StandardScaler:
    return StandardScaler().fit(np.hstack((low.x, low.theta)))


KINDS = (Paired(), PairedQuadratic(), PairedProcess())
