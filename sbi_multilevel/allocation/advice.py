r"""Which levels to use.

Any chain of levels :math:`l_0 < l_1 < \dots < l_k = L` telescopes,

.. math:: \mathbb{E} f_L = \mathbb{E} f_{l_0}
    + \sum_{j \ge 1} \mathbb{E} [f_{l_j} - f_{l_{j-1}}],

so leaving levels out gives another multilevel loss, with other pairs of levels. At a
budget B and the optimal number of simulations of each level
(`sbi_multilevel.allocation.optimal`), its variance is

.. math:: \frac1B \Big( \sqrt{\mathrm{Var}[f_{l_0}]\, C_{l_0}} + \sum_{j \ge 1}
    \sqrt{\mathrm{Var}[f_{l_j} - f_{l_{j-1}}]\,
    (C_{l_j} + C_{l_{j-1}})} \Big)^2 ,

and the chain (L) is plain high-fidelity simulation, with :math:`\mathrm{Var}[f_L]\, C_L
/ B`. A level is useful if no chain without it has less variance. All chains have the
factor 1/B in common, so the advice does not depend on the budget, as long as it pays
for some simulations of each level.

Chains that end below L are not compared: whether a lower level alone would be
sufficient is a question of bias, which held-out high-fidelity simulations answer.

This is the variance of the loss at one :math:`\phi`. It describes how precisely the
loss is estimated there, not how a network generalizes from few simulations. A network
also learns from low-fidelity simulations what they share with high-fidelity ones, which
the variance does not measure.
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
    simulation_costs,
)
from sbi_multilevel.utils.argument_types import check_types

# minimum factor in variance for the advice to leave levels out
_MIN_LOSS = 1.1
# minimum share of resamples that agree
_MIN_SUPPORT = 0.9


@dataclass(frozen=True)
class Plan:
    r"""A chain of levels, and its variance at a budget.

    Args:
        levels: Levels of the chain, ascending to L.
        costs: Cost of a simulation of each of them, a pair with the previous one.
        variances: Variance of each term.
        budget: Cost of all simulations.
    """

    levels: tuple[int, ...]
    costs: tuple[float, ...]
    variances: tuple[float, ...]
    budget: float

    @property
    def error_variance(self) -> float:
        r"""Least variance of the loss, :math:`(\sum_l \sqrt{V_l c_l})^2 / B`."""
        total = np.sqrt(np.multiply(self.variances, self.costs)).sum()
        return float(total**2) / self.budget


@dataclass(frozen=True)
class Advice:
    """Which levels to use at a budget.

    Args:
        plans: All chains of levels that end in L, the best first.
        support: Share of bootstrap resamples of a pilot in which the best chain has
            less variance than that of all levels; `None` without a pilot.
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

        This is the effective number of high-fidelity simulations of all levels over the
        number that the budget pays for.
        """
        return _ratio(self.plain.error_variance, self.full.error_variance)

    @property
    def loss(self) -> float:
        """Variance of all levels over that of the best chain, at least 1."""
        return _ratio(self.full.error_variance, self.best.error_variance)

    @property
    def warning(self) -> str | None:
        """Which levels to leave out, as text; `None` if none, or if it is uncertain."""
        return self.verdict if self._is_certain and self.loss > _MIN_LOSS else None

    @property
    def verdict(self) -> str:
        """The warning, or a statement that there is none."""
        if self.loss <= _MIN_LOSS:
            return "All levels are useful."
        doubt = "" if self._is_certain else "Uncertain, use more pilot simulations: "
        support = self.support
        agreed = "" if support is None else f" ({support:.0%} of resamples agree)"
        less = f"a variance {self.loss:.2g} times smaller than all levels"
        if self.best == self.plain:
            affordable = int(self.budget // self.plain.costs[0])
            return (
                f"{doubt}Plain high-fidelity simulation is best{agreed}: at equal "
                f"cost, {affordable} simulations of level {self.plain.levels[0]} alone "
                f"estimate the loss with {less} together."
            )
        dropped = sorted(set(self.full.levels) - set(self.best.levels))
        subject = "Levels {} are" if len(dropped) > 1 else "Level {} is"
        return (
            f"{doubt}{subject.format(_names(dropped))} not useful{agreed}: at equal "
            f"cost, levels {_names(self.best.levels)} estimate the loss with {less}."
        )

    @property
    def _is_certain(self) -> bool:
        return self.support is None or self.support >= _MIN_SUPPORT

    @property
    def budget(self) -> float:
        """Cost of all simulations."""
        return self.best.budget

    def __str__(self) -> str:
        affordable = self.budget / self.plain.costs[0]
        lines = [
            f"At a budget of {self.budget:.6g}, in units of plain high-fidelity "
            f"simulation ({affordable:.0f} of level {self.full.levels[-1]}):"
        ]
        for plan in self.plans:
            gain = _ratio(self.plain.error_variance, plan.error_variance)
            lines.append(
                f"  levels {_names(plan.levels)}: variance of the loss "
                f"{1 / gain:.3g}, effective number {gain * affordable:.0f}"
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
        costs: Cost of one run of each simulator, the lowest fidelity first.
        difference_variances: For each level l, :math:`\mathrm{Var}[f_l - f_k]` for each
            :math:`k < l`, and last :math:`\mathrm{Var} f_l`.
        budget: Cost of all simulations.
        support: See `Advice`.

    Returns:
        The chains, the best first.

    Raises:
        ValueError: If an argument is out of range.

    Example:
    --------

    A middle level as expensive as the highest, and no closer to it than level 0:

    ::

        >>> advice = advise(
        ...     costs=(1.0, 90.0, 100.0),
        ...     difference_variances=((1.0,), (0.01, 1.0), (0.01, 0.01, 1.0)),
        ...     budget=10_000.0,
        ... )
        >>> print(advice)
        At a budget of 10000, in units of plain high-fidelity simulation (100 of ...):
          levels 0, 2: variance of the loss 0.0402, effective number 2488
          levels 0, 1, 2: variance of the loss 0.111, effective number 901
          levels 2: variance of the loss 1, effective number 100
          levels 1, 2: variance of the loss 1.18, effective number 85
        Level 1 is not useful: at equal cost, levels 0, 2 estimate the loss with a ...
    """
    check_types(advise, locals())
    check_costs(costs)
    for level, row in enumerate(difference_variances):
        check_variances(row, level + 1, f"difference_variances[{level}]")
    if len(difference_variances) != len(costs):
        raise ValueError(
            f"difference_variances has {len(difference_variances)} entries, costs has "
            f"{len(costs)} levels. Pass one entry per level."
        )
    check_budget(budget)
    top = len(costs) - 1
    plans = []
    for size in range(top + 1):
        for below in combinations(range(top), size):
            chain = (*below, top)
            variances = [difference_variances[chain[0]][-1]]
            variances += [difference_variances[b][a] for a, b in zip(chain, chain[1:])]
            unit = simulation_costs([costs[level] for level in chain])
            plans.append(Plan(chain, unit, tuple(map(float, variances)), float(budget)))
    plans.sort(key=lambda plan: plan.error_variance)
    return Advice(tuple(plans), support)


def _ratio(numerator: float, denominator: float) -> float:
    if numerator == denominator:
        return 1.0
    return numerator / denominator if denominator > 0 else np.inf


def _names(levels: Sequence[int]) -> str:
    return ", ".join(map(str, levels))
