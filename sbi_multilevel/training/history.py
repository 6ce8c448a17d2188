r"""The history of a training, and formulas for the variance of a multilevel loss.

A batch estimates the loss from independent simulations of each level,

.. math:: \hat\ell = \sum_l \frac1{n_l} \sum_{i=1}^{n_l} d_{l,i},

where :math:`d_l` is the contribution of a simulation of level l: :math:`f_0` at the
base, :math:`f_l - f_{l-1}` for a pair, :math:`w f_l` for rehearsal with weight w.
Simulations of different levels are independent, so

.. math:: \mathrm{Var}[\hat\ell] = \sum_l \frac{\mathrm{Var}[d_l]}{n_l} .

A plain mean of :math:`f_L` over n high-fidelity simulations has the variance
:math:`\mathrm{Var}[f_L] / n`. Setting the two equal gives the *effective sample
size* of the batch,

.. math:: n_\text{eff} = \mathrm{Var}[f_L] \Big/
    \sum_l \frac{\mathrm{Var}[d_l]}{n_l} ,

which exceeds :math:`n_L` where the levels agree. It measures the variance of the loss
alone: the telescoping sum has no bias, but rehearsal on lower levels does, and the
adjustment of gradients changes the direction of a step. The gain of the lower levels
for the trained network is a different quantity
(`sbi_multilevel.losses.effective_sample_size`).

For any :math:`\beta`, :math:`f_l - \beta\,(f_{l-1} - \mathbb{E} f_{l-1})` has the mean
of :math:`f_l`. Its variance is least at

.. math:: \beta_l = \frac{\mathrm{Cov}[f_l, f_{l-1}]}{\mathrm{Var}[f_{l-1}]},

the *control-variate coefficient*. Near 1 the plain difference is nearly optimal. Near 0
level l - 1 has no information about level l, and the correction adds noise. Below 1/2
the difference has a larger variance than :math:`f_l`.

Reference: Giles (2015), *Multilevel Monte Carlo methods*, Acta Numerica 24, Sections
1.3 and 2.1; Owen (2013), *Monte Carlo theory, methods and examples*, Section 8.9.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_PATIENCE = 20  # epochs without improvement that sbi's trainers allow by default


def control_variate(fine: np.ndarray, coarse: np.ndarray) -> float:
    r"""Coefficient :math:`\mathrm{Cov}[f_l, f_{l-1}] / \mathrm{Var}[f_{l-1}]`.

    Args:
        fine: Loss of each pair on the finer level, shape `(..., n)`; leading axes are
            batches, within which covariance and variance are taken before their means.
        coarse: The same on the coarser level.

    Returns:
        The coefficient; NaN where the coarse losses do not vary.

    Example:
    --------

    ::

        >>> coarse = np.array([0.0, 1.0, 2.0, 5.0])
        >>> control_variate(3.0 + 0.5 * coarse, coarse)
        0.5
    """
    centred = coarse - coarse.mean(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.sum(centred * fine) / np.sum(centred**2))


def estimate_variance(contributions: Sequence[np.ndarray]) -> float:
    r"""Variance of the loss of a batch, :math:`\sum_l \mathrm{Var}[d_l] / n_l`.

    Args:
        contributions: For each level what each of its simulations adds, shape `(...,
            n_l)`; leading axes are batches, over which the mean is taken.

    Returns:
        The variance; NaN where a level has one simulation.

    Example:
    --------

    ::

        >>> estimate_variance([np.array([0.0, 2.0]), np.array([0.0, 0.0, 3.0])])
        2.0
    """
    if min(part.shape[-1] for part in contributions) < 2:
        return float("nan")
    variances = [np.var(part, axis=-1, ddof=1).mean() for part in contributions]
    return float(sum(v / part.shape[-1] for v, part in zip(variances, contributions)))


def effective_batch_size(
    contributions: Sequence[np.ndarray], highest: np.ndarray
) -> float:
    r"""Simulations :math:`n_\text{eff}` that a plain mean of :math:`f_L` would need.

    Args:
        contributions: As in `estimate_variance`.
        highest: Loss :math:`f_L` of each simulation of the highest level, shape `(...,
            n_L)`.

    Returns:
        The number; NaN where a level has one simulation, infinite where nothing varies.

    Example:
    --------

    A second level that equals the first adds its simulations.

    ::

        >>> f = np.array([1.0, 4.0, 2.0, 7.0])
        >>> round(effective_batch_size([f], f), 6)
        4.0
        >>> many = np.tile(f, 25)
        >>> round(effective_batch_size([many, f - f], f)) > 100
        True
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.float64(estimate_variance([highest])) * highest.shape[-1]
        return float(variance / estimate_variance(contributions))


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """One training until it stopped, of a stage or of a plain trainer.

    Args:
        start: Its first epoch, counted over all runs.
        levels: Its levels; empty for a trainer of one level.
        training_loss: Loss of each epoch, shape `(E,)`.
        validation_loss: The same of held-out simulations; NaN where none are held out.
        validation_error: Standard error of these; NaN where unknown.
        base: Part of the lowest level in a telescoping training loss, shape `(E,)`;
            empty where it does not telescope.
        converged: Whether early stopping ended it; `None` while it has not ended.
        best_validation_loss: Loss of the weights that were kept; NaN where unknown.
    """

    start: int
    levels: tuple[int, ...]
    training_loss: np.ndarray
    validation_loss: np.ndarray
    validation_error: np.ndarray
    base: np.ndarray
    converged: bool | None
    best_validation_loss: float

    @property
    def epochs(self) -> np.ndarray:
        """Its epochs, counted over all runs."""
        return self.start + np.arange(len(self.training_loss))

    @property
    def correction(self) -> np.ndarray:
        """Part of the higher levels in a telescoping training loss."""
        return self.training_loss - self.base if len(self.base) else self.base

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the lowest held-out loss, whose weights are kept.

        The epoch before the first if the initial weights were better; `None` if no
        simulations were held out.
        """
        if not np.isfinite(self.validation_loss).any():
            return None
        best = int(np.nanargmin(self.validation_loss))
        if self.best_validation_loss < self.validation_loss[best]:
            return self.start - 1
        return self.start + best


def curve(summary: Mapping[str, Any], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values of a list of `inference.summary`; both empty if it has none.

    Args:
        summary: `summary` of a trainer.
        key: Name of the list.

    Example:
    --------

    ::

        >>> epochs, values = curve({"training_loss": [3.0, 2.5]}, "training_loss")
        >>> epochs.tolist(), values.tolist()
        ([0, 1], [3.0, 2.5])
    """
    values = np.array(summary.get(key, []), dtype=float)
    epochs = summary.get("epochs_of", {}).get(key, range(len(values)))
    return np.array(epochs, dtype=int), values


