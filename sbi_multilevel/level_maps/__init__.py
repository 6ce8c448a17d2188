"""Maps between the levels.

`affine`: maps by mean and standard deviation, for the multilevel loss and transfer.
`base`: the register of the maps that depend on theta, from low-fidelity to
pseudo-high-fidelity simulations, which are in `unpaired` and `paired`; `fitting` fits
them. `selection`: which of them fits the simulations at hand. `tail_transform`: for
heavy tails of x.
"""

from sbi_multilevel.level_maps.affine import (
    ALIGNMENTS,
    AffineMap,
    Alignment,
    AlignmentKind,
    Moments,
    fit_alignments,
    standardize_to,
)
from sbi_multilevel.level_maps.base import (
    LEVEL_MAPS,
    LevelMapKind,
    register_level_map,
)

__all__ = [
    "ALIGNMENTS",
    "LEVEL_MAPS",
    "AffineMap",
    "Alignment",
    "AlignmentKind",
    "LevelMapKind",
    "Moments",
    "fit_alignments",
    "register_level_map",
    "standardize_to",
]
