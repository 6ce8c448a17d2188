r"""Transfer methods (MF-NPE, MF-NLE): pre-train on low, fine-tune on high fidelity.

.. math::

    \phi_0 = \operatorname{stop}_{\phi} \frac1{n_0} \sum_i f_0(\theta_i, u_i)
    \quad \text{from random weights}, \qquad
    \phi_l = \operatorname{stop}_{\phi} \frac1{n_l} \sum_i f_l(\theta_i, u_i)
    \quad \text{from } \phi_{l-1},

where *stop* is gradient descent until the loss of held-out simulations no longer
decreases. The minimum of the last loss does not depend on the lower levels: information
is transferred because training starts at their fit and stops near it. The gain is large
where the levels are similar and high-fidelity simulations are few, and vanishes as
their number grows. Simulations need not be paired.

Two departures from plain fine-tuning, both settings of `TransferConfig`: with
*rehearsal* r the loss of fine-tuning is :math:`(1 - r)\, f_l + r\, (\text{mean of }
f_k, k < l)`, so that a few simulations cannot move the network far from the
low-fidelity fit; and with the alignment "standardize" each level's x is standardised by
its own mean and standard deviation before the network reads it
(`sbi_multilevel.level_maps.affine`).

Reference: Krouglova, Johnson, Confavreux, Deistler, Gonçalves (2026), *Multifidelity
simulation-based inference for computationally expensive simulators*, ICLR 2026,
arXiv:2502.08416: equation 1 (the loss of each level), Algorithm 1 (two levels),
Algorithm 2 (any number of levels), Appendix C.1 (settings of training), Appendix G.4.2
(pre-training on all levels together). Rehearsal is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from sbi_multilevel.data.moments import Moments
from sbi_multilevel.data.simulations import (
    LevelSimulations,
    MultilevelSimulations,
    merge_levels,
    split_pairs,
)
from sbi_multilevel.level_maps import Alignment, standardize_to
from sbi_multilevel.training.config import MethodConfig
from sbi_multilevel.training.schedule import Stage, Term, fine_tuning

_REHEARSAL_BATCHES = 10  # of an epoch


@dataclass(frozen=True, kw_only=True)
class TransferConfig(MethodConfig):
    r"""Settings of the transfer methods of Krouglova et al. (2026).

    One stage a level: the network is trained on level 0 until early stopping, from
    those weights on level 1, and so on to the highest level. Simulations need not be
    paired; of paired ones, the coarse sides join the simulations of the level below.

    Args:
        alignment: `"standardize"`: each level's x is standardised by its own mean and
            standard deviation, as in the reference code, and posteriors read x at that
            scale. `None`: x stays as it is, which is better with about ten
            high-fidelity simulations, whose moments are noisy.
        unconstrained: Whether NPE transforms theta to unconstrained space, so that no
            mass leaks outside of the prior. By default (`None`) it does so if
            `density_estimator` is the name of a network; a builder stays as it is (see
            `unconstrained(builder, prior)`).
        joint_pretraining: Whether the first stage trains on the simulations of all
            levels, the mean loss of each level with equal weight, rather than on level
            0 alone; fine-tuning on the highest level follows.
        rehearsal: Share of the loss of fine-tuning that simulations of the lower levels
            keep (experience replay), which keeps the network near the low-fidelity fit;
            0 in the paper. With rehearsal, the held-out loss is computed every ten
            batches.
        fine_tuning_rate: Factor to the learning rate in all stages but the first.
        freeze: Patterns of the names of parameters that all stages but the first leave
            as they are, e.g. `("*embedding_net*",)`; for the names see
            `estimator.named_parameters()`.

    Other arguments are those of `MethodConfig`.

    Raises:
        ValueError: If a setting is none of those listed.

    Example:
    --------

    ::

        >>> config = TransferConfig(fine_tuning_rate=0.1)
        >>> pretrain, fine_tune = config.stages(num_levels=2)
        >>> pretrain.levels, fine_tune.levels, fine_tune.rate
        ((0,), (1,), 0.1)
    """

    needs_pairs: ClassVar[bool] = False
    maps_estimator: ClassVar[bool] = True

    alignment: Literal["standardize"] | None = "standardize"
    unconstrained: bool | None = None
    joint_pretraining: bool = False
    rehearsal: float = 0.0
    fine_tuning_rate: float = 1.0
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alignment not in (None, "standardize"):
            raise ValueError(
                f"alignment must be None or 'standardize', but is {self.alignment!r}."
            )
        if not self.fine_tuning_rate > 0:
            raise ValueError(
                f"fine_tuning_rate must be > 0, but is {self.fine_tuning_rate}."
            )
        if not 0 <= self.rehearsal < 1:
            raise ValueError(
                f"rehearsal must be in [0, 1), but is {self.rehearsal}. It is the "
                "share of lower levels in the loss of fine-tuning."
            )
        if isinstance(self.freeze, str):
            raise ValueError(
                f"freeze must be a tuple of patterns, but is the text {self.freeze!r}. "
                f"Pass ({self.freeze!r},)."
            )

    def stages(self, num_levels: int, is_pretrained: bool = False) -> tuple[Stage, ...]:
        """Pre-training, then fine-tuning of each higher level."""
        levels = [(level,) for level in range(num_levels)]
        if self.joint_pretraining and num_levels > 1:
            levels = [tuple(range(num_levels)), (num_levels - 1,)]
        stages = []
        for index, group in enumerate(levels):
            terms = tuple(Term(level) for level in group)
            if index == 0 and not is_pretrained:
                stages.append(Stage(terms, schedule=self.schedule))
            else:
                stages.append(self._fine_tuning(terms))
        return tuple(stages)

    def _fine_tuning(self, terms: tuple[Term, ...]) -> Stage:
        lower = range(terms[0].level)
        if self.rehearsal > 0 and lower:
            share = self.rehearsal / len(lower)
            terms = (
                *(Term(level, share) for level in lower),
                *(Term(term.level, 1 - self.rehearsal) for term in terms),
            )
        return Stage(
            terms,
            rate=self.fine_tuning_rate,
            freeze=self.freeze,
            is_warm=True,
            num_batches=_REHEARSAL_BATCHES if self.rehearsal > 0 else None,
            schedule=fine_tuning(self.schedule),
        )

    def arrange(self, parts: Sequence[LevelSimulations]) -> MultilevelSimulations:
        """The simulations without pairs."""
        return merge_levels(split_pairs(parts))

    def align(
        self,
        simulations: MultilevelSimulations,
        terms: Sequence[Term],
        moments: Moments | None,
    ) -> list[Alignment]:
        """Maps to the scale of the x that the network was built on."""
        levels = [term.level for term in terms]
        if self.alignment is None:
            return [Alignment() for _ in levels]
        if moments is None:
            moments = Moments.of(simulations[0].x)
        return standardize_to(moments, simulations, levels)
