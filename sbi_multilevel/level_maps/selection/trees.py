r"""What boosted trees know of cheap rows, beyond quadratics of theta.

Means and log scales of x are regressed on features of theta, quadratic ones at first.
Where a simulator switches, saturates or dies out, no quadratic follows, but there are
many cheap rows to learn the form from, and that of dear rows is often like it. So the
features of theta are joined by predictions of gradient-boosted trees (Friedman
2001) of what quadratics leave: of the mean of each feature of x, and of the logarithm
of its scale,

.. math::

    \phi(\theta) = \bigl(\theta,\ \theta \theta^\top,\
    t_1(\theta), \ldots, t_k(\theta),\ u_1(\theta), \ldots, u_k(\theta)\bigr).

Trees remember the rows that they were fitted to. LevelArrays (the first 10 000) are therefore
cut in three parts and each theta has the predictions of trees that have not seen it:
one of three at these rows, the mean of all at any other.
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
_MAX_ROWS = 10_000  # that trees are fitted to


@dataclass(frozen=True, eq=False)
class Trees:
    """Features of theta by trees that have not seen it.

    Args:
        quadratic: Quadratic features, which trees are beside.
        parts: Trees fitted to all rows but those of a part.
        left_out: By which of them each theta of the rows was not seen.
    """

    quadratic: Pipeline
    parts: Sequence[_Part]
    left_out: Mapping[bytes, int]

    @classmethod
    def fit(cls, rows: LevelArrays) -> Trees:
        """Fit to many rows in an order that says nothing.

        Raises:
            ValueError: If there are fewer than three parameters.
        """
        quadratic = polynomials(rows.theta, 2)
        rows = rows.first(_MAX_ROWS)
        _, groups = np.unique(rows.theta, axis=0, return_inverse=True)
        parts, left_out = [], {}
        cuts = GroupKFold(_NUM_PARTS).split(rows.theta, groups=groups.ravel())
        for number, (seen, unseen) in enumerate(cuts):
            with _one_thread():
                parts.append(_Part.fit(rows[seen]))
            left_out |= {theta.tobytes(): number for theta in rows.theta[unseen]}
        return cls(quadratic, parts, left_out)

    def joined(self, theta: np.ndarray) -> np.ndarray:
        """Quadratic features and those of trees, side by side."""
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
    """Threads of many small fits wait for each other, and most on a busy machine."""
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
    """A quadratic, and trees on its residuals in units of their spread."""

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
