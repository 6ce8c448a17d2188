r"""The map `"shift"`: the mean given theta is corrected, the residuals stay.

:math:`\tilde x = x_L + \Delta(\theta)`, see `sbi_multilevel.level_maps.conditional`.
"""

from __future__ import annotations

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.base import LevelMapKind, register_level_map
from sbi_multilevel.level_maps.conditional import ConditionalMap, LowMoments


class Shift(LevelMapKind):
    """See the module."""

    name = "shift"
    min_simulations = 1

    def fit(self, low: LevelArrays, high: LevelArrays, seed: int) -> ConditionalMap:
        """Fit the change of the mean; pairs are not used."""
        moments = low.cached(LowMoments.fit)
        return ConditionalMap(moments, moments.change_of_mean(high)[0])


register_level_map(Shift())
