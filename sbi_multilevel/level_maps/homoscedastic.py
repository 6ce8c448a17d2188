r"""The map `"homoscedastic"`: noise that has the same distribution at every theta.

.. math::

    \tilde x = m_H(\theta) + \sqrt{1 + h(\theta)}\; R\, e_\pi, \qquad
    e = \frac{x_L - m_L(\theta)}{s_L(\theta)},

with :math:`e_\pi` the standardized residual of another low-fidelity simulation, drawn
at random, and R the transport of `"full"`; see `sbi_multilevel.level_maps.conditional`
and `sbi_multilevel.level_maps.scaled` for the other symbols. The other conditional maps
keep the residual at its own theta, and with it whatever depends on theta at low
fidelity alone: the scale of the noise, and the errors of a quadratic :math:`m_L`. A
network takes both for information on theta. This map keeps the shape of the noise only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.base import LevelMapKind, register_level_map
from sbi_multilevel.level_maps.conditional import ChangeOfMean, LowMoments
from sbi_multilevel.level_maps.full import transport


@dataclass(frozen=True, eq=False)
class HomoscedasticMap:
    r"""See the module.

    Args:
        change: Change of the mean.
        noise: Noise to draw from, e.g. :math:`R\, e`, shape `(n, k)`.
        seed: Seed of the draws from them.
    """

    change: ChangeOfMean
    noise: np.ndarray
    seed: int

    def __call__(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Simulate at `theta`, shape `(n, d)`, as many as `x`, shape `(n, k)`."""
        generator = np.random.default_rng(self.seed)
        drawn = self.noise[generator.integers(len(self.noise), size=len(x))]
        _, mean = self.change.means(theta)
        return mean + self.change.leverage.growth(theta) * drawn


class Homoscedastic(LevelMapKind):
    """See the module."""

    name = "homoscedastic"
    max_features = 200

    def fit(self, low: LevelArrays, high: LevelArrays, seed: int) -> HomoscedasticMap:
        """Fit the change of the mean and the transport; pairs are not used."""
        moments = low.cached(LowMoments.fit)
        change, residuals = moments.change_of_mean(high)
        standardized = moments.residuals / np.exp(moments.log_scale(low.theta))
        standardized -= standardized.mean(axis=0)
        noise = standardized @ transport(standardized, residuals).T
        return HomoscedasticMap(change, noise, seed)


register_level_map(Homoscedastic())
