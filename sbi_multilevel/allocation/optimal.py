r"""How many rows each level gets.

The multilevel loss :math:`\frac1{n_0}\sum f_0 + \sum_{l \ge 1} \frac1{n_l} \sum (f_l -
f_{l-1})` (Hikida et al. 2025, equation 2) estimates :math:`\mathbb{E} f_L` with the
variance

.. math::

    \sum_{l=0}^{L} \frac{V_l}{n_l}, \qquad V_0 = \mathrm{Var} f_0, \quad
    V_l = \mathrm{Var}[f_l - f_{l-1}],

and its rows cost :math:`\sum_l n_l c_l` with :math:`c_0 = C_0` and, since a row above
level 0 is a pair, :math:`c_l = C_l + C_{l-1}`. With real :math:`n_l` the Lagrangian

.. math::

    \sum_l \frac{V_l}{n_l} + \lambda \Big( \sum_l n_l c_l - B \Big), \qquad
    -\frac{V_l}{n_l^2} + \lambda c_l = 0 \;\Rightarrow\;
    n_l = \sqrt{\frac{V_l}{\lambda c_l}}, \qquad
    \sqrt\lambda = \frac1B \sum_k \sqrt{V_k c_k}

gives, for a budget B, the classical rule of multilevel Monte Carlo (Giles 2008) and the
least variance,

.. math::

    n_l = B\, \frac{\sqrt{V_l / c_l}}{\sum_k \sqrt{V_k c_k}}, \qquad
    \min \sum_l \frac{V_l}{n_l} = \frac1B \Big( \sum_k \sqrt{V_k c_k} \Big)^2 .

Published statements of the rule for this loss differ in the exponent of the cost and in
the level it is of. What is used here is the derivation above, and the tests compare it
with a search over all integers.

Rows come in integers, at least two a level, and never fewer than were made already:
:math:`n_l \ge m_l`. With these bounds and real :math:`n_l` the stationary point is
:math:`n_l = \max(m_l, \sqrt{V_l / (\lambda c_l)})` (*water-filling*): levels below
their bound are put on it, one by one, and the rule is applied to the rest. It bounds
from below what integers can reach, and so guides a branch-and-bound search for the best
integers (`allocate`).

Reference: Giles (2008), *Multilevel Monte Carlo path simulation*, Operations Research
56(3); Hikida, Bharti, Jeffrey, Briol (2025), *Multilevel neural simulation-based
inference*, NeurIPS 2025, arXiv:2506.06087, equation 2 and Theorem 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sbi_multilevel.utils.argument_types import check_types

# a budget of 10 affords 100 rows of 0.1, whatever rounding makes of it
_ROUNDING = 1e-10
# searches of one pair of levels before the best allocation found so far is taken: it is
# reached only where three or more levels get some million rows each
_MAX_SEARCHES = 20_000


def row_costs(costs: Sequence[float]) -> tuple[float, ...]:
    """Cost of a row of each level: above level 0 it is a pair.

    Args:
        costs: Cost of one run of each simulator, the cheapest first.

    Example:
    --------

    ::

        >>> row_costs((1.0, 10.0, 100.0))
        (1.0, 11.0, 110.0)
    """
    below = (0.0, *costs[:-1])
    return tuple(float(cost + coarse) for cost, coarse in zip(costs, below))


def allocate(
    costs: Sequence[float],
    variances: Sequence[float],
    budget: float,
    minimum: int | Sequence[int] = 2,
) -> tuple[int, ...]:
    r"""Rows of each level that make the variance of the loss least.

    .. math::

        \min_{n} \sum_l \frac{V_l}{n_l} \quad \text{subject to} \quad
        \sum_l n_l c_l \le B, \; n_l \ge m_l, \; n_l \text{ integer.}

    The integers are the best ones, not rounded real numbers. (With three or more levels
    of millions of rows the search ends early; what is missed is then worth less than
    one row of the cheapest level.)

    Args:
        costs: Cost :math:`C_l` of one run of each simulator, cheapest first, > 0.
        variances: :math:`V_l` of each level, >= 0: the variance of :math:`f_0` at level
            0, that of :math:`f_l - f_{l-1}` above. Only their ratios matter.
        budget: Cost of all rows, in the unit of `costs`.
        minimum: Fewest rows of each level, one number or one a level, e.g. those that
            were made already. A level without variance gets no more.

    Returns:
        Rows of each level, :math:`(n_0, \dots, n_L)`.

    Raises:
        ValueError: If an argument is out of range, or the budget does not pay the
            minimum.

    Example:
    --------

    ::

        >>> allocate(costs=(1.0, 10.0), variances=(4.0, 1.0), budget=1_000.0)
        (373, 57)
        >>> allocate((1.0, 10.0), (4.0, 1.0), budget=1_000.0, minimum=(500, 2))
        (505, 45)
    """
    check_types(allocate, locals())
    check_costs(costs)
    least = _checked_minimum(minimum, len(costs))
    check_variances(variances, len(costs))
    unit = np.array(row_costs(costs))
    needed = float(unit @ least)
    if not np.isfinite(budget) or budget * (1 + _ROUNDING) < needed:
        raise ValueError(
            f"budget={budget} is too small or no number: the minimum of "
            f"{tuple(least.tolist())} rows costs {needed:.6g}, as a row of each level "
            f"costs {tuple(unit.tolist())}. Raise the budget, or leave a level out."
        )
    spread = np.array(variances, dtype=float)
    rows, is_free = least.copy(), spread > 0
    left = budget * (1 + _ROUNDING) - float((unit * least)[~is_free].sum())
    order = np.flatnonzero(is_free)[np.argsort(-unit[is_free], kind="stable")]
    if len(order) > 0:
        scale = spread.max()  # variances may be tiny
        search = _Search(unit[order], spread[order] / scale, least[order])
        rows[order] = search.run(left)
    return tuple(rows.tolist())


class _Search:
    """Branch and bound over integers, the dearest level first.

    Args:
        costs: Cost of a row of each level, falling.
        variances: Variance of each level, > 0.
        minimum: Fewest rows of each level.
    """

    def __init__(self, costs: np.ndarray, variances: np.ndarray, minimum: np.ndarray):
        self._costs, self._variances, self._minimum = costs, variances, minimum
        self._best, self._rows = np.inf, minimum
        self._searches = 0

    def run(self, budget: float) -> np.ndarray:
        """The best rows of each level at a budget that pays the minimum."""
        self._descend((), budget, 0.0)
        return np.array(self._rows)

    def _descend(self, chosen: tuple[int, ...], left: float, value: float) -> None:
        level = len(chosen)
        if level >= len(self._costs) - 2:
            self._finish(chosen, left, value)
            return
        cost, variance = self._costs[level], self._variances[level]
        centre = int(self._relaxed(level, left)[0])
        rest = float(self._costs[level + 1 :] @ self._minimum[level + 1 :])
        most = int((left - rest) / cost)
        down = range(min(centre, most), int(self._minimum[level]) - 1, -1)
        # the bound is convex: once it is above the best, it stays there
        for direction in (down, range(min(centre, most) + 1, most + 1)):
            for rows in direction:
                after, spent = left - rows * cost, value + variance / rows
                ideal = self._relaxed(level + 1, after)
                bound = float((self._variances[level + 1 :] / ideal).sum())
                if spent + bound >= self._best or self._searches > _MAX_SEARCHES:
                    break
                self._descend((*chosen, rows), after, spent)

    def _finish(self, chosen: tuple[int, ...], left: float, value: float) -> None:
        """The best rows of the last two levels (or of the only one) at what is left."""
        self._searches += 1
        level, (cost, variance) = len(chosen), (self._costs[-1], self._variances[-1])
        if level == len(self._costs) - 1:
            self._keep((*chosen, int(left / cost)), value + variance / int(left / cost))
            return
        dear, dear_variance = self._costs[level], self._variances[level]
        lowest = int(self._minimum[level])
        most = int((left - cost * self._minimum[-1]) / dear)

        def try_rows(start: float, stop: float) -> None:
            first, last = max(lowest, int(start)), min(most, int(stop))
            if first > last:
                return
            rows = np.arange(first, last + 1)
            cheap = np.floor((left - dear * rows) / cost)
            values = dear_variance / rows + variance / cheap
            at = int(np.argmin(values))
            self._keep((*chosen, int(rows[at]), int(cheap[at])), value + values[at])

        centre = np.clip(self._relaxed(level, left)[0], lowest, most)
        try_rows(centre, centre + 1)
        # rows n where V / n + V' c' / (left - c n) is below what is to be beaten
        goal = self._best - value
        middle = goal * left + dear_variance * dear - variance * cost
        root = middle**2 - 4 * goal * dear * dear_variance * left
        if goal > 0 and root > 0:
            ends = (middle + np.sqrt(root) * np.array([-1, 1])) / (2 * goal * dear)
            slack = 1 + 1e-7 * centre  # of rounding in the root
            try_rows(max(ends[0] - slack, 0), min(ends[1] + slack, most))

    def _keep(self, rows: tuple[int, ...], value: float) -> None:
        if value < self._best:
            self._best, self._rows = value, rows

    def _relaxed(self, level: int, budget: float) -> np.ndarray:
        """The best real numbers of rows of the levels from `level` on."""
        return relaxed_rows(
            self._costs[level:], self._variances[level:], self._minimum[level:], budget
        )


def relaxed_rows(
    costs: np.ndarray, variances: np.ndarray, minimum: np.ndarray, budget: float
) -> np.ndarray:
    """The best real numbers of rows, by water-filling (see the module).

    Args:
        costs: Cost of a row of each level, shape `(L,)`.
        variances: Variance of each level, shape `(L,)`, > 0.
        minimum: Fewest rows of each level, shape `(L,)`.
        budget: Cost of all rows, at least that of the minimum.

    Returns:
        Rows, shape `(L,)`.
    """
    rows = minimum.astype(float)
    is_free = np.ones(len(costs), dtype=bool)
    while is_free.any():
        left = budget - float((costs * minimum)[~is_free].sum())
        total = float(np.sqrt(variances * costs)[is_free].sum())
        ideal = left * np.sqrt(variances / costs) / total
        is_low = is_free & (ideal < minimum)
        if not is_low.any():
            rows[is_free] = ideal[is_free]
            break
        is_free &= ~is_low
    return rows


def check_costs(costs: Sequence[float]) -> None:
    """Raise unless there is a finite cost > 0 for each level."""
    if len(costs) == 0 or not all(np.isfinite(cost) and cost > 0 for cost in costs):
        raise ValueError(
            f"costs must hold one finite number > 0 a level, but is {tuple(costs)}. "
            "Give a simulator that costs next to nothing a small cost."
        )


def check_budget(budget: float) -> None:
    """Raise unless the budget is a finite number > 0."""
    if not np.isfinite(budget) or budget <= 0:
        raise ValueError(
            f"budget must be a finite number > 0, but is {budget}. Give it in the unit "
            "of the costs (seconds if they are measured)."
        )


def check_variances(variances: Sequence[float], num_levels: int) -> None:
    """Raise unless there is a finite variance >= 0 for each level."""
    is_valid = all(np.isfinite(value) and value >= 0 for value in variances)
    if len(variances) != num_levels or not is_valid:
        raise ValueError(
            f"variances must hold {num_levels} finite numbers >= 0, one a term, but is "
            f"{tuple(variances)}. Where a pilot gave NaN, use more pilot rows."
        )


def _checked_minimum(minimum: int | Sequence[int], num_levels: int) -> np.ndarray:
    given = np.asarray(minimum)
    if given.shape in ((), (num_levels,)):
        least = np.broadcast_to(given, (num_levels,))
    else:
        least = np.zeros(num_levels)  # refused below
    if not np.issubdtype(least.dtype, np.integer) or least.min() < 1:
        raise ValueError(
            f"minimum must be an integer >= 1, or one for each of {num_levels} levels, "
            f"but is {minimum}."
        )
    return np.array(least)
