"""The map `"paired_quadratic"`: as `"paired"`, but quadratic in x and theta."""

from __future__ import annotations

from sbi_multilevel.level_maps.base import register_level_map
from sbi_multilevel.level_maps.paired import Paired


class PairedQuadratic(Paired):
    """See the module."""

    name = "paired_quadratic"
    max_features = 50
    degree = 2


register_level_map(PairedQuadratic())
