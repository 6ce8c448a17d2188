r"""Multilevel methods (ML-NPE, ML-NLE): one telescoping loss over all levels.

With :math:`f_l` the loss of a simulation of level l, the expected loss at the highest
level is (Hikida et al. 2025, equation 1)

.. math:: \mathbb{E} f_L = \mathbb{E} f_0
    + \sum_{l=1}^{L} \mathbb{E} \left[ f_l - f_{l-1} \right],

and each expectation is estimated from simulations of its own (their equation 2),

.. math::

    \ell(\phi) = \frac1{n_0} \sum_{i} f_0(\theta_i, u_i)
    + \sum_{l=1}^{L} \frac1{n_l} \sum_{i} \left[ f_l(\theta_i, u_i)
    - f_{l-1}(\theta_i, u_i) \right].

Level 0 costs little, so :math:`n_0` can be large. The differences are taken on pairs at
the same theta and noise, on which :math:`f_l` and :math:`f_{l-1}` are similar, so that
few pairs suffice. The loss is unbiased for :math:`\mathbb{E} f_L`, whatever the lower
levels are. Its variance is :math:`\sum_l V_l / n_l` with :math:`V_l =
\mathrm{Var}[f_l - f_{l-1}]` and :math:`f_{-1} = 0`, against :math:`\mathrm{Var}[f_L] /
n` for n simulations of the highest level.

All terms enter each step, and their gradients are combined by Algorithm 1
(`sbi_multilevel.losses.gradients`). Simulations of lower levels can be moved to the
scale of the highest one before use. The sum stays exact if the same map is used
wherever a level appears (`sbi_multilevel.level_maps.affine`).

A difference has no lower bound: on few pairs it can run to minus infinity, and so can
its mean over held-out pairs. By default early stopping therefore follows an estimate of
:math:`\mathbb{E} f_L` that is bounded below (`sbi_multilevel.losses.held_out`); the
telescoping sum of held-out means is `stopping="telescoping"`. The reference code of the
paper trains for a fixed number of epochs (`early_stopping=False`).

Reference: Hikida, Bharti, Jeffrey, Briol (2025), *Multilevel neural simulation-based
inference*, NeurIPS 2025, arXiv:2506.06087, equations 1 and 2, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from sbi_multilevel.data.simulations import (
    LevelSimulations,
    MultilevelSimulations,
    merge_levels,
)
from sbi_multilevel.level_maps import (
    ALIGNMENTS,
    Alignment,
    AlignmentKind,
    Moments,
    fit_alignments,
)
from sbi_multilevel.losses.gradients import ADJUSTMENTS, Adjustment
from sbi_multilevel.losses.held_out import MIN_PAIRS, STOPPING_RULES, Stopping
from sbi_multilevel.training.config import MethodConfig
from sbi_multilevel.training.schedule import Stage, Term, fine_tuning


@dataclass(frozen=True, kw_only=True)
class MultilevelConfig(MethodConfig):
    r"""Settings of the multilevel methods of Hikida et al. (2025).

    .. math::

        \ell(\phi) = \frac1{n_0}\sum f_0
        + \sum_{l=1}^{L} \frac1{n_l} \sum \left( f_l - f_{l-1} \right)

    This is their equation 2. One stage on the simulations of all levels. Those above
    level 0 must be paired.

    Args:
        adjustment: How the gradients of the terms are combined (their Algorithm 1):
            `"rescale_project"`, `"rescale"`, `"project"` or `"none"`.
        alignment: How simulations of lower levels are moved before use, see
            `sbi_multilevel.level_maps`: not at all (`None`), `"affine"` (affine, from
            the pairs), or `"standardize"` (each level standardised by its own mean and
            standard deviation, as in the reference code).
        stopping: The held-out loss that early stopping follows: `"bounded"`, for which
            at least four simulations of each level are held out (a third of them at
            most), or `"telescoping"`, the sum that is trained on, which can diverge.

    Other arguments are those of `MethodConfig`.

    Raises:
        ValueError: If a setting is none of those listed.

    Example:
    --------

    ::

        >>> (stage,) = MultilevelConfig(adjustment="project").stages(num_levels=2)
        >>> stage.terms
        (Term(level=0, weight=1.0, coarse=False),
         Term(level=1, weight=1.0, coarse=False),
         Term(level=1, weight=-1.0, coarse=True))
    """

    needs_pairs: ClassVar[bool] = True

    adjustment: Adjustment = "rescale_project"
    alignment: AlignmentKind | None = None
    stopping: Stopping = "bounded"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adjustment not in ADJUSTMENTS:
            raise ValueError(
                f"adjustment must be one of {ADJUSTMENTS}, but is {self.adjustment!r}."
            )
        if self.alignment is not None and self.alignment not in ALIGNMENTS:
            raise ValueError(
                f"alignment must be None or one of {ALIGNMENTS}, but is "
                f"{self.alignment!r}."
            )
        if self.stopping not in STOPPING_RULES:
            raise ValueError(
                f"stopping must be one of {STOPPING_RULES}, but is {self.stopping!r}."
            )

    @property
    def min_held_out(self) -> int:
        """Simulations of each level that early stopping holds out at least."""
        return MIN_PAIRS if self.stopping == "bounded" else 1

    def stages(self, num_levels: int, is_pretrained: bool = False) -> tuple[Stage, ...]:
        """One stage: base, then fine and coarse of each level."""
        terms = [Term(level=0)]
        for level in range(1, num_levels):
            terms += [Term(level), Term(level, weight=-1.0, coarse=True)]
        stage = Stage(
            tuple(terms),
            self.adjustment,
            is_warm=is_pretrained,
            is_bounded=self.stopping == "bounded",
            schedule=fine_tuning(self.schedule) if is_pretrained else self.schedule,
        )
        return (stage,)

    def arrange(self, parts: Sequence[LevelSimulations]) -> MultilevelSimulations:
        """The simulations as they are."""
        return merge_levels(parts)

    def align(
        self,
        simulations: MultilevelSimulations,
        terms: Sequence[Term],
        moments: Moments | None,
    ) -> list[Alignment]:
        """Maps to the scale of the highest level, see `fit_alignments`."""
        places = [(term.level, term.coarse) for term in terms]
        return fit_alignments(self.alignment, simulations, places)
