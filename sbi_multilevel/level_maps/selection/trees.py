r"""Features of theta by boosted trees, for simulators that are not quadratic in theta.

Means and log scales of x are regressed on features of theta, which are quadratic by
default. A quadratic cannot follow a simulator that switches, saturates or dies out, but
the form can be learned from the many low-fidelity simulations, and it is often similar
at high fidelity. Predictions of gradient-boosted trees (Friedman 2001) for what
quadratics leave of the mean of each feature of x, and of the logarithm of its scale,
are therefore added to the features,

.. math::

    \phi(\theta) = \bigl(\theta,\ \theta \theta^\top,\
    t_1(\theta), \ldots, t_k(\theta),\ u_1(\theta), \ldots, u_k(\theta)\bigr).

Trees overfit the simulations that they are fitted to. The simulations (the first 10
000) are therefore cut into three parts, and predictions at a theta of one part are
those of trees fitted to the other two; at any other theta they are the mean of all
three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import GroupKFold
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.regression import (
    Regression,
    log_sizes,
    polynomials,
    spread,
)

_NUM_PARTS = 3
_MAX_SIMULATIONS = 10_000  # that trees are fitted to


@dataclass(frozen=True, eq=False)
class Trees:
    """Features of theta by trees that were not fitted to it.

    Args:
        quadratic: Quadratic features.
        parts: Trees fitted to all simulations but those of a part.
        left_out: Part of each theta of the simulations.
    """

    quadratic: Pipeline
    parts: Sequence[_Part]
    left_out: Mapping[bytes, int]

    @classmethod
    def fit(cls, simulations: LevelArrays) -> Trees:
        """Fit to many simulations in random order.

        Raises:
            ValueError: If there are fewer than three parameters.
        """
        quadratic = polynomials(simulations.theta, 2)
        rows = simulations.first(_MAX_SIMULATIONS)
        _, groups = np.unique(rows.theta, axis=0, return_inverse=True)
        parts, left_out = [], {}
        cuts = GroupKFold(_NUM_PARTS).split(rows.theta, groups=groups.ravel())
        for number, (seen, unseen) in enumerate(cuts):
            with _one_thread():
                parts.append(_Part.fit(rows[seen]))
            left_out |= {theta.tobytes(): number for theta in rows.theta[unseen]}
        return cls(quadratic, parts, left_out)

    def joined(self, theta: np.ndarray) -> np.ndarray:
        """Quadratic features and those of trees, shape `(n, p)`."""
        return np.concatenate((self.quadratic.transform(theta), self(theta)), axis=1)

    def __call__(self, theta: np.ndarray) -> np.ndarray:
        """Features of theta, shape `(n, d)`: shape `(n, 2 k)`, k of them means."""
        numbers = np.array([self.left_out.get(row.tobytes(), -1) for row in theta])
        is_own = numbers == np.arange(len(self.parts))[:, None]
        votes = np.where(numbers < 0, 1.0, is_own)
        with _one_thread():
            features = np.stack([part(theta) for part in self.parts])
        return np.einsum("pn,pnk->nk", votes / votes.sum(axis=0), features)


def _one_thread() -> threadpool_limits:
    """Many small fits are faster on one thread, above all on a busy machine."""
    return threadpool_limits(1, user_api="openmp")


@dataclass(frozen=True, eq=False)
class _Part:
    """Trees of means and of log scales."""

    mean: _Boosted
    log_scale: _Boosted

    @classmethod
    def fit(cls, rows: LevelArrays) -> _Part:
        quadratic = polynomials(rows.theta, 2)
        mean = _Boosted.fit(quadratic, rows.theta, rows.x)
        sizes = log_sizes(rows.x - mean(rows.theta))
        return cls(mean, _Boosted.fit(quadratic, rows.theta, sizes))

    def __call__(self, theta: np.ndarray) -> np.ndarray:
        trees = self.mean.trees, self.log_scale.trees
        return np.concatenate([tree.predict(theta) for tree in trees], axis=1)


@dataclass(frozen=True, eq=False)
class _Boosted:
    """A quadratic, and trees on its residuals over their standard deviation."""

    quadratic: Regression
    trees: MultiOutputRegressor
    scale: np.ndarray

    @classmethod
    def fit(
        cls, features: Pipeline, theta: np.ndarray, targets: np.ndarray
    ) -> _Boosted:
        quadratic = Regression.fit(features, theta, targets)
        residuals = targets - quadratic(theta)
        scale = spread(residuals)
        trees = HistGradientBoostingRegressor(early_stopping=True, random_state=0)
        fitted = MultiOutputRegressor(trees).fit(theta, residuals / scale)
        return cls(quadratic, fitted, scale)

    def __call__(self, theta: np.ndarray) -> np.ndarray:
        return self.quadratic(theta) + self.scale * self.trees.predict(theta)
