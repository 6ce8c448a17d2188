r"""The map `"full"`: mean given theta and covariance of the residuals are corrected.

The covariance :math:`\Sigma_L` of the low-fidelity residuals is replaced by
:math:`\Sigma_H`, that of the high-fidelity residuals with the shrinkage of Ledoit and
Wolf (2004), *A well-conditioned estimator for large-dimensional covariance matrices*.
The linear map is the optimal transport between two normals,

.. math::  R = \Sigma_L^{-1/2} (\Sigma_L^{1/2} \Sigma_H \Sigma_L^{1/2})^{1/2}
    \Sigma_L^{-1/2}.
"""

from __future__ import annotations

import numpy as np
from sklearn.covariance import ledoit_wolf

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.base import LevelMapKind, register_level_map
from sbi_multilevel.level_maps.conditional import ConditionalMap, LowMoments
from sbi_multilevel.level_maps.regression import spread


class Full(LevelMapKind):
    """See the module."""

    name = "full"
    max_features = 200

    def fit(self, low: LevelArrays, high: LevelArrays, seed: int) -> ConditionalMap:
        """Fit the change of the mean and the transport; pairs are not used."""
        moments = low.cached(LowMoments.fit)
        change, residuals = moments.change_of_mean(high)
        return ConditionalMap(moments, change, transport(moments.residuals, residuals))


def transport(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """R, the optimal transport between normals with the covariances of two samples.

    Args:
        source: Many centered residuals, shape `(n, k)`.
        target: Few centered residuals, shape `(m, k)`, whose correlation is shrunk.

    Returns:
        The matrix, shape `(k, k)`.
    """
    from_scale = spread(source)
    to_scale = np.sqrt((target**2).mean(axis=0))
    standardized = target / np.where(to_scale > 0, to_scale, 1.0)
    covariance = np.atleast_2d(np.cov((source / from_scale).T))
    shrunk, _ = ledoit_wolf(standardized, assume_centered=True)
    root, inverse = _roots(covariance)
    middle, _ = _roots(root @ shrunk @ root)
    return to_scale[:, None] * (inverse @ middle @ inverse) / from_scale[None, :]


def _roots(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Square root and inverse square root of a covariance."""
    values, vectors = np.linalg.eigh(covariance)
    values = np.clip(values, 1e-12 * values.max(), None)
    root = (vectors * np.sqrt(values)) @ vectors.T
    return root, (vectors / np.sqrt(values)) @ vectors.T


register_level_map(Full())
