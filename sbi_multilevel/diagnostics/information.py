r"""How much a cheap output tells about a dear one, in nats and as a share.

The mutual information

.. math::  I(x; y) = \mathbb{E} \log \frac{p(x, y)}{p(x)\, p(y)}

is 0 for independent x and y, sees dependence of any form, and does not change when x or
y is mapped by an invertible function. It is estimated by MINE (Belghazi et al. 2018): a
lower bound that a small network climbs (`sbi_multilevel.diagnostics.critic`). Rows that
the network has seen would give a bound much too high, so each is judged by a network
trained on other folds. The estimate is then a lower bound that falls short where rows
are few, most of all where I exceeds :math:`\log n`, the most that can be relied on from
n rows by any method (McAllester and Stratos 2020).
x and y are first brought to normal scores, feature by feature, by their ranks, which
changes I nowhere that features are continuous, and bounds the influence of tails.

*A share of what?* For discrete x the uncertainty coefficient (Theil 1970)

.. math::  U = \frac{I(x; y)}{H(x)} = 1 - \frac{H(x \mid y)}{H(x)} \in [0, 1]

is the share of the entropy that y removes. Krouglova et al. (2026, Section 4.4) take
it, with x of the high and y of the low fidelity, to rank low-fidelity simulators. But
for continuous x, H is the *differential* entropy: it changes by :math:`\log c` when x
is measured in other units :math:`c x`, can be 0 or negative, and is no bound of I,
which is infinite where y determines x. U then has no scale, sign or upper end. The
ranking of several y for the same x, in the same units and with H > 0, remains
meaningful; it is that of I.

What carries over is to compare entropy *powers* :math:`N(x) = e^{2 H(x) / d} / 2 \pi
e`, which, unlike entropies, are positive and scale like variances (a normal
distribution with independent features of variance :math:`\sigma^2` has :math:`N =
\sigma^2`). Units cancel in

.. math::

    1 - \frac{N(x \mid y)}{N(x)} = 1 - e^{-2 I(x; y) / d} =: r^2 \in [0, 1],

the share of the entropy power of x that y removes; :math:`N(x \mid y)` is that of
:math:`H(x \mid y)`. It is 0 only for independence, 1 only where I is infinite,
invariant under invertible maps of x and of y, and :math:`\rho^2` for a normal pair.
With d = 1 its root is Linfoot's (1957) informational coefficient of correlation. In
several dimensions I of normal x and y is :math:`-\frac12 \sum_i \log(1 - \rho_i^2)`
over the :math:`\min(d_x, d_y)` canonical correlations, so with d that minimum
:math:`1 - r^2` is the geometric mean of the :math:`1 - \rho_i^2`. We report
this one, and the published form beside it, for x in units of its standard deviations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import KDTree
from scipy.special import digamma, gammaln
from scipy.stats import norm, rankdata
from torch import Tensor

from sbi_multilevel.diagnostics.critic import contributions, train_critic
from sbi_multilevel.level_maps.regression import varies
from sbi_multilevel.simulation.noise import derive_seed, seeded

_STREAM = 21
_MIN_ROWS = 20
_MANY_ROWS = 1_000  # from where two folds do


@dataclass(frozen=True)
class Information:
    """An estimate of the mutual information.

    Args:
        nats: The estimate, a lower bound; may be a little below 0 by chance.
        error: Its standard error over rows, the networks given.
        num_rows: Rows it comes from.
        dim: The smaller number of features, those that vary, of the two sides.
    """

    nats: float
    error: float
    num_rows: int
    dim: int

    @property
    def share(self) -> float:
        r"""Share of the entropy power that is removed, :math:`1 - e^{-2 I / d}`."""
        return informational_r2(self.nats, self.dim)

    def __str__(self) -> str:
        return (
            f"{self.nats:.2f} ± {self.error:.2f} nats from {self.num_rows} rows "
            f"({self.share:.0%} of the entropy power)"
        )


def informational_r2(nats: float, dim: int) -> float:
    r"""Share of the entropy power of x that y removes, :math:`1 - e^{-2 I / d}`.

    Args:
        nats: Mutual information; below 0, as an estimate may be, counts as 0.
        dim: The smaller number of features of the two sides.

    Example:
    --------

    The squared correlation of a normal pair:

    ::

        >>> rho = 0.8
        >>> round(informational_r2(-0.5 * math.log(1 - rho**2), dim=1), 6)
        0.64
    """
    return -math.expm1(-2 * max(nats, 0.0) / dim)


def uncertainty_coefficient(nats: float, entropy: float) -> float:
    """The published coefficient I / H, with a differential entropy (see the module).

    Args:
        nats: Mutual information; below 0 counts as 0.
        entropy: Differential entropy of x, in nats and in the units of choice.

    Returns:
        The ratio; NaN where the entropy is not positive, so that there is none.

    Example:
    --------

    It depends on units: measured in millimetres x has another entropy than in metres.

    ::

        >>> metres = 1.0
        >>> millimetres = metres + math.log(1_000)
        >>> [round(uncertainty_coefficient(0.5, h), 2) for h in (metres, millimetres)]
        [0.5, 0.06]
    """
    return max(nats, 0.0) / entropy if entropy > 0 else math.nan


def differential_entropy(x: np.ndarray, num_neighbours: int = 3) -> float:
    r"""Differential entropy of rows, by Kozachenko and Leonenko (1987), in nats.

    .. math::

        \hat H = \psi(n) - \psi(k) + \log V_d + \frac dn \sum_i \log \epsilon_i

    with :math:`\epsilon_i` the distance to the k-th neighbour and :math:`V_d` the
    volume of the unit ball. (`scipy.stats.differential_entropy` is for scalars.)

    Args:
        x: Rows, shape `(n, d)`.
        num_neighbours: k.

    Returns:
        The estimate; minus infinity where most rows are found more than k times.

    Example:
    --------

    ::

        >>> x = np.random.default_rng(0).normal(size=(2_000, 1))
        >>> exact = 0.5 * math.log(2 * math.pi * math.e)
        >>> abs(differential_entropy(x) - exact) < 0.1
        True
    """
    count, dim = x.shape
    distances, _ = KDTree(x).query(x, k=num_neighbours + 1)
    with np.errstate(divide="ignore"):
        mean_log = np.log(distances[:, -1]).mean()
    log_ball = 0.5 * dim * math.log(math.pi) - gammaln(1 + dim / 2)
    constant = digamma(count) - digamma(num_neighbours) + log_ball
    return float(constant + dim * mean_log)


def mutual_information(
    x: Tensor, y: Tensor, *, seed: int = 0, num_folds: int | None = None
) -> Information:
    r"""Estimate the mutual information of the two sides of rows, in nats.

    .. math::

        \hat I = \sum_\kappa \frac{n_\kappa}{n} \Big[ \frac{1}{n_\kappa} \sum_{i \in
        \kappa} T_\kappa(x_i, y_i) - \log \frac{1}{n_\kappa (n_\kappa - 1)} \sum_{i \ne
        j \in \kappa} e^{T_\kappa(x_i, y_j)} \Big],

    each critic :math:`T_\kappa` trained without the rows of fold :math:`\kappa`.
    Belghazi et al. (2018), arXiv:1801.04062, equation 8, with held-out evaluation.

    Args:
        x: Rows, shape `(n, d_x)`.
        y: Their partners, shape `(n, d_y)`.
        seed: Seed of folds and networks.
        num_folds: Number of folds; `None` for 5, and 2 from 1 000 rows on.

    Returns:
        The estimate.

    Raises:
        ValueError: If the shapes do not fit, a value is not finite, or there are fewer
            than 20 rows.

    Example:
    --------

    ::

        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(300, 1, generator=generator)
        >>> y = 0.8 * x + 0.6 * torch.randn(300, 1, generator=generator)
        >>> information = mutual_information(x, y, num_folds=2)
        >>> exact = -0.5 * math.log(1 - 0.8**2)
        >>> abs(information.nats - exact) < 4 * information.error
        True
    """
    _check(x, y, num_folds)
    count = len(x)
    sides = [_normal_scores(side) for side in (x, y)]
    dim = min(side.shape[1] for side in sides)
    if dim == 0:
        return Information(0.0, 0.0, count, 1)  # a constant tells nothing
    num_folds = num_folds or (5 if count < _MANY_ROWS else 2)
    order = np.random.default_rng(seed).permutation(count)
    values = np.zeros(count)
    for fold in range(num_folds):
        held_out = order[fold::num_folds]
        others = order[np.arange(count) % num_folds != fold]
        with seeded(derive_seed(seed, _STREAM, fold)):
            critic = train_critic(*(side[others] for side in sides))
        with torch.no_grad():
            table = critic(*(side[held_out] for side in sides))
        values[held_out] = contributions(table).numpy()
    error = float(values.std(ddof=1) / math.sqrt(count))
    return Information(float(values.mean()), error, count, dim)


def _normal_scores(side: Tensor) -> Tensor:
    """Features that vary, by their ranks, with a normal distribution."""
    values = side.double().numpy()
    values = values[:, varies(values)]
    ranks = rankdata(values, axis=0)
    return torch.from_numpy(norm.ppf(ranks / (len(values) + 1))).float()


def _check(x: Tensor, y: Tensor, num_folds: int | None) -> None:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(
            f"x and y must have shapes (n, d_x) and (n, d_y), but have "
            f"{tuple(x.shape)} and {tuple(y.shape)}. Flatten or summarise them."
        )
    if len(x) < _MIN_ROWS:
        raise ValueError(
            f"x has {len(x)} rows, too few for an estimate. Pass {_MIN_ROWS} or more."
        )
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("x or y holds NaN or inf. Leave these rows out.")
    if num_folds is not None and not 2 <= num_folds <= len(x) // 4:
        raise ValueError(
            f"num_folds={num_folds} must be between 2 and a quarter of the {len(x)} "
            "rows."
        )
