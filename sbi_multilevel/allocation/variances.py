r"""The variance that each level adds to the loss, from simulations of a pilot.

For a pair of levels :math:`k < l` the quantity is :math:`V_{lk} = \mathrm{Var}[f_l -
f_k]`, for a level alone :math:`V_{ll} = \mathrm{Var} f_l`. Two estimates are known.

*Loss.* With a network fitted to other simulations, each simulation gives :math:`f_l -
f_k`, and the estimate is their sample variance. Simulations of every level :math:`m \ge
l` count, since all are drawn from the prior. With several fits (cross-fitting), each
evaluated on simulations held out from it, differences are centred for each fit:

.. math:: \hat V = \frac{1}{n - K} \sum_{\kappa=1}^{K} \sum_{i \in \kappa}
    (d_i - \bar d_\kappa)^2 .

*Norm.* A bound that needs no network. Suppose that the derivatives of :math:`f(\theta,
x)` grow no faster than linearly in x and its second derivatives are bounded, and that
prior and noise satisfy a Poincaré inequality (uniform and normal ones do), so that
:math:`\mathrm{Var}[h] \le C\, \mathbb{E}\|\nabla h\|^2`. For :math:`h = f(\theta, G_l)
- f(\theta, G_k)`, with :math:`\Delta = G_l - G_k`,

.. math:: \|\nabla h\| \le K \left[ \|\Delta\| (1 + \|\nabla G_k\|)
    + \|\nabla \Delta\| (1 + \|G_l\|) \right],

and by Cauchy-Schwarz

.. math:: \mathrm{Var}[f_l - f_k] \le K'\, \|\Delta\|_{1,4}^2 \left( 1 + \|G_l\|_{1,4}^2
    + \|G_k\|_{1,4}^2 \right), \qquad \mathrm{Var} f_l \le K' \left( 1 +
    \|G_l\|_{1,4}^4 \right),

where :math:`\|G\|_{1,4}^4 = \mathbb{E}\|G\|^4 + \mathbb{E}\|\nabla G\|^4` is the norm
of the Sobolev space :math:`W^{1,4}`: fourth moments of x and of its derivatives. Hikida
et al. (2025, Theorem 1) bound the same variances by the same norm, and add the bounds
up to one of the loss in their equation 5; the derivation here is ours.
:math:`K'` is unknown, assumed to be the same for all terms, and cancels in the
allocation. The bound is not useful for the toggle switch (variances up to 145 times
those at the best allocation): prefer the loss. Derivatives are with respect to theta
only, since noise may be a seed. They are taken along one random direction :math:`v \in
\{-1, 1\}^d` per simulation, since :math:`\|A\|_F^4 \le \mathbb{E}_v \|A v\|^4 \le 3
\|A\|_F^4`. For a discontinuous simulator use the loss.

Reference: Hikida, Bharti, Jeffrey, Briol (2025), *Multilevel neural simulation-based
inference*, NeurIPS 2025, arXiv:2506.06087, Theorem 1 and equation 5; Giles (2015),
*Multilevel Monte Carlo methods*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from scipy import stats

Method = Literal["loss", "norm"]
Triangle = tuple[tuple[float, ...], ...]
_NUM_RESAMPLES = 999


def loss_variance(differences: np.ndarray, axis: int = -1) -> np.ndarray:
    """Sample variance."""
    return np.var(differences, axis=axis, ddof=1)


def norm_bound(*norms: np.ndarray, axis: int = -1) -> np.ndarray:
    r"""Bound of a variance, up to a constant (see the module).

    Args:
        norms: :math:`\|G\|^4 + \|\nabla G\|^4` of each simulation: of the difference
            of two levels, the higher one and the lower one; or of one level alone.
        axis: The axis of simulations.
    """
    means = [np.mean(each, axis=axis) for each in norms]
    if len(means) == 1:
        return 1 + means[0]
    difference, fine, coarse = map(np.sqrt, means)
    return difference * (1 + fine + coarse)


@dataclass(frozen=True, eq=False)
class Measurements:
    """Measurements of each pair of levels by the simulations of a pilot.

    Args:
        tables: For the simulations of each level m and each pair `(l, k)` with `k <= l
            <= m` (`k = l` is level l alone) the numbers of each simulation, shape `(c,
            n_m)`; NaN where unknown.
        method: `"loss"` (c = 1: the difference of losses) or `"norm"` (c = 3 and, for a
            level alone, 1).
    """

    tables: tuple[dict[tuple[int, int], np.ndarray], ...]
    method: Method

    def triangle(self, chosen: Sequence[np.ndarray] | None = None) -> Triangle:
        r"""Estimates; for each l, :math:`V_{lk}` for each k < l, last :math:`V_{ll}`.

        They use all simulations of each level, or those of indices `chosen`.
        """

        return tuple(
            tuple(
                float(self._statistic(*self._pooled((high, low), chosen)))
                for low in range(high + 1)
            )
            for high in range(len(self.tables))
        )

    def resampled(self, rng: np.random.Generator) -> Triangle:
        """Estimates from as many simulations of each level, drawn with replacement.

        Simulations with values for all levels and the remaining ones are drawn
        separately, so that the number of each is preserved.
        """
        chosen = []
        for table in self.tables:
            knows_all = np.isfinite(np.concatenate(list(table.values()))).all(axis=0)
            groups = np.flatnonzero(knows_all), np.flatnonzero(~knows_all)
            drawn = [rng.choice(group, size=len(group)) for group in groups]
            chosen.append(np.concatenate(drawn))
        return self.triangle(chosen)

    def interval(self, pair: tuple[int, int], confidence: float) -> tuple[float, float]:
        """Bootstrap interval (BCa) of the estimate of a pair of levels."""
        columns = self._pooled(pair, None)
        result = stats.bootstrap(
            tuple(columns),
            self._statistic,
            paired=True,
            vectorized=True,
            n_resamples=_NUM_RESAMPLES,
            batch=max(1, 2_000_000 // columns.shape[1]),
            confidence_level=confidence,
            method="BCa" if columns.shape[1] <= 5_000 else "percentile",
            rng=np.random.default_rng(0),
        )
        low, high = result.confidence_interval
        return float(low), float(high)

    @property
    def _statistic(self) -> Callable[..., np.ndarray]:
        return loss_variance if self.method == "loss" else norm_bound

    def _pooled(
        self, pair: tuple[int, int], chosen: Sequence[np.ndarray] | None
    ) -> np.ndarray:
        """Numbers of all simulations with values for the pair, shape `(c, n)`."""
        parts = []
        for level in range(pair[0], len(self.tables)):
            part = self.tables[level][pair]
            parts.append(part if chosen is None else part[:, chosen[level]])
        columns = np.concatenate(parts, axis=1)
        return columns[:, np.isfinite(columns).all(axis=0)]


def loss_measurements(
    losses: Sequence[np.ndarray], fits: Sequence[np.ndarray]
) -> Measurements:
    """Differences of losses, centred for each fit.

    Args:
        losses: For the simulations of each level m the losses of levels 0 to m, shape
            `(n_m, m + 1)`; NaN where unknown.
        fits: Number of the fit of each simulation, shape `(n_m,)`.
    """
    tables: list[dict[tuple[int, int], np.ndarray]] = [{} for _ in losses]
    for high in range(len(losses)):
        for low in range(high + 1):
            parts = [
                table[:, high] - (table[:, low] if low < high else 0.0)
                for table in losses[high:]
            ]
            centred = _centred(np.concatenate(parts), np.concatenate(fits[high:]))
            ends = np.cumsum([len(part) for part in parts])[:-1]
            for level, part in enumerate(np.split(centred, ends), start=high):
                tables[level][high, low] = part[np.newaxis]
    return Measurements(tuple(tables), "loss")


def _centred(values: np.ndarray, fits: np.ndarray) -> np.ndarray:
    """Values minus the mean of their fit, scaled so that `np.var` is unbiased."""
    centred = values.copy()
    names = np.unique(fits)
    for name in names:
        centred[fits == name] -= np.nanmean(values[fits == name])
    known = np.isfinite(values).sum()
    return centred * np.sqrt((known - 1) / (known - len(names)))


def norm_measurements(
    outputs: Sequence[Sequence[np.ndarray]], derivatives: Sequence[Sequence[np.ndarray]]
) -> Measurements:
    """Fourth powers of outputs, their differences and their derivatives.

    Args:
        outputs: For the simulations of each level m the outputs of levels 0 to m, each
            of shape `(n_m, d)`, in common units of order one.
        derivatives: Their derivatives along a random direction, of the same shapes.
    """
    tables = []
    for x, slopes in zip(outputs, derivatives):
        alone = [_fourth_powers(*sides) for sides in zip(x, slopes)]
        pairs = {(high, high): norms[np.newaxis] for high, norms in enumerate(alone)}
        for low, high in combinations(range(len(x)), 2):
            changes = (side[high] - side[low] for side in (x, slopes))
            columns = _fourth_powers(*changes), alone[high], alone[low]
            pairs[high, low] = np.stack(columns)
        tables.append(pairs)
    return Measurements(tuple(tables), "norm")


def _fourth_powers(x: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Sum of the fourth powers of the norms, shape `(n,)`."""
    return (x**2).sum(axis=1) ** 2 + (slope**2).sum(axis=1) ** 2
