r"""Mutual information of the outputs of two levels, and its normalization.

The mutual information

.. math::  I(x; y) = \mathbb{E} \log \frac{p(x, y)}{p(x)\, p(y)}

is 0 for independent x and y, detects dependence of any form, and is invariant under
invertible maps of x or y. It is estimated by MINE (Belghazi et al. 2018), a lower bound
maximized over critics (`sbi_multilevel.diagnostics.critic`), with cross-fitting: each
pair is evaluated by a critic trained on other folds. The estimate falls below I for few
pairs, in particular if I exceeds :math:`\log n`, the largest value that any estimator
can certify from n pairs (McAllester and Stratos 2020). Features are first transformed
to normal scores by their ranks, which leaves I unchanged for continuous features and
bounds the influence of tails. For normal variables the error is similar to that of the
nearest-neighbor estimator of Kraskov et al. (2004) in one or two dimensions, and about
a third smaller in four or ten (root mean squares over correlations of 0 to 0.99, n =
100).

**Normalization.** For discrete x the uncertainty coefficient (Theil 1970)

.. math::  U = \frac{I(x; y)}{H(x)} = 1 - \frac{H(x \mid y)}{H(x)} \in [0, 1]

is the share of the entropy that y removes. Krouglova et al. (2026, Section 4.4) use it,
with x of the high and y of the low fidelity, to rank low-fidelity simulators. For
continuous x, H is the *differential* entropy: it changes by :math:`\log c` for
:math:`c x`, can be 0 or negative, and does not bound I, which is infinite if y
determines x. U is then neither invariant nor bounded. Rankings of several y for the
same x, in the same units and with H > 0, are those of I.

A normalization for continuous x is based on the entropy *power* :math:`N(x) = e^{2 H(x)
/ d} / 2 \pi e`, which is positive and scales like a variance (a normal distribution
with independent features of variance :math:`\sigma^2` has :math:`N = \sigma^2`). The
share of the entropy power that y removes is

.. math::

    1 - \frac{N(x \mid y)}{N(x)} = 1 - e^{-2 I(x; y) / d} =: r^2 \in [0, 1] .

It is 0 only for independent x and y, 1 only if I is infinite, invariant under
invertible maps, and equal to :math:`\rho^2` for a normal pair. For d = 1 its root is
the informational coefficient of correlation (Linfoot 1957). For normal x and y,
:math:`I = -\frac12 \sum_i \log(1 - \rho_i^2)` over the :math:`\min(d_x, d_y)` canonical
correlations; with d equal to that minimum, :math:`1 - r^2` is the geometric mean of the
:math:`1 - \rho_i^2`. The report shows :math:`r^2`, and U for x in units of its standard
deviations.
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
from sbi_multilevel.utils.argument_types import check_types
from sbi_multilevel.utils.seeds import derive_seed, seeded

_STREAM = 21
_MIN_PAIRS, _NUM_NEIGHBORS = 20, 3
_NUM_FOLDS, _NUM_FOLDS_LARGE, _LARGE = 5, 2, 1_000  # folds, and those from n = 1 000


@dataclass(frozen=True)
class Information:
    """An estimate of the mutual information.

    Args:
        nats: The estimate of a lower bound; may be slightly below 0.
        error: Its standard error given the critics.
        num_pairs: Number of pairs.
        dim: Smaller number of features of the two sides, without constant ones.
    """

    nats: float
    error: float
    num_pairs: int
    dim: int

    @property
    def informational_r2(self) -> float:
        r"""Share of the entropy power that is removed, :math:`1 - e^{-2 I / d}`."""
        return informational_r2(self.nats, self.dim)

    def __str__(self) -> str:
        return (
            f"{self.nats:.2f} ± {self.error:.2f} nats from {self.num_pairs} pairs "
            f"({self.informational_r2:.0%} of the entropy power)"
        )


def informational_r2(nats: float, dim: int) -> float:
    r"""Share of the entropy power of x that y removes, :math:`1 - e^{-2 I / d}`.

    Args:
        nats: Mutual information; negative estimates count as 0.
        dim: Smaller number of features of the two sides.

    Returns:
        The share, between 0 and 1.

    Example:
    --------

    It is the squared correlation for a normal pair:

    ::

        >>> rho = 0.8
        >>> round(informational_r2(-0.5 * math.log(1 - rho**2), dim=1), 6)
        0.64
    """
    return -math.expm1(-2 * max(nats, 0.0) / dim)


def uncertainty_coefficient(nats: float, entropy: float) -> float:
    """The uncertainty coefficient I / H with a differential entropy, see the module.

    Krouglova et al. (2026), arXiv:2502.08416, Section 4.4.

    Args:
        nats: Mutual information; negative estimates count as 0.
        entropy: Differential entropy of x, in nats, which depends on the units of x.

    Returns:
        The ratio; NaN if the entropy is not positive.

    Example:
    --------

    It depends on the units of x, here metres and millimetres:

    ::

        >>> metres = 1.0
        >>> millimetres = metres + math.log(1_000)
        >>> [round(uncertainty_coefficient(0.5, h), 2) for h in (metres, millimetres)]
        [0.5, 0.06]
    """
    return max(nats, 0.0) / entropy if entropy > 0 else math.nan


def differential_entropy(x: np.ndarray) -> float:
    r"""Differential entropy in nats, by the Kozachenko-Leonenko (1987) estimator.

    .. math::

        \hat H = \psi(n) - \psi(k) + \log V_d + \frac dn \sum_i \log \epsilon_i

    with :math:`\epsilon_i` the distance to the k-th neighbor and :math:`V_d` the volume
    of the unit ball. (`scipy.stats.differential_entropy` is restricted to d = 1.)
    """
    count, dim = x.shape
    distances, _ = KDTree(x).query(x, k=_NUM_NEIGHBORS + 1)
    with np.errstate(divide="ignore"):
        mean_log = np.log(distances[:, -1]).mean()
    log_ball = 0.5 * dim * math.log(math.pi) - gammaln(1 + dim / 2)
    constant = digamma(count) - digamma(_NUM_NEIGHBORS) + log_ball
    return float(constant + dim * mean_log)


def mutual_information(
    x: Tensor | np.ndarray, y: Tensor | np.ndarray, *, seed: int = 0
) -> Information:
    r"""Estimate the mutual information of paired samples, in nats.

    .. math::

        \hat I = \sum_\kappa \frac{n_\kappa}{n} \Big[ \frac{1}{n_\kappa} \sum_{i \in
        \kappa} T_\kappa(x_i, y_i) - \log \frac{1}{n_\kappa (n_\kappa - 1)} \sum_{i \ne
        j \in \kappa} e^{T_\kappa(x_i, y_j)} \Big],

    with each critic :math:`T_\kappa` trained without fold :math:`\kappa`. There are
    five folds, and two for 1 000 pairs or more. Belghazi et al. (2018),
    arXiv:1801.04062, equation 8, with cross-fitting.

    Args:
        x: Samples, shape `(n, d_x)`.
        y: Paired samples, shape `(n, d_y)`.
        seed: Seed of folds and networks.

    Returns:
        The estimate.

    Raises:
        TypeError: If x or y is not a tensor or an array.
        ValueError: If shapes do not match, a value is not finite, or there are fewer
            than 20 pairs.

    Example:
    --------

    ::

        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(100, 1, generator=generator)
        >>> y = 0.8 * x + 0.6 * torch.randn(100, 1, generator=generator)
        >>> information = mutual_information(x, y)
        >>> exact = -0.5 * math.log(1 - 0.8**2)
        >>> abs(information.nats - exact) < 4 * information.error
        True
    """
    check_types(mutual_information, locals())
    x, y = as_array(x), as_array(y)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(
            f"x and y must have shapes (n, d_x) and (n, d_y), but have "
            f"{tuple(x.shape)} and {tuple(y.shape)}. Flatten or summarize them."
        )
    if (count := len(x)) < _MIN_PAIRS:
        raise ValueError(
            f"x has {count} samples, too few for an estimate. Pass {_MIN_PAIRS} or "
            "more."
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("x or y has NaN or inf. Remove these samples.")
    sides = [_normal_scores(side) for side in (x, y)]
    dim = min(side.shape[1] for side in sides)
    if dim == 0:
        return Information(0.0, 0.0, count, 1)
    num_folds = _NUM_FOLDS if count < _LARGE else _NUM_FOLDS_LARGE
    order = np.random.default_rng(seed).permutation(count)
    values = np.zeros(count)
    for fold in range(num_folds):
        held_out = order[fold::num_folds]
        training = order[np.arange(count) % num_folds != fold]
        with seeded(derive_seed(seed, _STREAM, fold)):
            critic = train_critic(*(side[training] for side in sides))
        with torch.no_grad():
            table = critic(*(side[held_out] for side in sides))
        values[held_out] = contributions(table).numpy()
    error = float(values.std(ddof=1) / math.sqrt(count))
    return Information(float(values.mean()), error, count, dim)


def as_array(samples: Tensor | np.ndarray) -> np.ndarray:
    """Samples as an array of double precision."""
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu().numpy()
    return np.asarray(samples, dtype=np.float64)


def _normal_scores(values: np.ndarray) -> Tensor:
    """Normal scores of the features that are not constant."""
    values = values[:, varies(values)]
    ranks = rankdata(values, axis=0)
    return torch.from_numpy(norm.ppf(ranks / (len(values) + 1))).float()
