"""What a stage of training minimises: signed terms of several levels."""

from __future__ import annotations

from dataclasses import dataclass

from sbi_multilevel.losses.gradients import Adjustment
from sbi_multilevel.training.schedule import OneCycle


@dataclass(frozen=True)
class Term:
    """One signed mean of the loss.

    Args:
        level: Level whose simulations the mean is over.
        weight: Factor in front of the mean, e.g. -1 for the coarse side of a pair.
        coarse: Whether the outputs are `x_coarse` of the simulations rather than `x`.

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
            from are kept if no epoch beats them on the held-out simulations.
        num_batches: Batches of an epoch at most, where early stopping must look more
            often than once a pass through all simulations.
        is_bounded: Whether early stopping follows the bounded estimate of the expected
            loss (`sbi_multilevel.losses.held_out`) rather than the sum of the terms.
        schedule: Learning rates of its steps; constant if `None`.

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
    schedule: OneCycle | None = None

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels whose simulations are used, rising."""
        return tuple(sorted({term.level for term in self.terms}))

    def epoch_size(self, num_batches: int) -> int:
        """Batches of an epoch.

        Args:
            num_batches: Batches of a pass through all simulations.
        """
        limits = [num_batches]
        if self.num_batches is not None:
            limits.append(self.num_batches)
        if self.schedule is not None:
            limits.append(self.schedule.epoch_size)
        return min(limits)
