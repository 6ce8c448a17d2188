r"""Which levels are worth having.

Any chain of levels :math:`l_0 < l_1 < \dots < l_k = L` telescopes,

.. math:: \mathbb{E} f_L = \mathbb{E} f_{l_0}
    + \sum_{j \ge 1} \mathbb{E} [f_{l_j} - f_{l_{j-1}}],

so leaving levels out gives another multilevel loss, with pairs of other levels. At a
budget B and the best number of rows of each level
(`sbi_multilevel.allocation.optimal`), its least variance is

.. math:: \frac1B \Big( \sqrt{\mathrm{Var}[f_{l_0}]\, C_{l_0}} + \sum_{j \ge 1}
    \sqrt{\mathrm{Var}[f_{l_j} - f_{l_{j-1}}]\,
    (C_{l_j} + C_{l_{j-1}})} \Big)^2 ,

and the chain (L) alone is plain high-fidelity simulation, :math:`\mathrm{Var}[f_L]\,
C_L / B`. A level is worth having if no chain without it has less variance. All chains
have the same factor 1/B, so the verdict does not depend on the budget, as long as it
pays some rows of each level.

Chains that end below L are not compared: whether a cheaper level alone would do is a
question of bias, which held-out high-fidelity rows answer.

This is the variance of the loss at one :math:`\phi`. It says how well the loss is known
there, not how a network generalises from few rows: low-fidelity rows also teach it
what they share with the high-fidelity ones, which the loss alone does not show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from sbi_multilevel.allocation.optimal import (
    check_budget,
    check_costs,
    check_variances,
    row_costs,
)
from sbi_multilevel.utils.argument_types import check_types

# to leave levels out must promise more than this factor
_WORTHWHILE = 1.1
# share of resamples that must agree
_SURE = 0.9


@dataclass(frozen=True)
class Plan:
    r"""A chain of levels, and what it reaches.

    Args:
        levels: Levels of the chain, rising to L.
        costs: Cost of a row of each of them, a pair with the one before.
        variances: Variance of each term.
        budget: Cost of all rows.
    """

    levels: tuple[int, ...]
    costs: tuple[float, ...]
    variances: tuple[float, ...]
    budget: float

    @property
    def error_variance(self) -> float:
        r"""Least variance of the loss, :math:`(\sum_l \sqrt{V_l c_l})^2 / B`."""
        return float(np.sqrt(np.multiply(self.variances, self.costs)).sum() ** 2) / (
            self.budget
        )


@dataclass(frozen=True)
class Advice:
    """Which levels are worth having at a budget.

    Args:
        plans: All chains of levels that end in L, the best first.
        support: Share of bootstrap resamples of a pilot in which the best chain beats
            that of all levels; `None` where there was no pilot.
    """

    plans: tuple[Plan, ...]
    support: float | None = None

    @property
    def best(self) -> Plan:
        """The chain with the least variance."""
        return self.plans[0]

    @property
    def full(self) -> Plan:
        """The chain of all levels."""
        return max(self.plans, key=lambda plan: len(plan.levels))

    @property
    def plain(self) -> Plan:
        """Level L alone."""
        return min(self.plans, key=lambda plan: len(plan.levels))

    @property
    def gain(self) -> float:
        """Variance of plain high-fidelity simulation over that of all levels.

        All levels are worth so many times the high-fidelity rows that the budget pays.
        """
        return _ratio(self.plain.error_variance, self.full.error_variance)

    @property
    def loss(self) -> float:
        """Variance of all levels over that of the best chain, at least 1."""
        return _ratio(self.full.error_variance, self.best.error_variance)

    @property
    def warning(self) -> str | None:
        """What to leave out, in words; `None` if nothing, or if it is not sure."""
        is_sure = self.support is None or self.support >= _SURE
        return self._text() if is_sure and self.loss > _WORTHWHILE else None

    @property
    def verdict(self) -> str:
        """The warning, or what else there is to say."""
        if self.loss <= _WORTHWHILE:
            return "All levels are worth having."
        if self.warning is not None:
            return self.warning
        return f"Not sure, more pilot rows would tell: {self._text()}"

    def _text(self) -> str:
        top = self.full.levels[-1]
        dropped = sorted(set(self.full.levels) - set(self.best.levels))
        support = self.support
        sure = "" if support is None else f" ({support:.0%} of resamples agree)"
        if self.best == self.plain:
            affordable = int(self.budget // self.plain.costs[0])
            return (
                f"Plain high-fidelity simulation is best{sure}: at equal cost, "
                f"{affordable} rows of level {top} alone estimate the loss with a "
                f"variance {self.loss:.2g} times smaller than all levels together."
            )
        plural = len(dropped) > 1
        return (
            f"Level{'s' * plural} {_names(dropped)} {'are' if plural else 'is'} not "
            f"worth having{sure}: at equal cost, levels {_names(self.best.levels)} "
            f"estimate the loss with a variance {self.loss:.2g} times smaller than all "
            "levels."
        )

    @property
    def budget(self) -> float:
        """Cost of all rows."""
        return self.best.budget

    def __str__(self) -> str:
        affordable = self.budget / self.plain.costs[0]
        lines = [
            f"At a budget of {self.budget:.6g}, in units of plain high-fidelity "
            f"simulation ({affordable:.0f} rows of level {self.full.levels[-1]}):"
        ]
        for plan in self.plans:
            gain = _ratio(self.plain.error_variance, plan.error_variance)
            lines.append(
                f"  levels {_names(plan.levels)}: variance of the loss "
                f"{1 / gain:.3g}, worth {gain * affordable:.0f} high-fidelity rows"
            )
        return "\n".join([*lines, self.verdict])


def advise(
    costs: Sequence[float],
    difference_variances: Sequence[Sequence[float]],
    budget: float,
    support: float | None = None,
) -> Advice:
    r"""Compare all chains of levels at a budget.

    .. math:: \min_{l_0 < \dots < l_k = L} \frac1B \Big( \sqrt{\mathrm{Var}[f_{l_0}]
        C_{l_0}} + \sum_{j \ge 1} \sqrt{\mathrm{Var}[f_{l_j} - f_{l_{j-1}}]\,
        (C_{l_j} + C_{l_{j-1}})} \Big)^2

    Args:
        costs: Cost of one run of each simulator, cheapest first.
        difference_variances: Row l holds :math:`\mathrm{Var}[f_l - f_k]` for each
            :math:`k < l`, and last :math:`\mathrm{Var} f_l`.
        budget: Cost of all rows.
        support: See `Advice`.

    Returns:
        The chains, the best first.

    Raises:
        ValueError: If an argument is out of range.

    Example:
    --------

    A middle level that is as dear as the highest, and no nearer to it than level 0:

    ::

        >>> advice = advise(
        ...     costs=(1.0, 90.0, 100.0),
        ...     difference_variances=((1.0,), (0.01, 1.0), (0.01, 0.01, 1.0)),
        ...     budget=10_000.0,
        ... )
        >>> print(advice)
        At a budget of 10000, in units of plain high-fidelity simulation (100 rows...):
          levels 0, 2: variance of the loss 0.0402, worth 2488 high-fidelity rows
          levels 0, 1, 2: variance of the loss 0.111, worth 901 high-fidelity rows
          levels 2: variance of the loss 1, worth 100 high-fidelity rows
          levels 1, 2: variance of the loss 1.18, worth 85 high-fidelity rows
        Level 1 is not worth having: at equal cost, levels 0, 2 estimate the loss ...
    """
    check_types(advise, locals())
    check_costs(costs)
    for level, row in enumerate(difference_variances):
        check_variances(row, level + 1)
    if len(difference_variances) != len(costs):
        raise ValueError(
            f"difference_variances has {len(difference_variances)} rows, costs has "
            f"{len(costs)} levels. Pass one row a level."
        )
    check_budget(budget)
    top = len(costs) - 1
    plans = []
    for size in range(top + 1):
        for below in combinations(range(top), size):
            chain = (*below, top)
            variances = [difference_variances[chain[0]][-1]]
            variances += [difference_variances[b][a] for a, b in zip(chain, chain[1:])]
            unit = row_costs([costs[level] for level in chain])
            plans.append(Plan(chain, unit, tuple(map(float, variances)), float(budget)))
    plans.sort(key=lambda plan: plan.error_variance)
    return Advice(tuple(plans), support)


def _ratio(numerator: float, denominator: float) -> float:
    if numerator == denominator:
        return 1.0
    return numerator / denominator if denominator > 0 else np.inf


def _names(levels: Sequence[int]) -> str:
    return ", ".join(map(str, levels))
