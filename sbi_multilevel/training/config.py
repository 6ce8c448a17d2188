r"""The settings of a method: which simulations enter a step, and with which sign.

A method trains a list of *stages* one after the other, each with its own optimizer and
its own early stopping. A stage has the signed terms of its loss

.. math:: \ell(\phi) = \sum_t w_t \, \frac1{n_t} \sum_{i} f(x_{t,i}, \theta_{t,i}),

the rule that combines the gradients of the terms (`sbi_multilevel.losses.gradients`),
and the parameters that are frozen. The settings also determine how the levels are
aligned (`sbi_multilevel.level_maps`), and when training stops.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sbi_multilevel.data.moments import Moments
from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations
from sbi_multilevel.level_maps import Alignment
from sbi_multilevel.training.schedule import OneCycle, Stage, Term
from sbi_multilevel.utils.argument_types import check_field_types

# Simulations of a level that a schedule holds out at most: their loss is computed many
# times in a training that may pass through a million simulations only once.
_MAX_HELD_OUT = 2_000


@dataclass(frozen=True, kw_only=True)
class MethodConfig(ABC):
    """Settings that all methods share.

    Args:
        early_stopping: Whether `validation_fraction` of the simulations of each level
            is held out, training stops when their loss no longer improves, and the best
            weights are kept. If `False`, all simulations are trained on for
            `max_num_epochs` epochs and the last weights are kept, as in the reference
            code of ML-NPE.
        betas: Decay rates of the moments in Adam; that reference code has (0.85,
            0.999).
        weight_decay: L2 penalty in Adam.
        schedule: `OneCycle()`: the learning rate rises and falls within a fixed number
            of steps, which takes a fraction of the time. `None`: it is constant, as in
            sbi and in the papers.

    Raises:
        ValueError: If a setting is out of range.
    """

    needs_pairs: ClassVar[bool]
    is_ensemble: ClassVar[bool] = False
    maps_estimator: ClassVar[bool] = False  # see `sbi_multilevel.estimators`

    # Whether theta is unconstrained; not annotated, as it is a field of some methods.
    unconstrained = False

    early_stopping: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: OneCycle | None = None

    def __post_init__(self) -> None:
        check_field_types(self)
        if not all(0 <= beta < 1 for beta in self.betas) or len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers in [0, 1), not {self.betas}.")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must be >= 0, but is {self.weight_decay}.")

    @property
    def min_held_out(self) -> int:
        """Simulations of each level that early stopping holds out at least."""
        return 1

    @property
    def max_held_out(self) -> int | None:
        """Simulations of each level that early stopping holds out at most."""
        return None if self.schedule is None else _MAX_HELD_OUT

    @abstractmethod
    def stages(self, num_levels: int, is_pretrained: bool = False) -> tuple[Stage, ...]:
        """The stages, in the order they are trained.

        Args:
            num_levels: Number of levels.
            is_pretrained: Whether training starts from trained weights.
        """

    @abstractmethod
    def arrange(self, parts: Sequence[LevelSimulations]) -> MultilevelSimulations:
        """The simulations as the stages use them.

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
        """The map of the simulations of each term.

        Args:
            simulations: Arranged training simulations.
            terms: The terms.
            moments: Moments of the x that the network was built on; `None` if it is not
                built yet and will be on level 0.
        """


def check_config(
    config: Any, config_type: type[MethodConfig], options: Mapping[str, Any]
) -> MethodConfig:
    """The settings, or the defaults of the method.

    Args:
        config: What a trainer was given; `None` for the defaults.
        config_type: The settings that it takes.
        options: Its other options by name.

    Raises:
        TypeError: If they are the settings of another method.
    """
    if "recipe" in options:
        raise TypeError(
            "recipe was removed. A class is a method: use `MLNPE`, `MFNPE` or "
            "`HybridNPE` (`MLNLE`, `MFNLE`, `HybridNLE`), and pass its settings as "
            f"`config={config_type.__name__}(...)`."
        )
    if config is None:
        return config_type()
    if not isinstance(config, config_type):
        raise TypeError(
            f"config is {config!r} of type {type(config).__name__}, but must be a "
            f"`{config_type.__name__}`. For the settings of another method use its "
            "trainer."
        )
    return config
