r"""Paired maps by Gaussian processes, for levels that differ in a crooked way.

.. math::

    \tilde x = x_L + d(x_L, \theta) + s(x_L, \theta)\, \varepsilon

with, for each feature, a Gaussian process `d` of cheap output and theta (a squared
exponential with a length scale for each input, a linear part, and noise; evidence
maximised) and its predictive standard deviation `s`, wide where pairs are far. The
noise :math:`\varepsilon` is a whole row of leave-one-out residuals over their own
standard deviations (Rasmussen and Williams 2006, equations 5.10 to 5.12), so that
features keep what they have in common.
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
from sbi_multilevel.level_maps.regression import spread

# cost grows with the cube of the pairs, and with the features
_MAX_PAIRS, _MAX_ENTRIES = 400, 1_500
_CHUNK = 10_000


@dataclass(frozen=True, eq=False)
class GaussianProcessMap:
    """See the module.

    Args:
        inputs: Standardises cheap output and theta.
        processes: A fitted process for each feature.
        mean: Mean of the difference of each feature, shape `(k,)`.
        scale: Standard deviation of the difference of each feature.
        residuals: LevelArrays of standardised leave-one-out residuals, shape `(m, k)`.
        seed: Seed of the draws from them.
    """

    inputs: StandardScaler
    processes: tuple[GaussianProcessRegressor, ...]
    mean: np.ndarray
    scale: np.ndarray
    residuals: np.ndarray
    seed: int

    def __call__(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Move rows `x`, shape `(n, k)`, at `theta`, shape `(n, d)`."""
        generator = np.random.default_rng(self.seed)
        chosen = generator.integers(len(self.residuals), size=len(x))
        inputs = self.inputs.transform(np.concatenate((x, theta), axis=1))
        told = [_predict(process, inputs) for process in self.processes]
        mean, deviation = (np.stack(column, axis=1) for column in zip(*told))
        noise = deviation * self.residuals[chosen]
        return x + self.mean + self.scale * (mean + noise)


def fit_gaussian_process(
    low: LevelArrays, high: LevelArrays, seed: int
) -> GaussianProcessMap:
    """Fit a process for each feature.

    Args:
        low: Cheap rows, which set the scale of the inputs.
        high: Pairs; of many features or pairs, not all pairs are used.
        seed: Seed of the noise.
    """
    high = high.first(min(_MAX_PAIRS, _MAX_ENTRIES // high.x.shape[1]))
    assert high.x_coarse is not None
    scaler = StandardScaler().fit(np.concatenate((low.x, low.theta), axis=1))
    inputs = scaler.transform(np.concatenate((high.x_coarse, high.theta), axis=1))
    gaps = high.x - high.x_coarse
    mean, scale = gaps.mean(axis=0), spread(gaps)
    processes = tuple(_fit_one(inputs, column) for column in ((gaps - mean) / scale).T)
    residuals = np.stack([_leave_one_out(process) for process in processes], axis=1)
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
    """Mean and standard deviation, in pieces that memory holds."""
    pieces = np.array_split(inputs, len(inputs) // _CHUNK + 1)
    told = [process.predict(piece, return_std=True) for piece in pieces]
    mean, deviation = (np.concatenate(column) for column in zip(*told))
    return mean, deviation


def _leave_one_out(process: GaussianProcessRegressor) -> np.ndarray:
    """Residuals of each pair under the process without it, in standard deviations."""
    inverse = cho_solve((process.L_, True), np.eye(len(process.L_)))
    # residual alpha_i / inverse_ii over its deviation 1 / sqrt(inverse_ii)
    return process.alpha_.reshape(-1) / np.sqrt(np.diag(inverse))
