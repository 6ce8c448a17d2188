r"""Recipes: which rows a step is taken on, with which sign, and how they are combined.

A recipe is plain data. It names the signed terms of the loss

.. math:: \ell(\phi) = \sum_t w_t \, \frac1{n_t} \sum_{i} f(x_{t,i}, \theta_{t,i}),

the rule that combines the gradients of the terms (`sbi_multilevel.gradients`), how the
levels are aligned (`sbi_multilevel.alignment`), and when to stop. Trainers do the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from sbi_multilevel.alignment import ALIGNMENTS, AlignmentKind
from sbi_multilevel.gradients import ADJUSTMENTS, Adjustment


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
class Multilevel:
    r"""The multilevel Monte Carlo recipe of Hikida et al. (2025).

    .. math::

        \ell(\phi) = \frac1{n_0}\sum f_0
        + \sum_{l=1}^{L} \frac1{n_l} \sum \left( f_l - f_{l-1} \right)

    Args:
        adjustment: How the gradients of the terms are combined (their Algorithm 1):
            `"rescale_project"`, `"rescale"`, `"project"` or `"none"`.
        alignment: How rows of lower levels are moved before use, see
            `sbi_multilevel.alignment`: not at all (`None`), `"paired"` (affine, from
            the pairs), or `"own"` (each level standardised by its own mean and standard
            deviation, as in the reference code).
        early_stopping: Whether `validation_fraction` of the rows of each level is held
            out, training stops when their loss no longer improves, and the best weights
            are kept. If `False`, all rows are trained on for `max_num_epochs` epochs
            and the last weights are kept, as in the reference code.
        betas: Decay rates of the moments in Adam; the reference code has (0.85, 0.999).
        weight_decay: L2 penalty in Adam.

    Raises:
        ValueError: If a setting is none of those listed.

    Example:
    --------

    ::

        >>> Multilevel(adjustment="project").terms(num_levels=2)
        (Term(level=0, weight=1.0, coarse=False),
         Term(level=1, weight=1.0, coarse=False),
         Term(level=1, weight=-1.0, coarse=True))
    """

    adjustment: Adjustment = "rescale_project"
    alignment: AlignmentKind | None = None
    early_stopping: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.adjustment not in ADJUSTMENTS:
            raise ValueError(
                f"adjustment must be one of {ADJUSTMENTS}, but is {self.adjustment!r}."
            )
        if self.alignment is not None and self.alignment not in ALIGNMENTS:
            raise ValueError(
                f"alignment must be None or one of {ALIGNMENTS}, but is "
                f"{self.alignment!r}."
            )
        if not all(0 <= beta < 1 for beta in self.betas) or len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers in [0, 1), not {self.betas}.")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must be >= 0, but is {self.weight_decay}.")

    def terms(self, num_levels: int) -> tuple[Term, ...]:
        """Terms of the telescoping sum: base, then fine and coarse of each level."""
        terms = [Term(level=0)]
        for level in range(1, num_levels):
            terms += [Term(level), Term(level, weight=-1.0, coarse=True)]
        return tuple(terms)


RECIPES = {"multilevel": Multilevel()}


def get_recipe(recipe: str | Multilevel) -> Multilevel:
    """The recipe of a name, or the recipe itself.

    Raises:
        ValueError: If no recipe has this name.
    """
    if isinstance(recipe, Multilevel):
        return recipe
    if recipe not in RECIPES:
        raise ValueError(
            f"recipe must be one of {sorted(RECIPES)} or a `Multilevel(...)`, but is "
            f"{recipe!r}."
        )
    return RECIPES[recipe]
