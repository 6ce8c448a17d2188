r"""Variance of the multilevel loss, and the effective number of its pairs.

With the loss :math:`f_l` of quick fits, evaluated on held-out simulations
(`sbi_multilevel.allocation.quick_fit`), the ratio

.. math::  \mathrm{Var}[f_l - f_{l-1}] \, / \, \mathrm{Var} f_l

is the share of the variance that remains in the difference of a pair; above 1, pairs
with weight 1 increase the variance. A small ratio is no evidence of a useful lower
level: the part of the loss that depends on theta alone is equal on both sides of a pair
and cancels for any lower level. If the fit hardly uses x, the ratio is small even for a
level of pure noise. The effective number of high-fidelity simulations
(`sbi_multilevel.losses.control_variate`) is therefore computed from the correlation of
:math:`f_l` and :math:`f_{l-1}` given theta (`sbi_multilevel.diagnostics.correlations`),
with separate regressions for each fit.

All figures are given the networks of the quick fits, with x unchanged (unless
`inference` is a trainer that maps levels by pairs). A level that differs by a scale may
have no effect here and still be informative. Simulations without a finite loss are left
out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.allocation.quick_fit import Inference, get_trainer, held_out_losses
from sbi_multilevel.allocation.variances import Measurements, loss_measurements
from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations
from sbi_multilevel.diagnostics.correlations import correlation, residuals_given_theta
from sbi_multilevel.losses.control_variate import effective_num_high

# variances of differences require no converged network
QUICK: Mapping[str, Any] = {
    "training_batch_size": 500,
    "learning_rate": 2e-3,
    "max_num_epochs": 30,
    "stop_after_epochs": 5,
}
# effective number of high-fidelity simulations, relative to the number of pairs, below
# which the gain is negligible
_MIN_GAIN = 1.1
_NUM_FOLDS = 2
_MIN_SIMULATIONS, _MAX_SIMULATIONS = 10, 4_000
_NUM_RESAMPLES, _INTERVAL = 500, (2.5, 97.5)
_MAX_CORRELATION = 0.9999  # at the ends of an interval


@dataclass(frozen=True)
class Estimate:
    """An estimate with its 95 % interval over simulations, given the fits."""

    value: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3g} ({low:.3g} to {high:.3g})"


@dataclass(frozen=True)
class LossVariance:
    """Variance of the loss with and without the pairs of a level, see the module."""

    num_high: int  # number of pairs
    num_low: int  # number of further simulations of the lower level
    variance_ratio: Estimate
    correlation: Estimate  # given theta
    effective_num_high: Estimate  # at the best weight of the lower level

    def verdict(self, level: int) -> str:
        """What the pairs of a level are worth for the multilevel loss, in words."""
        low, high = self.effective_num_high.interval
        least = _MIN_GAIN * self.num_high
        span = f"{low:.0f} to {high:.0f} simulations of level {level}"
        what = f"For the multilevel loss, {self.num_high} pairs"
        if low < least < high:
            return f"{what} are too few to estimate their effective number ({span})."
        text = f"{what} and {self.num_low} simulations of level {level - 1} are"
        if high <= least:
            return f"{text} equivalent to hardly more than the pairs alone ({span})."
        value = self.effective_num_high.value
        return f"{text} equivalent to about {value:.0f} ({span})."


def loss_variances(
    simulations: MultilevelSimulations,
    *,
    inference: Inference | None = None,
    prior: Any = None,
    train_options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> list[LossVariance | None]:
    """Estimate the variance of the loss of each level from 1 up by quick fits.

    Arguments are those of `fidelity_report`; 4 000 simulations of each level are used.
    The result is `None` for a level without pairs, or with fewer than 10 pairs that
    have a finite loss.
    """
    if not any(_has_pairs(level) for level in simulations):
        return [None] * (len(simulations) - 1)
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(len(level))[:_MAX_SIMULATIONS] for level in simulations]
    used = simulations.select([torch.from_numpy(rows) for rows in chosen])
    with warnings.catch_warnings():
        # few epochs, and means of columns that are all NaN
        warnings.simplefilter("ignore")
        losses, fits = held_out_losses(
            get_trainer(inference, prior),
            used,
            [_outputs(level) for level in used],
            seed=seed,
            num_folds=_NUM_FOLDS,
            train_options=QUICK if train_options is None else train_options,
        )
        for level in used.levels[1:]:
            unknown = level.level - 1 if level.is_paired else level.level
            losses[level.level][:, :unknown] = np.nan
        for table in losses:
            table[~np.isfinite(table)] = np.nan
        measured = loss_measurements(losses, fits)
    return [
        _loss_variance(measured, fits, simulations, used, level, seed)
        if _has_pairs(simulations[level])
        else None
        for level in range(1, len(simulations))
    ]


def _has_pairs(simulations: LevelSimulations) -> bool:
    return simulations.is_paired and len(simulations) >= _MIN_SIMULATIONS


def _outputs(simulations: LevelSimulations) -> list[Tensor]:
    """Outputs of levels 0 to that of the simulations; unknown ones are replaced."""
    x, x_coarse = simulations.x, simulations.x_coarse
    return [x if x_coarse is None else x_coarse] * simulations.level + [x]


def _loss_variance(
    measured: Measurements,
    fits: Sequence[np.ndarray],
    simulations: MultilevelSimulations,
    used: MultilevelSimulations,
    level: int,
    seed: int,
) -> LossVariance | None:
    own = measured.tables[level]
    high, difference = own[level, level][0], own[level, level - 1][0]
    low = measured.tables[level - 1][level - 1, level - 1][0]
    known, known_low = np.isfinite(high + difference), np.isfinite(low)
    if known.sum() < _MIN_SIMULATIONS:
        return None
    theta_low, theta = (used[k].theta.double().numpy() for k in (level - 1, level))
    coarse, residuals = high - difference, []
    for fit in np.unique(fits[level]):
        below, mine = known_low & (fits[level - 1] == fit), known & (fits[level] == fit)
        if min(below.sum(), mine.sum()) < 2:
            return None
        of_low = theta_low[below], low[below, np.newaxis]
        of_pairs = theta[mine], high[mine, np.newaxis], coarse[mine, np.newaxis]
        residuals.append(residuals_given_theta(*of_low, *of_pairs))
    rho, ends = _with_interval(*map(np.concatenate, zip(*residuals)), seed)
    sizes = [abs(end) for end in ends] + [0.0] * (ends[0] < 0 < ends[1])
    counts = len(simulations[level]), len(simulations[level - 1])
    limits = [effective_num_high(size, *counts) for size in sizes]
    return LossVariance(
        *counts,
        _variance_ratio(high[known], difference[known], seed),
        Estimate(rho, ends),
        Estimate(effective_num_high(rho, *counts), (min(limits), max(limits))),
    )


def _with_interval(
    a: np.ndarray, b: np.ndarray, seed: int
) -> tuple[float, tuple[float, float]]:
    r"""Correlation and its interval, at least as wide as that of normal variables.

    The bootstrap interval is too narrow for small samples with heavy tails (coverage of
    0.83 at n = 40). The standard error of normal variables is :math:`(1 - \rho^2) /
    \sqrt{n}`.
    """
    rho, error = (float(v[0]) for v in correlation(a, b, np.ones(1, bool), seed))
    half = 1.96 * max(error, (1 - rho**2) / math.sqrt(len(a)))
    return rho, (max(rho - half, -_MAX_CORRELATION), min(rho + half, _MAX_CORRELATION))


def _variance_ratio(high: np.ndarray, difference: np.ndarray, seed: int) -> Estimate:
    """Ratio of variances with its bootstrap interval."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(high), size=(_NUM_RESAMPLES, len(high)))
    ratios = difference[drawn].var(axis=1) / high[drawn].var(axis=1)
    low, top = np.percentile(ratios, _INTERVAL)
    value = difference.var() / high.var()
    return Estimate(float(value), (float(low), float(top)))
