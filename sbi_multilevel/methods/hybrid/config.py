r"""The recipe to start with: cheap rows made to look dear, and rules for trusting them.

What it does, step by step:

1. **Tails.** Features of x with heavy tails are tamed (`alignment.tails`), and those
   that a lower level keeps constant are replaced by noise (`alignment.constant`).
2. **Alignment.** Each level's rows are moved to the level above by the kind of map that
   high-fidelity rows held out like best (`alignment.choice`): from no map at all over
   conditional means and covariances to Gaussian processes on pairs. Rows of all lower
   levels end as one pool of pseudo-high-fidelity rows :math:`\tilde x`.
3. **Members.** The high-fidelity rows are cut into E folds, those at the same theta
   into the same one. For each, a map is fitted to the other folds, of the kind that
   they like best (each judges a map fitted without itself alone, so the fold left out
   has a say in the kind, though not in the map), a network is trained on the pool it
   moves, without rows at the parameters of the fold (from one of two starts for which
   the same holds), and then fine-tuned on

   .. math:: (1 - w)\, \mathbb{E}_\text{pool} f + w\, \mathbb{E}_\text{high} f,
       \qquad w = \frac{n}{n + 50},

   with n the high-fidelity rows of the other folds, until the same loss of held-out
   rows stops falling: rehearsing, so that ten rows cannot pull it far. Another E
   networks are trained on the high-fidelity rows alone.
4. **Mixing.** Three components are weighed by the high-fidelity rows that each has not
   seen: networks with cheap rows, networks without, and for posteriors the prior
   itself. Stacking weights (`sbi_multilevel.estimators.stacking`) are taken if they raise the
   held-out log score by more than its standard error. Else the networks with cheap
   rows have all but the share :math:`1 / (n_L + 1)`, which is the prior's and bounds
   the loss.

A cheap level that is seen to do harm loses its weight in step 4. What it was worth
beside training without it is in `trainer.hybrid_summary`, with its uncertainty. A part
of that is the map's: fitted to high-fidelity rows it predicts them from theta, and so
the pool is worth something even where cheap x is noise. What cheap x itself tells is
beside it (`sbi_multilevel.methods.hybrid.OutputsGain`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from sbi_multilevel.data.moments import Moments
from sbi_multilevel.data.simulations import (
    LevelSimulations,
    MultilevelSimulations,
    merge_levels,
)
from sbi_multilevel.level_maps import Alignment
from sbi_multilevel.level_maps.kinds import MAP_KINDS
from sbi_multilevel.methods.transfer import TransferConfig
from sbi_multilevel.training.config import MethodConfig
from sbi_multilevel.training.stages import Stage, Term

_HALF_TRUSTED = 50  # high-fidelity rows that weigh as much as the whole pool


@dataclass(frozen=True, kw_only=True)
class HybridConfig(MethodConfig):
    """Aligned pool, rehearsed fine-tuning, stacked ensemble; see the module.

    There is nothing to tune: what differs between tasks is chosen from the rows. The
    settings are there to switch parts off.

    Args:
        level_maps: Kinds of map to choose from, see `sbi_multilevel.level_maps.fitting`.
        num_members: Folds E, and networks of each component.
        shared_start: Whether members start from two networks trained on the pool, in
            half of the time, rather than each from scratch.
        rehearsal: Whether the pool keeps its share in fine-tuning.
        mix: Whether networks without lower levels, and the prior, join the mixture.
        transform_tails: Whether heavy tails of x are tamed.
        unconstrained: Whether NPE models theta in unconstrained space, so that nothing
            leaks out of the prior.

    Other arguments are those of `MethodConfig`; with `early_stopping=False` nothing would be
    held out, which this recipe cannot do without.

    Raises:
        ValueError: If a setting is none of those listed.

    Example:
    --------

    ::

        >>> HybridConfig(level_maps=("none", "shift")).member_config(num_high=50)
        Transfer(early_stopping=True, betas=(0.9, 0.999), weight_decay=0.0, \
alignment=None, unconstrained=True, joint_pretraining=False, rehearsal=0.5, \
fine_tuning_rate=1.0, freeze=())
    """

    needs_pairs: ClassVar[bool] = False
    is_ensemble: ClassVar[bool] = True
    maps_estimator: ClassVar[bool] = True

    level_maps: tuple[str, ...] = MAP_KINDS
    num_members: int = 5
    shared_start: bool = True
    rehearsal: bool = True
    mix: bool = True
    transform_tails: bool = True
    unconstrained: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = set(self.level_maps) - set(MAP_KINDS)
        if unknown or not self.level_maps or isinstance(self.level_maps, str):
            raise ValueError(
                f"alignments must be a tuple of some of {MAP_KINDS}, but is "
                f"{self.level_maps!r}."
            )
        if self.num_members < 2:
            raise ValueError(
                f"num_members must be at least 2, but is {self.num_members}: each "
                "holds out rows that the others are trained on."
            )
        if not self.early_stopping:
            raise ValueError(
                "early_stopping=False leaves no rows to weigh the members by. Choose "
                "'multilevel' or 'transfer' to train without held-out rows."
            )

    def member_config(self, num_high: int) -> TransferConfig:
        """How a member is trained: level 0 is the pool, level 1 high fidelity.

        Args:
            num_high: High-fidelity rows that it is trained on.
        """
        share = self.rehearsal * _HALF_TRUSTED / (num_high + _HALF_TRUSTED)
        return replace(self.plain_config, rehearsal=share)

    @property
    def plain_config(self) -> TransferConfig:
        """How a network is trained that fine-tunes nothing."""
        return TransferConfig(
            betas=self.betas,
            weight_decay=self.weight_decay,
            alignment=None,
            unconstrained=self.unconstrained,
        )

    def stages(self, num_levels: int, is_pretrained: bool = False) -> tuple[Stage, ...]:
        """One stage over all levels, for the loaders; members have their own."""
        return (Stage(tuple(Term(level) for level in range(num_levels))),)

    def arrange(self, parts: Sequence[LevelSimulations]) -> MultilevelSimulations:
        """The rows as they are, pairs where there are pairs.

        Raises:
            ValueError: If rows have weights, which the maps do not know.
        """
        if any(part.weights is not None for part in parts):
            raise ValueError(
                "Rows with weights were appended, but recipe='hybrid' fits maps to "
                "rows that are draws from the prior. Use the recipe 'transfer'."
            )
        highest = max(part.level for part in parts)
        for level in range(1, highest + 1):
            pairs = {part.is_paired for part in parts if part.level == level}
            if len(pairs) > 1:
                warnings.warn(
                    f"Level {level} has rows with and without x_coarse, so none "
                    "of them are used as pairs. Append pairs alone if they are many.",
                    stacklevel=2,
                )
        return merge_levels(parts)

    def align(
        self,
        simulations: MultilevelSimulations,
        terms: Sequence[Term],
        moments: Moments | None,
    ) -> list[Alignment]:
        """Rows as they are; the maps are chosen in training."""
        return [Alignment() for _ in terms]
