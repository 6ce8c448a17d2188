r"""What pairs do for the loss: variances of its differences, and rows they stand for.

With the loss :math:`f_l` of a quick fit that has not seen a row
(`sbi_multilevel.allocation.quick_fit`), the rows give

.. math::  \mathrm{Var}[f_l - f_{l-1}] \, / \, \mathrm{Var} f_l ,

the share of the variance that a correction by pairs leaves; above 1, pairs with weight
1 make matters worse. Beware of small ratios: what the loss owes to theta alone is the
same on both sides of a pair, and cancels whatever the level below is. Under a fit that
hardly looks at x the ratio is small even for a level that is pure noise. How many
high-fidelity rows the pairs and the cheap rows stand for is therefore reckoned from the
correlation of :math:`f_l` and :math:`f_{l-1}` beyond theta
(`sbi_multilevel.diagnostics.correlations`, `.control_variate`), removed fit by fit.

All of this is about the loss at the networks of the quick fits, and of x as it is
(unless `inference` is a trainer whose recipe moves it by pairs). A level that differs
by a scale may save nothing here and still teach much. And with a few dozen pairs the
interval is so wide that a good level and a useless one look alike; the report then says
that pairs are too few to tell. Rows at which a fit has no density (a loss that is not
finite) are left out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sbi_multilevel.allocation.variances import Measurements, loss_measurements
from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations
from sbi_multilevel.diagnostics.correlations import beyond_theta, correlation
from sbi_multilevel.losses.control_variate import effective_num_high

if TYPE_CHECKING:
    from sbi_multilevel.allocation.quick_fit import Inference

# a rough fit does: what is wanted are differences, not the best network
QUICK: Mapping[str, Any] = {
    "training_batch_size": 500,
    "learning_rate": 2e-3,
    "max_num_epochs": 30,
    "stop_after_epochs": 5,
}
_MAX_ROWS = 4_000
_NUM_RESAMPLES, _INTERVAL = 500, (2.5, 97.5)
_MIN_ROWS = 10
_LARGEST = 0.9999  # size of a correlation at the end of an interval


@dataclass(frozen=True)
class Estimate:
    """A number with its interval (95 %) over rows, the fits given."""

    value: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3g} ({low:.3g} to {high:.3g})"


@dataclass(frozen=True)
class LossPairs:
    r"""What pairs of a level and the one below do for the loss.

    Args:
        num_high: Pairs.
        num_low: Further rows of the level below.
        ratio: :math:`\mathrm{Var}[f_l - f_{l-1}] / \mathrm{Var} f_l`.
        correlation: Correlation of :math:`f_l` and :math:`f_{l-1}` beyond theta.
        worth: High-fidelity rows that pairs and cheap rows stand for, at the best
            weight of the level below.
    """

    num_high: int
    num_low: int
    ratio: Estimate
    correlation: Estimate
    worth: Estimate


def loss_pairs(
    simulations: MultilevelSimulations,
    *,
    inference: Inference | None = None,
    prior: Any = None,
    num_folds: int = 2,
    train_options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> list[LossPairs | None]:
    """Judge the pairs of each level from 1 up by quick fits.

    Args:
        simulations: Rows of all levels; of many, 4 000 of each are used.
        inference: As of `pilot`: what the loss is of; `None` for NPE.
        prior: Passed to `inference`, if that is a function of it.
        num_folds: Quick fits, each to the rows that the others are judged by.
        train_options: Arguments of `train`; a few quick epochs by default.
        seed: Seed of fits and bootstrap.

    Returns:
        An entry for each level from 1 up; `None` where rows are not paired, or fewer
        than 10 of them have a loss.

    Raises:
        ValueError: If the trainer has no loss of a single row.
    """
    if not any(_is_judged(rows) for rows in simulations):
        return [None] * (len(simulations) - 1)
    # trainers import this package
    from sbi_multilevel.allocation.quick_fit import get_trainer, held_out_losses

    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(len(rows))[:_MAX_ROWS] for rows in simulations]
    used = simulations.select([torch.from_numpy(rows) for rows in chosen])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sbi, on fits cut short; of means of NaN
        losses, fits = held_out_losses(
            get_trainer(inference, prior),
            used,
            [_outputs(rows) for rows in used],
            seed=seed,
            num_folds=num_folds,
            train_options=QUICK if train_options is None else train_options,
        )
        for rows in used.levels[1:]:
            unknown = rows.level - 1 if rows.is_paired else rows.level
            losses[rows.level][:, :unknown] = np.nan
        for table in losses:
            table[~np.isfinite(table)] = np.nan
        measured = loss_measurements(losses, fits)
    return [
        _judge(measured, fits, simulations, used, level, seed)
        if _is_judged(simulations[level])
        else None
        for level in range(1, len(simulations))
    ]


def _is_judged(rows: LevelSimulations) -> bool:
    return rows.is_paired and len(rows) >= _MIN_ROWS


def _outputs(rows: LevelSimulations) -> list[Tensor]:
    """Outputs of levels 0 to that of the rows, others in the place of unknown ones."""
    below = rows.x if rows.x_coarse is None else rows.x_coarse
    return [below] * rows.level + [rows.x]


def _judge(
    measured: Measurements,
    fits: Sequence[np.ndarray],
    simulations: MultilevelSimulations,
    used: MultilevelSimulations,
    level: int,
    seed: int,
) -> LossPairs | None:
    own = measured.rows[level]
    high, difference = own[level, level][0], own[level, level - 1][0]
    low = measured.rows[level - 1][level - 1, level - 1][0]
    known, known_low = np.isfinite(high + difference), np.isfinite(low)
    chosen = [
        (known_low & (fits[level - 1] == fit), known & (fits[level] == fit))
        for fit in np.unique(fits[level])
    ]
    if known.sum() < _MIN_ROWS or min(m.sum() for pair in chosen for m in pair) < 2:
        return None
    parts = [
        _beyond_theta(
            (used[level - 1].theta[below], low[below]),
            used[level].theta[mine],
            high[mine],
            (high - difference)[mine],
        )
        for below, mine in chosen
    ]
    a, b = (np.concatenate(side) for side in zip(*parts))
    rho, ends = _with_interval(a, b, seed)
    sizes = [abs(end) for end in ends] + [0.0] * (ends[0] < 0 < ends[1])
    counts = len(simulations[level]), len(simulations[level - 1])
    limits = [effective_num_high(size, *counts) for size in sizes]
    return LossPairs(
        *counts,
        _variance_ratio(high[known], difference[known], seed),
        Estimate(rho, ends),
        Estimate(effective_num_high(rho, *counts), (min(limits), max(limits))),
    )


def _beyond_theta(
    below: tuple[Tensor, np.ndarray],
    theta: Tensor,
    high: np.ndarray,
    low: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Losses of pairs without what follows from theta, each of shape `(n, 1)`.

    Args:
        below: Theta and losses of rows of the level below.
        theta: Theta of the pairs.
        high: Losses at the level.
        low: Losses at the level below.
    """
    theta_low, losses_low = below
    columns = (column[:, np.newaxis] for column in (losses_low, high, low))
    losses_low, high, low = columns
    return beyond_theta(_double(theta_low), losses_low, _double(theta), high, low)


def _with_interval(
    a: np.ndarray, b: np.ndarray, seed: int
) -> tuple[float, tuple[float, float]]:
    r"""Correlation, and its interval, no narrower than that of as many normal rows.

    The bootstrap makes too little of a few rows with heavy tails: of 40 its interval
    holds the truth five times in six. Independent rows have the error :math:`1 /
    \sqrt{n}` whatever their distribution.
    """
    rho, error = (float(v[0]) for v in correlation(a, b, np.ones(1, bool), seed))
    half = 1.96 * max(error, (1 - rho**2) / math.sqrt(len(a)))
    return rho, (max(rho - half, -_LARGEST), min(rho + half, _LARGEST))


def _double(theta: Tensor) -> np.ndarray:
    return theta.double().numpy()


def _variance_ratio(high: np.ndarray, difference: np.ndarray, seed: int) -> Estimate:
    """Ratio of variances, with its bootstrap interval."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(high), size=(_NUM_RESAMPLES, len(high)))
    ratios = difference[drawn].var(axis=1) / high[drawn].var(axis=1)
    low, top = np.percentile(ratios, _INTERVAL)
    value = difference.var() / high.var()
    return Estimate(float(value), (float(low), float(top)))
