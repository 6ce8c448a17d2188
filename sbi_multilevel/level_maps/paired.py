r"""The map `"paired"`: the difference between the sides of pairs, by linear regression.

.. math::

    \tilde x = x_L + d(x_L, \theta) + \sqrt{1 + h(x_L, \theta)}\; \varepsilon, \qquad
    d(x_\mathrm{coarse}, \theta) \approx x - x_\mathrm{coarse}.

`d` is linear in low-fidelity x and theta, with a ridge penalty chosen by leave-one-out.
What low-fidelity x does not determine is noise: :math:`\varepsilon` is the vector of
residuals of one pair, drawn with replacement, over :math:`\sqrt{1 - h}`, so that it has
the variance of the noise. With :math:`1 + h` that of the posterior predictive
distribution is drawn, in which d is uncertain, most where pairs are far; h is as in
`sbi_multilevel.level_maps.conditional`, with the features of d.

Where the levels differ in the curvature of their means, :math:`\delta\, m_L(\theta)` is
added to d, with :math:`\delta` as in `sbi_multilevel.level_maps.conditional`; so it is
in `sbi_multilevel.level_maps.paired_process`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.base import LevelMap, LevelMapKind, register_level_map
from sbi_multilevel.level_maps.conditional import fit_beside_mean
from sbi_multilevel.level_maps.regression import Leverage, Regression, polynomials


@dataclass(frozen=True, eq=False)
class PairedMap:
    """See the module.

    Args:
        difference: Regression of the difference between the levels.
        leverage: h.
        residuals: Residuals of the pairs with the variance of the noise, shape
            `(m, k)`.
        seed: Seed of the draws from them.
    """

    difference: Regression
    leverage: Leverage
    residuals: np.ndarray
    seed: int

    def __call__(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Map `x`, shape `(n, k)`, at `theta`, shape `(n, d)`."""
        generator = np.random.default_rng(self.seed)
        chosen = generator.integers(len(self.residuals), size=len(x))
        inputs = np.concatenate((x, theta), axis=1)
        noise = self.leverage.growth(inputs) * self.residuals[chosen]
        return x + self.difference(inputs) + noise


class Paired(LevelMapKind):
    """See the module."""

    name = "paired"
    needs_pairs = True
    max_features = 2_000
    degree = 1

    def fit(self, low: LevelArrays, high: LevelArrays, seed: int) -> LevelMap:
        """Fit the difference to pairs."""
        return fit_beside_mean(lambda pairs: self._fit(low, pairs, seed), low, high)

    def _fit(self, low: LevelArrays, high: LevelArrays, seed: int) -> PairedMap:
        assert high.x_coarse is not None
        features = low.cached(self._features)
        inputs = np.concatenate((high.x_coarse, high.theta), axis=1)
        gaps = high.x - high.x_coarse
        difference = Regression.fit(features, inputs, gaps)
        noise, leverage = difference.noise(inputs, gaps)
        return PairedMap(difference, leverage, noise, seed)

    def _features(self, low: LevelArrays):
        return polynomials(np.concatenate((low.x, low.theta), axis=1), self.degree)


register_level_map(Paired())
