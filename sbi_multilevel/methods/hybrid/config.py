r"""Hybrid methods (HybridNPE, HybridNLE): level maps, transfer and stacking combined.

With n high-fidelity simulations and f the loss of NPE or NLE, training has six steps.

1. **Preparation.** Features of x with heavy tails are transformed
   (`sbi_multilevel.level_maps.tail_transform`), and features that are constant at a
   lower level, but not at the highest, are replaced by noise
   (`sbi_multilevel.data.preparation`). Level maps take discrete features of a
   likelihood as real numbers (`sbi_multilevel.level_maps.discrete_features`).
2. **Level maps.** A level map moves the simulations of a level to the level above. Its
   kind is selected by cross-validation
   (`sbi_multilevel.level_maps.selection.cross_validation`). The mapped simulations join
   those of the level above, and so on up to the highest level. The result is one pool
   of pseudo-high-fidelity simulations :math:`(\theta, \tilde x)`.
3. **Members.** The high-fidelity simulations are split into folds :math:`F_1, \dots,
   F_E`, with those at the same parameters in one fold. The level map of member e is
   selected by and fitted to the other folds. (The score of a fold is that of a map
   fitted to all folds but this one. So :math:`F_e` affects the choice of the kind, but
   not the fit.) The member is trained on the pool without simulations at parameters of
   :math:`F_e`, starting from one of two networks for which the same holds, and
   fine-tuned with *rehearsal* of the pool,

   .. math:: \ell_e(\phi) = (1 - w)\, \mathbb{E}_\text{pool} f
       + w\, \mathbb{E}_{\text{high} \setminus F_e} f,
       \qquad w = \frac{n_e}{n_e + 50},

   with :math:`n_e` the high-fidelity simulations outside :math:`F_e`, and early
   stopping on the same loss of simulations held out from these. Another E networks are
   trained on the high-fidelity simulations outside :math:`F_e` alone.
4. **Stacking.** The mixture has up to three components: the members, the networks
   trained on high-fidelity simulations alone, and for posteriors the prior. Their
   weights depend on the densities of each :math:`F_e` under the networks that were not
   trained on it. Stacking weights (`sbi_multilevel.estimators.stacking`) are used if
   they increase the held-out log score by more than its standard error. Otherwise the
   members have all weight but :math:`1 / (n + 1)`, which the prior has, so that the
   loss is bounded. Members that fine-tuning did not improve are evaluated as one
   network.
5. **Calibration**, with `widen=True`. If high-fidelity simulations have lower densities
   than draws from the mixture, under the networks that were not trained on them, all
   networks are made wider (`sbi_multilevel.methods.hybrid.calibration`).
6. **Distillation.** One network is trained on draws from the mixture, and takes its
   place if it loses less than 0.02 nats per simulation
   (`sbi_multilevel.methods.hybrid.distillation`).

All networks are trained with a learning rate that rises and falls once
(`sbi_multilevel.training.schedule`).

Lower levels that increase the held-out loss lose weight in step 4.
`trainer.estimate_gain()` estimates the effective sample size, relative to training
without lower levels. Level maps contribute to it by themselves: fitted to high-fidelity
simulations, they predict x from theta even where low-fidelity x is noise. The
contribution of low-fidelity x is estimated separately
(`sbi_multilevel.methods.hybrid.OutputsGain`).

The method combines level maps, transfer with rehearsal, cross-validation and stacking
of predictive distributions (Yao, Vehtari, Simpson, Gelman 2018, *Using stacking to
average Bayesian predictive distributions*); the combination is ours.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from sbi_multilevel.data.moments import Moments
from sbi_multilevel.data.simulations import (
    LevelSimulations,
    MultilevelSimulations,
    merge_levels,
)
from sbi_multilevel.level_maps import Alignment
from sbi_multilevel.level_maps.base import BUILT_IN_MAPS, LEVEL_MAPS
from sbi_multilevel.methods.transfer import TransferConfig
from sbi_multilevel.training.config import MethodConfig
from sbi_multilevel.training.schedule import OneCycle, Stage, Term

_STUDENT_STEPS, _STUDENT_RATE = 8 / 3, 2.0  # steps relative to fine-tuning
_HALF_WEIGHT = 50  # high-fidelity simulations with the weight of the whole pool


@dataclass(frozen=True, kw_only=True)
class HybridConfig(MethodConfig):
    """Settings of the hybrid methods.

    No setting needs tuning: what differs between tasks is chosen by held-out
    simulations. The settings turn parts of the method off, see the module.

    Args:
        level_maps: Kinds of level map to choose from, see
            `sbi_multilevel.level_maps.fitting`.
        num_members: Folds E, and networks of each component.
        shared_start: Whether members start from two networks trained on the pool, which
            halves the training time, rather than from scratch.
        max_low: Simulations of each lower level that are used at most, a random subset
            of more. A network is trained on draws of about 300 000 simulations, and
            level maps need fewer, so that a larger pool takes memory only.
        rehearsal: Whether the pool keeps its share of the loss in fine-tuning.
        mix: Whether networks trained on high-fidelity simulations alone, and the prior,
            join the mixture.
        transform_tails: Whether heavy tails of x are transformed.
        widen: Whether a mixture of flows is made wider where held-out simulations show
            that it is too narrow, see `sbi_multilevel.methods.hybrid.calibration`.
            It needs flows, and is not available in rounds. Results in the documentation
            are without, where not stated otherwise.
        distill: Whether one network takes the place of the mixture, so that sampling
            costs as much as with one network, see
            `sbi_multilevel.methods.hybrid.distillation`; `"auto"`: if it loses less
            than 0.02 nats per simulation.
        unconstrained: Whether NPE learns the density of unconstrained theta, so that
            there is no leakage.

    Other arguments are those of `MethodConfig`. `early_stopping=False` is not possible,
    as the mixture needs held-out simulations.

    Raises:
        ValueError: If a setting is none of those listed.

    Example:
    --------

    ::

        >>> config = HybridConfig(level_maps=("none", "shift"))
        >>> config.member_config(num_high=50).rehearsal
        0.5
    """

    needs_pairs: ClassVar[bool] = False
    is_ensemble: ClassVar[bool] = True
    maps_estimator: ClassVar[bool] = True

    level_maps: tuple[str, ...] = BUILT_IN_MAPS
    num_members: int = 5
    shared_start: bool = True
    max_low: int = 100_000
    rehearsal: bool = True
    mix: bool = True
    transform_tails: bool = True
    widen: bool = False
    schedule: OneCycle | None = OneCycle()
    distill: Literal["auto"] | bool = "auto"
    unconstrained: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = set(self.level_maps) - set(LEVEL_MAPS)
        if unknown or not self.level_maps or isinstance(self.level_maps, str):
            raise ValueError(
                f"level_maps must be a tuple of some of {tuple(LEVEL_MAPS)}, but is "
                f"{self.level_maps!r}."
            )
        if self.num_members < 2:
            raise ValueError(
                f"num_members must be at least 2, but is {self.num_members}. Each "
                "member holds out a fold that the other members are trained on."
            )
        if self.max_low < 2:
            raise ValueError(f"max_low must be at least 2, but is {self.max_low}.")
        if self.distill not in ("auto", True, False):
            raise ValueError(
                f"distill must be True, False or 'auto', but is {self.distill!r}."
            )
        if not self.early_stopping:
            raise ValueError(
                "early_stopping=False holds out no simulations, which the weights of "
                "the mixture need. Leave it out, or use `MLNPE` or `MFNPE`."
            )

    def member_config(self, num_high: int) -> TransferConfig:
        """Settings of a member: level 0 is the pool, level 1 high fidelity.

        Args:
            num_high: High-fidelity simulations that it is trained on.
        """
        share = self.rehearsal * _HALF_WEIGHT / (num_high + _HALF_WEIGHT)
        return replace(self.plain_config, rehearsal=share)

    @property
    def student_config(self) -> TransferConfig:
        """Settings of the network that is trained on draws from the mixture."""
        # draws are many, so that it cannot overfit, and all are used
        own = self.schedule or OneCycle()
        num_steps = math.ceil(_STUDENT_STEPS * own.fine_tuning_steps)
        schedule = OneCycle(fine_tuning_steps=num_steps, fine_tuning_rate=_STUDENT_RATE)
        return replace(self.plain_config, schedule=schedule, early_stopping=False)

    @property
    def plain_config(self) -> TransferConfig:
        """Settings of a network that is trained on one level."""
        return TransferConfig(
            betas=self.betas,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            alignment=None,
            unconstrained=self.unconstrained,
        )

    def stages(self, num_levels: int, is_pretrained: bool = False) -> tuple[Stage, ...]:
        """One stage with all levels, for the loaders; members have their own."""
        return (Stage(tuple(Term(level) for level in range(num_levels))),)

    def arrange(self, parts: Sequence[LevelSimulations]) -> MultilevelSimulations:
        """The simulations as they are, paired where all of a level are."""
        highest = max(part.level for part in parts)
        for level in range(1, highest + 1):
            pairs = {part.is_paired for part in parts if part.level == level}
            if len(pairs) > 1:
                warnings.warn(
                    f"Level {level} has simulations with and without x_coarse, so none "
                    "are used as pairs. Append only pairs if most are paired.",
                    stacklevel=2,
                )
        return merge_levels(parts)

    def align(
        self,
        simulations: MultilevelSimulations,
        terms: Sequence[Term],
        moments: Moments | None,
    ) -> list[Alignment]:
        """No alignment here; level maps are fitted in training."""
        return [Alignment() for _ in terms]
