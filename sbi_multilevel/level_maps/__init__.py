"""Maps that bring levels together.

`affine`: the maps of the papers' recipes, by mean and deviation. `conditional`,
`paired` and `process`: maps that know theta, which turn rows of a cheaper simulator
into pseudo-high-fidelity rows; `fitting` fits them by name, and `choice` says which
fits the rows at hand, by the `synthetic` likelihood of high-fidelity rows held out,
which a `judge` makes as flexible (`trees`) as the cheap rows call for. `tails` tames
heavy tails. All of it is pure: rows in, maps out.
"""

from sbi_multilevel.level_maps.affine import (
    ALIGNMENTS,
    AffineMap,
    Alignment,
    AlignmentKind,
    Moments,
    fit_alignments,
    standardise_to,
)

__all__ = [
    "ALIGNMENTS",
    "AffineMap",
    "Alignment",
    "AlignmentKind",
    "Moments",
    "fit_alignments",
    "standardise_to",
]