def summary_of(inference: Any) -> Mapping[str, Any]:
    """The summary of a trainer.

    Raises:
        ValueError: If it is none, or was not trained yet.
    """
    summary = getattr(inference, "summary", {})
    if "training_loss" not in summary:
        raise ValueError(
            f"inference is a {type(inference).__name__}, but must be a trainer. Of an "
            "ensemble pass one of its `members`."
        )
    if not summary["training_loss"] and not summary.get("stages"):
        raise ValueError(
            "inference.summary has no epoch. Call `inference.train()` before."
        )
    return summary


def training_runs(summary: Mapping[str, Any]) -> tuple[TrainingRun, ...]:
    """The runs in `inference.summary`, of this package or of sbi.

    Args:
        summary: `summary` of a trainer.

    Example:
    --------

    Four epochs of a trainer of sbi, trained twice.

    ::

        >>> losses = [3.0, 1.0, 2.0, 0.5]
        >>> summary = {
        ...     "training_loss": losses,
        ...     "validation_loss": losses,
        ...     "epochs_trained": [3, 1],
        ...     "best_validation_loss": [1.0, 0.5],
        ... }
        >>> [(run.start, run.best_epoch) for run in training_runs(summary)]
        [(0, 1), (3, 3)]
    """
    count = len(summary["training_loss"])
    stages = summary.get("stages")
    if stages is None:  # a trainer of sbi
        stages = _stages_of_sbi(summary)
    stops = [*(stage["start"] for stage in stages[1:]), count]
    return tuple(_run(summary, stage, stop) for stage, stop in zip(stages, stops))


def _stages_of_sbi(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What this package notes, from the lengths of runs, which is all that sbi does."""
    stages, start = [], 0
    for count, best in zip(summary["epochs_trained"], summary["best_validation_loss"]):
        losses = np.array(summary["validation_loss"][start : start + count])
        since = count - 1 - int(np.argmin(losses)) if len(losses) else 0
        noted = {"converged": since >= _PATIENCE, "best_validation_loss": best}
        stages.append({"start": start, **noted})
        start += count
    return stages


def _run(
    summary: Mapping[str, Any], stage: Mapping[str, Any], stop: int
) -> TrainingRun:
    span = range(stage["start"], stop)
    levels, best = tuple(stage.get("levels", ())), stage["best_validation_loss"]
    telescopes = any(f"control_variate_level_{level}" in summary for level in levels)
    base = f"training_loss_level_{levels[0]}" if telescopes else ""
    return TrainingRun(
        stage["start"],
        levels,
        _within(summary, "training_loss", span),
        _within(summary, "validation_loss", span),
        _within(summary, "validation_loss_error", span),
        _within(summary, base, span) if telescopes else np.empty(0),
        stage.get("converged"),
        float("nan") if best is None else float(best),
    )


def _within(summary: Mapping[str, Any], key: str, span: range) -> np.ndarray:
    """Values of the epochs of a run; NaN where there is none."""
    values = np.full(len(span), np.nan)
    for epoch, value in zip(*curve(summary, key)):
        if epoch in span:
            values[epoch - span.start] = value
    return values
