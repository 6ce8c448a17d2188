r"""Paired maps: what a cheap output lacks, regressed on it and on theta over pairs.

.. math::

    \tilde x = x_L + d(x_L, \theta) + \varepsilon, \qquad
    d(x_\mathrm{coarse}, \theta) \approx x - x_\mathrm{coarse}.

`d` is linear (`"paired"`) or quadratic (`"paired_quadratic"`) in cheap output and
theta, with a ridge penalty chosen by leave-one-out. What the cheap output cannot tell
of the dear one is noise: :math:`\varepsilon` is a whole row of leave-one-out
residuals, drawn with replacement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.pipeline import Pipeline

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.regression import Regression, polynomials


@dataclass(frozen=True, eq=False)
class PairedMap:
    """See the module.

    Args:
        difference: Regression of the difference between the levels.
        residuals: LevelArrays of what it leaves, shape `(m, k)`.
        seed: Seed of the draws from them.
    """

    difference: Regression
    residuals: np.ndarray
    seed: int

    def __call__(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Move rows `x`, shape `(n, k)`, at `theta`, shape `(n, d)`."""
        generator = np.random.default_rng(self.seed)
        chosen = generator.integers(len(self.residuals), size=len(x))
        moved = x + self.difference(np.concatenate((x, theta), axis=1))
        return moved + self.residuals[chosen]


def paired_features(low: LevelArrays, degree: int) -> Pipeline:
    """Features of cheap output and theta, scaled on the cheap rows."""
    return polynomials(np.concatenate((low.x, low.theta), axis=1), degree)


def fit_paired(features: Pipeline, high: LevelArrays, seed: int) -> PairedMap:
    """Fit a paired map.

    Args:
        features: As `paired_features` returns it.
        high: Pairs.
        seed: Seed of the noise.
    """
    assert high.x_coarse is not None
    inputs = np.concatenate((high.x_coarse, high.theta), axis=1)
    gaps = high.x - high.x_coarse
    difference = Regression.fit(features, inputs, gaps)
    residuals = difference.left_out(inputs, gaps)
    return PairedMap(difference, residuals - residuals.mean(axis=0), seed)
