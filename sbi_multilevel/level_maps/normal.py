r"""The map `"normal"`: normal noise that has the same distribution at every theta.

.. math::

    \tilde x = m_H(\theta) + \sqrt{1 + h(\theta)}\; \varepsilon, \qquad
    \varepsilon \sim N(0, \Sigma_H),

with :math:`\Sigma_H` of `sbi_multilevel.level_maps.full`, and otherwise as
`sbi_multilevel.level_maps.homoscedastic`. Of low fidelity only the mean is used.
Residuals with heavy tails that are rescaled to the variance of normal noise are too
narrow at the center, where most observations are.
"""

from __future__ import annotations

import numpy as np

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.base import LevelMapKind, register_level_map
from sbi_multilevel.level_maps.conditional import LowMoments
from sbi_multilevel.level_maps.full import transport
from sbi_multilevel.level_maps.homoscedastic import HomoscedasticMap


class Normal(LevelMapKind):
    """See the module."""

    name = "normal"
    max_features = 200

    def fit(self, low: LevelArrays, high: LevelArrays, seed: int) -> HomoscedasticMap:
        """Fit the change of the mean and the covariance; pairs are not used."""
        change, residuals = low.cached(LowMoments.fit).change_of_mean(high)
        normal = np.random.default_rng(seed).normal(size=low.x.shape)
        normal -= normal.mean(axis=0)
        return HomoscedasticMap(change, normal @ transport(normal, residuals).T, seed)


register_level_map(Normal())
