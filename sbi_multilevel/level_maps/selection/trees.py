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

for those features of x that trees predict at all. Trees overfit the simulations that
they are fitted to. The parameters are therefore cut into three parts by a hash of their
bits, and predictions at a theta are those of trees fitted to the simulations (of the
first 6 000) in the other two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from sbi_multilevel.level_maps.arrays import LevelArrays, bit_patterns
from sbi_multilevel.level_maps.regression import (
    Design,
    Regression,
    log_sizes,
    polynomials,
    spread,
)

_NUM_PARTS = 3
_MAX_SIMULATIONS = 6_000  # that trees are fitted to
_BOOSTING = {
    "early_stopping": True,
    "learning_rate": 0.15,
    "max_iter": 70,
    "max_leaf_nodes": 10,
    "random_state": 0,
}
_MIN_GAIN = 0.005  # nats a simulation, of trees for a feature of x
_MIN_TOTAL_GAIN = 0.03


@dataclass(frozen=True, eq=False)
class Trees:
    """Features of theta by trees that were not fitted to it.

    Args:
        quadratic: Quadratic features.
        parts: Trees fitted to all simulations but those of a part.
    """

    quadratic: Pipeline
    parts: Sequence[_Part]

    @classmethod
    def fit(cls, simulations: LevelArrays) -> Trees | None:
        """Fit to many simulations in random order.

        Trees of the first part show which features of x are predicted, by how much they
        gain over quadratics at the parameters of that part.

        Returns:
            The features; `None` if trees gain next to nothing.
        """
        rows = simulations.first(_MAX_SIMULATIONS)
        numbers = part_of(rows.theta)
        quadratic = polynomials(rows.theta, 2)
        every = np.ones((2, rows.x.shape[1]), dtype=bool)
        with _one_thread():
            first = _Part.fit(quadratic, rows[numbers != 0], every)
            gains = first.gains(rows[numbers == 0])
            kept = gains > _MIN_GAIN
            if gains[kept].sum() < _MIN_TOTAL_GAIN:
                return None
            others = [
                _Part.fit(quadratic, rows[numbers != number], kept)
                for number in range(1, _NUM_PARTS)
            ]
        return cls(quadratic, [first.only(kept), *others])

    def joined(self, theta: np.ndarray) -> np.ndarray:
        """Quadratic features and those of trees, shape `(n, p)`."""
        return np.concatenate((self.quadratic.transform(theta), self(theta)), axis=1)

    def __call__(self, theta: np.ndarray) -> np.ndarray:
        """Features of theta, shape `(n, d)`: of means, then of log scales."""
        numbers = part_of(theta)
        features = np.empty((len(theta), self.parts[0].num_trees))
        with _one_thread():
            for number in np.unique(numbers):
                rows = numbers == number
                features[rows] = self.parts[number](theta[rows])
        return features


def part_of(theta: np.ndarray) -> np.ndarray:
    """Number of the part of each theta, the same for the same bits, shape `(n,)`."""
    generator = np.random.default_rng(0)
    factors = generator.integers(2**63, size=theta.shape[1], dtype=np.uint64)
    # the highest bits of a product with odd numbers depend on all bits
    hashes = (bit_patterns(theta) * (2 * factors + 1)).sum(axis=1, dtype=np.uint64)
    return ((hashes >> np.uint64(32)) % _NUM_PARTS).astype(int)


def _one_thread() -> threadpool_limits:
    """Many small fits are faster on one thread, above all on a busy machine."""
    return threadpool_limits(1, user_api="openmp")


@dataclass(frozen=True, eq=False)
class _Part:
    """Trees of means and of log scales."""

    mean: _Boosted
    log_scale: _Boosted

    @classmethod
    def fit(cls, features: Pipeline, rows: LevelArrays, kept: np.ndarray) -> _Part:
        """Fit trees to the means and the log scales that are `kept`."""
        design = Design(features, rows.theta)
        mean = _Boosted.fit(design, rows.x, kept[0])
        sizes = log_sizes(rows.x - mean(rows.theta))
        return cls(mean, _Boosted.fit(design, sizes, kept[1]))

    def only(self, kept: np.ndarray) -> _Part:
        """The same without the trees that are not `kept`, shape `(2, k)`."""
        return _Part(self.mean.only(kept[0]), self.log_scale.only(kept[1]))

    def gains(self, rows: LevelArrays) -> np.ndarray:
        """Gain of trees over quadratics in nats a simulation, shape `(2, k)`."""
        by_quadratic = rows.x - self.mean.quadratic(rows.theta)
        by_trees = rows.x - self.mean(rows.theta)
        sizes = log_sizes(by_trees)
        errors = [
            ((sizes - predict(rows.theta)) ** 2).mean(axis=0)
            for predict in (self.log_scale.quadratic, self.log_scale)
        ]
        # a scale that is wrong by a factor exp(e) costs e^2 nats if e is small
        of_mean = np.log(spread(by_quadratic) / spread(by_trees))
        return np.stack((of_mean, errors[0] - errors[1]))

    @property
    def num_trees(self) -> int:
        """Number of features of theta."""
        return len(self.mean.trees) + len(self.log_scale.trees)

    def __call__(self, theta: np.ndarray) -> np.ndarray:
        each = [boosted.of_trees(theta) for boosted in (self.mean, self.log_scale)]
        return np.concatenate(each, axis=1)


@dataclass(frozen=True, eq=False)
class _Boosted:
    """A quadratic, and trees on its residuals over their standard deviation."""

    quadratic: Regression
    trees: Mapping[int, HistGradientBoostingRegressor]  # of some of the columns
    scale: np.ndarray

    @classmethod
    def fit(cls, design: Design, targets: np.ndarray, kept: np.ndarray) -> _Boosted:
        quadratic = design.fit(targets)
        residuals = targets - design.predict(quadratic)
        scale, trees = spread(residuals), {}
        for column in np.flatnonzero(kept):
            tree = HistGradientBoostingRegressor(**_BOOSTING)
            values = residuals[:, column] / scale[column]
            trees[int(column)] = tree.fit(design.inputs, values)
        return cls(quadratic, trees, scale)

    def only(self, kept: np.ndarray) -> _Boosted:
        trees = {column: tree for column, tree in self.trees.items() if kept[column]}
        return _Boosted(self.quadratic, trees, self.scale)

    def of_trees(self, theta: np.ndarray) -> np.ndarray:
        """Predictions of the trees, a column each."""
        columns = [tree.predict(theta) for tree in self.trees.values()]
        return np.stack(columns, axis=1) if columns else np.empty((len(theta), 0))

    def __call__(self, theta: np.ndarray) -> np.ndarray:
        predicted, columns = self.quadratic(theta), list(self.trees)
        predicted[:, columns] += self.scale[columns] * self.of_trees(theta)
        return predicted
