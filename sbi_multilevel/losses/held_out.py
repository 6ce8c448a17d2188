r"""The loss on held-out simulations that early stopping follows; a pure function.

Let :math:`\bar f_0` be the mean loss of held-out simulations of level 0, and
:math:`\bar f_l, \bar c_l` the mean losses of the fine and the coarse sides of the m
held-out pairs of level l. The *telescoping* estimate of :math:`\mathbb{E} f_L` is

.. math:: \hat\mu_0 = \bar f_0, \qquad
    \hat\mu_l = \bar f_l + (\hat\mu_{l-1} - \bar c_l) .

At fixed weights of the network it is unbiased, but it has no lower bound: a network
that gives the coarse sides of a few pairs no density decreases it without limit, and
early stopping then keeps the worst weights. The *bounded* estimate is

.. math:: \hat\mu_l = \bar f_l + \beta_l\, (\hat\mu_{l-1} - \bar c_l)
    + \max\left( 0,\; |\hat\mu_{l-1} - \bar c_l|
    - \frac{2\, \mathrm{sd}[f_0]}{\sqrt m} \right) .

The second term is a control variate with the coefficient of least variance,

.. math:: \beta_l = \frac{n}{n + m}\,
    \frac{\mathrm{Cov}[f_l, c_l]}{\mathrm{Var}[c_l]} \in [0, 1],

with n held-out simulations of the level below, estimated on the held-out pairs
(`sbi_multilevel.losses.control_variate`). Where coarse losses diverge, their variance
does so faster and :math:`\beta_l` vanishes. With fewer than four pairs it is the value
of 0 and 1 for which the estimate is larger. The third term compares two estimates of
:math:`\mathbb{E} f_{l-1}`. They differ by more than two standard errors where the
network was overfitted to single pairs, which the few held-out high-fidelity simulations
alone may not show.

Rare simulations of very low density dominate a mean, and m simulations contain none of
what happens to less than one in m. Level 0 has more simulations, in the same range of
x. The value that early stopping follows is therefore

.. math:: \hat\mu = \frac{m\, \hat\mu_L + \kappa\, Q_{0.9}[f_0]}{m + \kappa},
    \qquad \kappa = \tfrac14,

in which the 90 % quantile of the held-out losses of level 0 counts as a quarter of a
simulation. Its weight vanishes as m grows.

Reference of the control variate: Lavenberg, Welch (1981), *A perspective on the use of
control variables to increase the efficiency of Monte Carlo simulations*, Management
Science 27(3). The combination is ours; `python -m sbi_multilevel_benchmarks divergence`
counts trainings that diverge under either rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Stopping = Literal["bounded", "telescoping"]
STOPPING_RULES: tuple[str, ...] = get_args(Stopping)

MIN_PAIRS = 4  # that determine a control variate
_NUM_ERRORS = 2.0
_TAIL_QUANTILE, _TAIL_COUNT = 0.9, 0.25

Pairs = Sequence[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class LossEstimate:
    """An expected loss, estimated from held-out simulations.

    Args:
        value: The estimate, in nats.
        error: Standard error of its sampling part; NaN where a level has one
            simulation.
    """

    value: float
    error: float


def bounded_loss(base: np.ndarray, pairs: Pairs) -> LossEstimate:
    """The bounded estimate of the expected loss at the highest level.

    Args:
        base: Losses of simulations of level 0, shape `(n_0,)`.
        pairs: For level 1, ..., L the losses of the fine and of the coarse sides of its
            pairs, each of shape `(n_l,)`.

    Returns:
        The estimate; infinite where a loss is not finite.

    Example:
    --------

    Coarse losses that diverge raise the estimate:

    ::

        >>> base, fine = np.array([1.0, 2.0, 3.0]), np.array([2.0, 1.0, 3.0, 2.0])
        >>> round(bounded_loss(base, [(fine, fine)]).value, 2)  # 2, and the tail
        2.05
        >>> bounded_loss(base, [(fine, fine + 1e6)]).value > 1e5
        True
    """
    value, variance = float(base.mean()), _variance_of_mean(base)
    num_below = len(base)
    for fine, coarse in pairs:
        if not np.isfinite([fine, coarse]).all() or not math.isfinite(value):
            return LossEstimate(math.inf, math.nan)
        gap = value - float(coarse.mean())
        weight = _weight(fine, coarse, num_below, gap)
        tolerance = _NUM_ERRORS * float(np.std(base)) / math.sqrt(len(fine))
        value = float(fine.mean()) + weight * gap + max(0.0, abs(gap) - tolerance)
        variance = _variance_of_mean(fine - weight * coarse) + weight**2 * variance
        num_below = len(fine)
    share = _TAIL_COUNT / (num_below + _TAIL_COUNT)
    tail = float(np.quantile(base, _TAIL_QUANTILE))
    return LossEstimate((1 - share) * value + share * tail, math.sqrt(variance))


def _weight(fine: np.ndarray, coarse: np.ndarray, num_below: int, gap: float) -> float:
    r"""The coefficient :math:`\beta_l`."""
    if len(fine) < MIN_PAIRS:
        return float(gap > 0)
    centered = coarse - coarse.mean()
    spread = centered @ centered
    if spread == 0 or not np.isfinite(spread):
        return 0.0
    share = num_below / (num_below + len(fine))
    return float(np.clip(share * (centered @ fine) / spread, 0.0, 1.0))


def _variance_of_mean(losses: np.ndarray) -> float:
    return float(np.var(losses, ddof=1) / len(losses)) if len(losses) > 1 else math.nan
