r"""Recipes: which rows a step is taken on, with which sign, and how they are combined.

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
from typing import ClassVar, Literal

from sbi_multilevel.alignment import (
    ALIGNMENTS,
    Alignment,
    AlignmentKind,
    Moments,
    fit_alignments,
    standardise_to,
)
from sbi_multilevel.gradients import ADJUSTMENTS, Adjustment
from sbi_multilevel.simulations import (
    LevelSimulations,
    MultilevelSimulations,
    merge_levels,
    split_pairs,
)


@dataclass(frozen=True)
class Term:
    """One signed mean of the loss.

    Args:
        level: Level whose rows the mean is over.
        weight: Factor in front of the mean, e.g. -1 for the coarse side of a pair.
        coarse: Whether the outputs are `x_coarse` of the rows rather than `x`.
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
    """

    terms: tuple[Term, ...]
    adjustment: Adjustment = "none"
    rate: float = 1.0
    freeze: tuple[str, ...] = ()
    is_warm: bool = False

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
    """

    needs_pairs: ClassVar[bool]

    early_stopping: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas) or len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers in [0, 1), not {self.betas}.")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must be >= 0, but is {self.weight_decay}.")

    @abstractmethod
    def stages(self, num_levels: int, is_pretrained: bool = False) -> tuple[Stage, ...]:
        """The stages, in the order they are trained.

        Args:
            num_levels: Levels there are rows of.
            is_pretrained: Whether training starts from trained weights.
        """

    @abstractmethod
    def arrange(self, parts: Sequence[LevelSimulations]) -> MultilevelSimulations:
        """The rows as the stages use them."""

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


@dataclass(frozen=True, kw_only=True)
class Multilevel(Recipe):
    r"""The multilevel Monte Carlo recipe of Hikida et al. (2025).

    .. math::

        \ell(\phi) = \frac1{n_0}\sum f_0
        + \sum_{l=1}^{L} \frac1{n_l} \sum \left( f_l - f_{l-1} \right)

    One stage on the rows of all levels. Rows above level 0 must be paired.

    Args:
        adjustment: How the gradients of the terms are combined (their Algorithm 1):
            `"rescale_project"`, `"rescale"`, `"project"` or `"none"`.
        alignment: How rows of lower levels are moved before use, see
            `sbi_multilevel.alignment`: not at all (`None`), `"paired"` (affine, from
            the pairs), or `"own"` (each level standardised by its own mean and standard
            deviation, as in the reference code).

    Other arguments are those of `Recipe`.

    Raises:
        ValueError: If a setting is none of those listed.

    Example:
    --------

    ::

        >>> (stage,) = Multilevel(adjustment="project").stages(num_levels=2)
        >>> stage.terms
        (Term(level=0, weight=1.0, coarse=False),
         Term(level=1, weight=1.0, coarse=False),
         Term(level=1, weight=-1.0, coarse=True))
    """

    needs_pairs: ClassVar[bool] = True

    adjustment: Adjustment = "rescale_project"
    alignment: AlignmentKind | None = None

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

    def stages(self, num_levels: int, is_pretrained: bool = False) -> tuple[Stage, ...]:
        """One stage: base, then fine and coarse of each level."""
        terms = [Term(level=0)]
        for level in range(1, num_levels):
            terms += [Term(level), Term(level, weight=-1.0, coarse=True)]
        return (Stage(tuple(terms), self.adjustment, is_warm=is_pretrained),)

    def arrange(self, parts: Sequence[LevelSimulations]) -> MultilevelSimulations:
        """The rows as they are."""
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


@dataclass(frozen=True, kw_only=True)
class Transfer(Recipe):
    r"""The transfer recipe of Krouglova et al. (2026): pre-train cheap, fine-tune dear.

    One stage a level: the network is trained on level 0 until early stopping, from
    those weights on level 1, and so on to the highest level. Rows need not be paired;
    of paired ones, the coarse sides join the rows of the level below.

    Args:
        alignment: `"own"`: each level's x is standardised by its own mean and standard
            deviation, as in the reference code, which takes the new ones before
            fine-tuning; posteriors read x at that scale. `None`: x stays as it is,
            better with some ten high-fidelity rows, whose moments are noise.
        unconstrained: Whether NPE models theta in unconstrained space, so that nothing
            leaks out of the prior. By default (`None`) it does if `density_estimator`
            is the name of a network; a builder is taken as it is (wrap it by
            `unconstrained(builder, prior)` where it has no such option).
        joint_pretraining: Whether the first stage trains on the rows of all levels, the
            mean loss of each level with equal weight, rather than on level 0 alone;
            fine-tuning on the highest level follows.
        fine_tuning_rate: Factor to the learning rate in all stages but the first.
        freeze: Patterns of the names of parameters that all stages but the first leave
            as they are, e.g. `("*embedding_net*",)`; for the names see
            `estimator.named_parameters()`.

    Other arguments are those of `Recipe`.

    Raises:
        ValueError: If a setting is none of those listed.

    Example:
    --------

    ::

        >>> pretrain, fine_tune = Transfer(fine_tuning_rate=0.1).stages(num_levels=2)
        >>> pretrain.levels, fine_tune.levels, fine_tune.rate
        ((0,), (1,), 0.1)
    """

    needs_pairs: ClassVar[bool] = False

    alignment: Literal["own"] | None = "own"
    unconstrained: bool | None = None
    joint_pretraining: bool = False
    fine_tuning_rate: float = 1.0
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alignment not in (None, "own"):
            raise ValueError(
                f"alignment must be None or 'own', but is {self.alignment!r}."
            )
        if not self.fine_tuning_rate > 0:
            raise ValueError(
                f"fine_tuning_rate must be > 0, but is {self.fine_tuning_rate}."
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
                stages.append(Stage(terms))
            else:
                tuning = {"rate": self.fine_tuning_rate, "freeze": self.freeze}
                stages.append(Stage(terms, is_warm=True, **tuning))
        return tuple(stages)

    def arrange(self, parts: Sequence[LevelSimulations]) -> MultilevelSimulations:
        """The rows without pairs."""
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
        return standardise_to(moments, simulations, levels)


RECIPES: dict[str, Recipe] = {"multilevel": Multilevel(), "transfer": Transfer()}


def get_recipe(recipe: str | Recipe) -> Recipe:
    """The recipe of a name, or the recipe itself.

    Raises:
        ValueError: If no recipe has this name.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise ValueError(
            f"recipe must be one of {sorted(RECIPES)}, a `Multilevel(...)` or a "
            f"`Transfer(...)`, but is {recipe!r}."
        )
    return RECIPES[recipe]
