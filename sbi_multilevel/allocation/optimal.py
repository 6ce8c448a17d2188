r"""The number of simulations of each level.

The multilevel loss :math:`\frac1{n_0}\sum f_0 + \sum_{l \ge 1} \frac1{n_l} \sum (f_l -
f_{l-1})` (Hikida et al. 2025, equation 2) estimates :math:`\mathbb{E} f_L` with the
variance

.. math::

    \sum_{l=0}^{L} \frac{V_l}{n_l}, \qquad V_0 = \mathrm{Var} f_0, \quad
    V_l = \mathrm{Var}[f_l - f_{l-1}].

The simulations cost :math:`\sum_l n_l c_l` with :math:`c_0 = C_0` and, since each
simulation above level 0 is a pair, :math:`c_l = C_l + C_{l-1}`. With real :math:`n_l`
the Lagrangian

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
the level that the cost refers to. The derivation above is used here, and the tests
compare it with a search over all integers.

Each level has at least a minimum number of simulations, :math:`n_l \ge m_l`. With these
bounds the stationary point is :math:`n_l = \max(m_l, \sqrt{V_l / (\lambda c_l)})`
(*water-filling*): levels below their bound are set to it, one after another, and the
rule is applied to the other levels.

Integers follow level by level, the most expensive first: the integers next to the real
solution are tried, and the real solution for the remaining levels is computed from the
remaining budget.

Reference: Giles (2008), *Multilevel Monte Carlo path simulation*, Operations Research
56(3); Hikida, Bharti, Jeffrey, Briol (2025), *Multilevel neural simulation-based
inference*, NeurIPS 2025, arXiv:2506.06087, equation 2 and Theorem 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sbi_multilevel.utils.argument_types import check_types

# a budget of 10 pays 100 simulations of cost 0.1, despite rounding
_ROUNDING = 1e-10
# integers tried at each level, relative to the real solution rounded down
_NEIGHBORS = (-1, 0, 1, 2)


def simulation_costs(costs: Sequence[float]) -> tuple[float, ...]:
    """Cost of a simulation of each level, which above level 0 is a pair."""
    below = (0.0, *costs[:-1])
    return tuple(float(cost + coarse) for cost, coarse in zip(costs, below))


def allocate(
    costs: Sequence[float],
    variances: Sequence[float],
    budget: float,
    minimum: int | Sequence[int] = 2,
) -> tuple[int, ...]:
    r"""Numbers of simulations that minimize the variance of the multilevel loss.

    .. math::

        \min_{n} \sum_l \frac{V_l}{n_l} \quad \text{subject to} \quad
        \sum_l n_l c_l \le B, \; n_l \ge m_l, \; n_l \text{ integer.}

    Args:
        costs: Cost :math:`C_l` of one run of each simulator, > 0, the lowest fidelity
            first.
        variances: :math:`V_l` of each level, >= 0: the variance of :math:`f_0` at level
            0, that of :math:`f_l - f_{l-1}` above. Only their ratios matter.
        budget: Cost of all simulations, in the unit of `costs`.
        minimum: Minimum number of simulations, one number or one per level, e.g. the
            existing ones. A level with zero variance gets no more than this.

    Returns:
        Number of simulations of each level, :math:`(n_0, \dots, n_L)`.

    Raises:
        ValueError: If an argument is out of range, or the budget is below the cost of
            the minimum.

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
    unit = np.array(simulation_costs(costs))
    needed = float(unit @ least)
    if not np.isfinite(budget) or budget * (1 + _ROUNDING) < needed:
        raise ValueError(
            f"budget={budget} is too small or not finite: the minimum of "
            f"{tuple(least.tolist())} simulations costs {needed:.6g}, at a cost per "
            f"simulation of {tuple(unit.tolist())}. Raise the budget, or leave a level "
            "out."
        )
    spread = np.array(variances, dtype=float)
    numbers, is_free = least.copy(), spread > 0
    left = budget * (1 + _ROUNDING) - float((unit * least)[~is_free].sum())
    order = np.flatnonzero(is_free)[np.argsort(-unit[is_free], kind="stable")]
    if len(order) > 0:
        scaled = spread[order] / spread.max()  # variances may be tiny
        numbers[order] = _integers(unit[order], scaled, least[order], left)[1]
    return tuple(numbers.tolist())


def _integers(
    costs: np.ndarray, variances: np.ndarray, minimum: np.ndarray, budget: float
) -> tuple[float, tuple[int, ...]]:
    """Least variance found, and its numbers, for levels in order of falling cost."""
    most = int((budget - float(costs[1:] @ minimum[1:])) / costs[0])
    if len(costs) == 1:
        return float(variances[0]) / most, (most,)
    near = int(real_allocation(costs, variances, minimum, budget)[0])
    best: tuple[float, tuple[int, ...]] = (np.inf, ())
    for number in {min(max(near + d, minimum[0]), most) for d in _NEIGHBORS}:
        left = budget - number * float(costs[0])
        value, others = _integers(costs[1:], variances[1:], minimum[1:], left)
        found = float(variances[0]) / number + value
        best = min(best, (found, (int(number), *others)))
    return best


def real_allocation(
    costs: np.ndarray, variances: np.ndarray, minimum: np.ndarray, budget: float
) -> np.ndarray:
    """The best real numbers of simulations, by water-filling (see the module).

    Costs of a simulation, variances > 0 and minimum numbers have one entry per level;
    the budget is at least the cost of the minimum.
    """
    numbers = minimum.astype(float)
    is_free = np.ones(len(costs), dtype=bool)
    while is_free.any():
        left = budget - float((costs * minimum)[~is_free].sum())
        total = float(np.sqrt(variances * costs)[is_free].sum())
        ideal = left * np.sqrt(variances / costs) / total
        is_low = is_free & (ideal < minimum)
        if not is_low.any():
            numbers[is_free] = ideal[is_free]
            break
        is_free &= ~is_low
    return numbers


def check_costs(costs: Sequence[float]) -> None:
    """Raise unless there is a finite cost > 0 for each level."""
    if len(costs) == 0 or not all(np.isfinite(cost) and cost > 0 for cost in costs):
        raise ValueError(
            f"costs must hold one finite number > 0 per level, but is {tuple(costs)}. "
            "Pass a small positive cost for a simulator that costs almost nothing."
        )


def check_budget(budget: float) -> None:
    """Raise unless the budget is a finite number > 0."""
    if not np.isfinite(budget) or budget <= 0:
        raise ValueError(
            f"budget must be a finite number > 0, but is {budget}. Give it in the unit "
            "of the costs (seconds if they are measured)."
        )


def check_variances(
    variances: Sequence[float], num_levels: int, name: str = "variances"
) -> None:
    """Raise unless there is a finite variance >= 0 for each level."""
    is_valid = all(np.isfinite(value) and value >= 0 for value in variances)
    if len(variances) != num_levels or not is_valid:
        raise ValueError(
            f"{name} must hold {num_levels} finite numbers >= 0, one per term, but "
            f"is {tuple(variances)}. If a pilot gave NaN, use more pilot simulations."
        )


def _checked_minimum(minimum: int | Sequence[int], num_levels: int) -> np.ndarray:
    given = np.asarray(minimum)
    is_integer = np.issubdtype(given.dtype, np.integer)
    if not is_integer or given.shape not in ((), (num_levels,)) or given.min() < 1:
        raise ValueError(
            f"minimum must be an integer >= 1, or one for each of {num_levels} levels, "
            f"but is {minimum}."
        )
    return np.full(num_levels, given)
