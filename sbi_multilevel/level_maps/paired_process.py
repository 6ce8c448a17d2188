r"""The map `"paired_process"`: the difference between the sides of pairs, by a process.

.. math::

    \tilde x = x_L + d(x_L, \theta) + s(x_L, \theta)\, \varepsilon

with, for each feature, a Gaussian process `d` of low-fidelity x and theta
(`sbi_multilevel.level_maps.process`) and its predictive standard deviation `s`, which
is large far from the pairs. The noise :math:`\varepsilon` is the vector of
leave-one-out residuals of one pair over their own standard deviations, so that
correlations of features are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.preprocessing import StandardScaler

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.base import LevelMap, LevelMapKind, register_level_map
from sbi_multilevel.level_maps.conditional import fit_beside_mean
from sbi_multilevel.level_maps.process import Process
from sbi_multilevel.level_maps.regression import blocks, spread

# cost grows with the cube of the pairs, and with the features
_MAX_PAIRS, _MAX_ENTRIES = 400, 1_500
_BLOCK = 2_000


@dataclass(frozen=True, eq=False)
class GaussianProcessMap:
    """See the module.

    Args:
        inputs: Standardizes low-fidelity x and theta.
        processes: Process of the standardized difference of each feature.
        mean: Mean of the difference of each feature, shape `(k,)`.
        scale: Standard deviation of the difference of each feature, shape `(k,)`.
        residuals: Standardized leave-one-out residuals of the pairs, shape `(m, k)`.
        seed: Seed of the draws from them.
    """

    inputs: StandardScaler
    processes: Sequence[Process]
    mean: np.ndarray
    scale: np.ndarray
    residuals: np.ndarray
    seed: int

    def __call__(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Map `x`, shape `(n, k)`, at `theta`, shape `(n, d)`."""
        generator = np.random.default_rng(self.seed)
        chosen = generator.integers(len(self.residuals), size=len(x))
        moved = np.empty_like(x)
        for rows in blocks(len(x), _BLOCK):
            inputs = np.concatenate((x[rows], theta[rows]), axis=1)
            inputs = self.inputs.transform(inputs)
            predicted = [process.predict(inputs) for process in self.processes]
            mean, deviation = (np.stack(each, axis=1) for each in zip(*predicted))
            change = mean + deviation * self.residuals[chosen[rows]]
            moved[rows] = x[rows] + self.mean + self.scale * change
        return moved


class PairedProcess(LevelMapKind):
    """See the module."""

    name = "paired_process"
    needs_pairs = True
    max_features = 12
    is_local = True

    def fit(self, low: LevelArrays, high: LevelArrays, seed: int) -> LevelMap:
        """Fit processes to pairs, to a subset if they are many."""
        return fit_beside_mean(lambda pairs: self._fit(low, pairs, seed), low, high)

    def _fit(
        self, low: LevelArrays, high: LevelArrays, seed: int
    ) -> GaussianProcessMap:
        high = high.first(min(_MAX_PAIRS, _MAX_ENTRIES // high.x.shape[1]))
        assert high.x_coarse is not None
        scaler = low.cached(_scaler)
        inputs = scaler.transform(np.concatenate((high.x_coarse, high.theta), axis=1))
        gaps = high.x - high.x_coarse
        mean, scale = gaps.mean(axis=0), spread(gaps)
        processes = [Process.fit(inputs, each) for each in ((gaps - mean) / scale).T]
        residuals = np.stack([each.left_out() for each in processes], axis=1)
        return GaussianProcessMap(scaler, processes, mean, scale, residuals, seed)


def _scaler(low: LevelArrays) -> StandardScaler:
    return StandardScaler().fit(np.concatenate((low.x, low.theta), axis=1))


register_level_map(PairedProcess())
