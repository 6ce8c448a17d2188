r"""Stages of training: signed terms of several levels, and learning rates.

A stage minimises a signed sum of terms, each a mean over simulations of a level, at a
constant learning rate, or at one that rises and falls within a fixed number of steps.

With the learning rate :math:`\eta` of `train`, step k of K has the rate

.. math::

    \eta_k = r\, \eta \cdot \begin{cases}
        k / (\rho K) & k < \rho K, \\
        \tfrac12 \bigl(1 + \cos \pi \tfrac{k - \rho K}{(1 - \rho) K}\bigr)
        & \text{otherwise,}
    \end{cases}

a linear warm-up and a cosine decay. A large rate and its decay reach the held-out loss
of many epochs at a small constant rate in a fraction of the steps. Early stopping
remains: training ends before step K if the held-out loss has not improved for
`stop_after_epochs` epochs, and the weights with the lowest held-out loss are kept.

Reference: Loshchilov and Hutter (2017), *SGDR: stochastic gradient descent with warm
restarts*, ICLR 2017, equation 5; Smith and Topin (2018), *Super-convergence: very fast
training of neural networks using large learning rates*, arXiv:1708.07120.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch.optim import Optimizer

from sbi_multilevel.losses.gradients import Adjustment
from sbi_multilevel.utils.argument_types import check_field_types

_MIN_FACTOR = 1e-3  # of the peak, so that no step is without effect
_NUM_EPOCHS = 40  # at least, so that early stopping can choose between weights


@dataclass(frozen=True, kw_only=True)
class OneCycle:
    """A learning rate that rises and falls once, see the module.

    Args:
        num_steps: Steps K of a stage that starts from random weights; more if a pass
            through its simulations has more.
        rate: Largest learning rate r, relative to `learning_rate` of `train`.
        warm_up: Share of the steps in which the learning rate rises.
        fine_tuning_steps: Steps K of a stage that starts from trained weights.
        fine_tuning_rate: Largest learning rate r of such a stage.

    Raises:
        ValueError: If a number is out of range.

    Example:
    --------

    ::

        >>> from sbi_multilevel import OneCycle
        >>> cycle = OneCycle(num_steps=100, rate=6.0, warm_up=0.1)
        >>> [round(cycle.factor(step, 100), 2) for step in (0, 9, 55, 99)]
        [0.6, 6.0, 2.9, 0.01]
    """

    num_steps: int = 1_500
    rate: float = 8.0
    warm_up: float = 0.1
    fine_tuning_steps: int = 300
    fine_tuning_rate: float = 2.0

    def __post_init__(self) -> None:
        check_field_types(self)
        for name in ("num_steps", "rate", "fine_tuning_steps", "fine_tuning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, but is {getattr(self, name)}.")
        if not 0 <= self.warm_up < 1:
            raise ValueError(f"warm_up must be in [0, 1), but is {self.warm_up}.")

    @property
    def epoch_size(self) -> int:
        """Largest number of steps between evaluations of the held-out loss."""
        return math.ceil(self.num_steps / _NUM_EPOCHS)

    def factor(self, step: int, num_steps: float) -> float:
        """Factor to the learning rate.

        Args:
            step: Steps that were taken before.
            num_steps: Steps K of the cycle.
        """
        done, warm_up = (step + 1) / num_steps, self.warm_up
        if done <= warm_up:
            return self.rate * done / warm_up
        decay = min((done - warm_up) / (1 - warm_up), 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * decay))
        return self.rate * max(cosine, _MIN_FACTOR)


def fine_tuning(schedule: OneCycle | None) -> OneCycle | None:
    """The schedule of a stage that starts from trained weights."""
    if schedule is None:
        return None
    steps, rate = schedule.fine_tuning_steps, schedule.fine_tuning_rate
    return replace(schedule, num_steps=steps, rate=rate)


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
        of_schedule = None if self.schedule is None else self.schedule.epoch_size
        limits = (num_batches, self.num_batches, of_schedule)
        return min(limit for limit in limits if limit is not None)


@dataclass(eq=False)
class Cycle:
    """The learning rates of a stage under way.

    Args:
        schedule: The schedule; `None` for a constant rate.
        num_steps: Its steps.
        epoch_size: Steps of an epoch.
        is_cut: Whether these are fewer than the schedule has.
        index: Steps that were taken.
    """

    schedule: OneCycle | None
    num_steps: float
    epoch_size: int
    is_cut: bool = False
    index: int = 0

    @classmethod
    def of(
        cls,
        schedule: OneCycle | None,
        num_available: int,
        epoch_size: int,
        max_epochs: int,
    ) -> Cycle:
        """The cycle of a stage.

        Args:
            schedule: The schedule; `None` for a constant rate, without an end.
            num_available: Batches of a pass through all simulations.
            epoch_size: Batches of an epoch.
            max_epochs: Epochs at most.
        """
        if schedule is None:
            return cls(None, math.inf, epoch_size)
        wanted = math.ceil(max(schedule.num_steps, num_available) / epoch_size)
        epochs = min(wanted, max_epochs)
        return cls(schedule, epochs * epoch_size, epoch_size, epochs < wanted)

    def begin_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch, also after an interruption."""
        self.index = epoch * self.epoch_size

    def is_finished(self, epoch: int) -> bool:
        """Whether all steps were taken after so many epochs."""
        return epoch * self.epoch_size >= self.num_steps

    def step(self, optimizer: Optimizer) -> None:
        """Take a step at the learning rate of the schedule."""
        (group,) = optimizer.param_groups
        rate = group["lr"]
        if self.schedule is not None:
            group["lr"] = rate * self.schedule.factor(self.index, self.num_steps)
        optimizer.step()
        group["lr"] = rate
        self.index += 1
