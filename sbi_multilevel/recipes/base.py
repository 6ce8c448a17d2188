r"""What a recipe is: which rows a step is taken on, and with which sign.

A recipe is plain data: a list of *stages*, trained one after the other, each with its
own optimizer and its own early stopping. A stage names the signed terms of its loss

.. math:: \ell(\phi) = \sum_t w_t \, \frac1{n_t} \sum_{i} f(x_{t,i}, \theta_{t,i}),

the rule that combines the gradients of the terms (`sbi_multilevel.gradients`), and what
of the network it trains. The recipe says how the levels are aligned
(`sbi_multilevel.alignment`), and when to stop. Trainers do the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from sbi_multilevel.alignment import Alignment, Moments
from sbi_multilevel.argument_types import check_field_types
from sbi_multilevel.gradients import Adjustment
from sbi_multilevel.simulations import LevelSimulations, MultilevelSimulations


@dataclass(frozen=True)
class Term:
    """One signed mean of the loss.

    Args:
        level: Level whose rows the mean is over.
        weight: Factor in front of the mean, e.g. -1 for the coarse side of a pair.
        coarse: Whether the outputs are `x_coarse` of the rows rather than `x`.

    Example:
    --------

    ::

        >>> Term(level=1, weight=-1.0, coarse=True)  # minus f_0 on the pairs of level 1
        Term(level=1, weight=-1.0, coarse=True)
    """

    level: int
    weight: float = 1.0
    coarse: bool = False


@dataclass(frozen=True)
class Stage:
    """One training until early stopping.

    Args:
        terms: The terms of its loss.
        adjustment: How their gradients are combined.
        rate: Factor to the learning rate of `train`.
        freeze: Patterns (as of file names) of the names of parameters left as they are.
        is_warm: Whether the network was trained before. The weights a warm stage starts
            from are kept if no epoch beats them on the held-out rows.
        num_batches: Batches of an epoch at most, where early stopping must look more
            often than once a pass through all rows.
        is_bounded: Whether early stopping follows the bounded estimate of the expected
            loss (`sbi_multilevel.held_out`) rather than the sum of the terms.

    Example:
    --------

    ::

        >>> Stage((Term(1, 0.5), Term(0, 0.5)), is_warm=True).levels
        (0, 1)
    """

    terms: tuple[Term, ...]
    adjustment: Adjustment = "none"
    rate: float = 1.0
    freeze: tuple[str, ...] = ()
    is_warm: bool = False
    num_batches: int | None = None
    is_bounded: bool = False

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels whose rows are used, rising."""
        return tuple(sorted({term.level for term in self.terms}))


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """What all recipes share.

    Args:
        early_stopping: Whether `validation_fraction` of the rows of each level is held
            out, training stops when their loss no longer improves, and the best weights
            are kept. If `False`, all rows are trained on for `max_num_epochs` epochs
            and the last weights are kept, as in the reference code of ML-NPE.
        betas: Decay rates of the moments in Adam; that reference code has (0.85,
            0.999).
        weight_decay: L2 penalty in Adam.

    Raises:
        ValueError: If a setting is out of range.
    """

    needs_pairs: ClassVar[bool]

    early_stopping: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_field_types(self)
        if not all(0 <= beta < 1 for beta in self.betas) or len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers in [0, 1), not {self.betas}.")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must be >= 0, but is {self.weight_decay}.")

    @property
    def min_held_out(self) -> int:
        """Rows of each level that early stopping holds out at least."""
        return 1

    @abstractmethod
    def stages(self, num_levels: int, is_pretrained: bool = False) -> tuple[Stage, ...]:
        """The stages, in the order they are trained.

        Args:
            num_levels: Levels there are rows of.
            is_pretrained: Whether training starts from trained weights.
        """

    @abstractmethod
    def arrange(self, parts: Sequence[LevelSimulations]) -> MultilevelSimulations:
        """The rows as the stages use them.

        Args:
            parts: What was appended, in that order; some parts may be of one level.
        """

    @abstractmethod
    def align(
        self,
        simulations: MultilevelSimulations,
        terms: Sequence[Term],
        moments: Moments | None,
    ) -> list[Alignment]:
        """The map of the rows of each term.

        Args:
            simulations: Arranged training rows.
            terms: The terms.
            moments: Moments of the x that the network was built on; `None` if it is not
                built yet and will be on level 0.
        """
