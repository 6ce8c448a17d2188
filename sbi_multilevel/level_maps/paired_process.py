r"""The map `"paired_process"`: the difference between the sides of pairs, by a process.

.. math::

    \tilde x = x_L + d(x_L, \theta) + s(x_L, \theta)\, \varepsilon

with, for each feature, a Gaussian process `d` of low-fidelity x and theta (a squared
exponential with a length scale for each input, a linear part, and noise; the evidence
is maximized) and its predictive standard deviation `s`, which is large far from the
pairs. The noise :math:`\varepsilon` is the vector of leave-one-out residuals of one
pair over their own standard deviations, so that correlations of features are kept.

Reference: Rasmussen and Williams (2006), *Gaussian processes for machine learning*,
equations 5.10 to 5.12.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import (
    RBF,
    ConstantKernel,
    DotProduct,
    WhiteKernel,
)
from sklearn.preprocessing import StandardScaler

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.base import LevelMapKind, register_level_map
from sbi_multilevel.level_maps.regression import spread

# cost grows with the cube of the pairs, and with the features
_MAX_PAIRS, _MAX_ENTRIES = 400, 1_500
_CHUNK = 10_000


@dataclass(frozen=True, eq=False)
class GaussianProcessMap:
    """See the module.

    Args:
        inputs: Standardizes low-fidelity x and theta.
        processes: A fitted process for each feature.
        mean: Mean of the difference of each feature, shape `(k,)`.
        scale: Standard deviation of the difference of each feature, shape `(k,)`.
        residuals: Standardized leave-one-out residuals of the pairs, shape `(m, k)`.
        seed: Seed of the draws from them.
    """

    inputs: StandardScaler
    processes: tuple[GaussianProcessRegressor, ...]
    mean: np.ndarray
    scale: np.ndarray
    residuals: np.ndarray
    seed: int

    def __call__(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Map `x`, shape `(n, k)`, at `theta`, shape `(n, d)`."""
        generator = np.random.default_rng(self.seed)
        chosen = generator.integers(len(self.residuals), size=len(x))
        inputs = self.inputs.transform(np.concatenate((x, theta), axis=1))
        predicted = [_predict(process, inputs) for process in self.processes]
        mean, deviation = (np.stack(column, axis=1) for column in zip(*predicted))
        noise = deviation * self.residuals[chosen]
        return x + self.mean + self.scale * (mean + noise)


class PairedProcess(LevelMapKind):
    """See the module."""

    name = "paired_process"
    needs_pairs = True
    max_features = 12

    def fit(self, low: LevelArrays, high: LevelArrays, seed: int) -> GaussianProcessMap:
        """Fit a process for each feature to pairs, to a subset if they are many."""
        high = high.first(min(_MAX_PAIRS, _MAX_ENTRIES // high.x.shape[1]))
        assert high.x_coarse is not None
        scaler = StandardScaler().fit(np.concatenate((low.x, low.theta), axis=1))
        inputs = scaler.transform(np.concatenate((high.x_coarse, high.theta), axis=1))
        gaps = high.x - high.x_coarse
        mean, scale = gaps.mean(axis=0), spread(gaps)
        processes = tuple(_fit_one(inputs, each) for each in ((gaps - mean) / scale).T)
        residuals = np.stack([_leave_one_out(each) for each in processes], axis=1)
        return GaussianProcessMap(scaler, processes, mean, scale, residuals, seed)


def _fit_one(inputs: np.ndarray, targets: np.ndarray) -> GaussianProcessRegressor:
    smooth = RBF(3.0 * np.ones(inputs.shape[1]), (0.3, 100.0))
    kernel = (
        ConstantKernel(1.0, (1e-3, 1e3)) * smooth
        + ConstantKernel(1.0, (1e-3, 1e3)) * DotProduct(1.0)
        + WhiteKernel(0.1, (1e-6, 10.0))
    )
    with warnings.catch_warnings():
        # a length scale at its bound is an input that does not matter
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GaussianProcessRegressor(kernel, alpha=1e-8).fit(inputs, targets)


def _predict(
    process: GaussianProcessRegressor, inputs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, in chunks that fit into memory."""
    chunks = np.array_split(inputs, len(inputs) // _CHUNK + 1)
    predicted = [process.predict(chunk, return_std=True) for chunk in chunks]
    mean, deviation = (np.concatenate(column) for column in zip(*predicted))
    return mean, deviation


def _leave_one_out(process: GaussianProcessRegressor) -> np.ndarray:
    """Residuals of each pair under the process without it, in standard deviations."""
    inverse = cho_solve((process.L_, True), np.eye(len(process.L_)))
    # residual alpha_i / inverse_ii over its deviation 1 / sqrt(inverse_ii)
    return process.alpha_.reshape(-1) / np.sqrt(np.diag(inverse))


register_level_map(PairedProcess())
