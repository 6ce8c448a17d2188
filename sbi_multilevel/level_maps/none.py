r"""The map `"none"`: low-fidelity x as it is, :math:`\tilde x = x_L`."""

from __future__ import annotations

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.base import LevelMap, LevelMapKind, register_level_map


class NoMap(LevelMapKind):
    """See the module."""

    name = "none"
    min_simulations = 1

    def fit(self, low: LevelArrays, high: LevelArrays, seed: int) -> LevelMap:
        """Fit nothing."""
        return lambda theta, x: x


register_level_map(NoMap())
