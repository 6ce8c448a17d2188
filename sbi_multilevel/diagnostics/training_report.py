r"""Whether a training converged, was interrupted, or diverged, from its losses.

Losses are negative log densities in nats, so differences between epochs do not depend
on units. For a well-fitted density of d dimensions the loss of a single simulation has
a standard deviation of about that of :math:`-\log q` of a Gaussian,

.. math:: s = \sqrt{d / 2},

and the mean loss of an epoch varies far less. Changes that exceed s are therefore not
attributed to noise. A run (one stage of a training) is reported as *diverged* if

1. a loss is not finite; or
2. the training loss ends above its minimum by more than s and by more than three
   standard errors, and so does the validation loss, if there is one. (A validation loss
   that rises while the training loss falls is overfitting, which early stopping
   handles; the report mentions it); or
3. the correction of a telescoping loss falls without bound: in the second half of the
   epochs it falls by more than s and no slower than in the first half, and either the
   base rises by more than s and three standard errors while the validation loss is past
   its minimum, or the correction falls by more than 20 s. A difference of losses has no
   lower bound: with few pairs a network can assign vanishing density to the coarse
   sides, and the validation loss may follow; or
4. the median absolute change of the training loss between epochs exceeds s in the
   second half of the epochs.

With early stopping the best weights are kept. If a training was interrupted, the
network has the weights of the last step, and the report indicates whether the
validation loss was significantly lower before. With `early_stopping=False` the last
weights are kept and no simulations are held out, so overfitting cannot be detected.

The noise of a curve is estimated from the median absolute deviation of its differences
between epochs; its final value and its minimum are those of a moving average over a
fifth of the epochs, ten at most. The thresholds are our choice. They were calibrated on
110 trainings of a Gaussian task with two parameters: all trainings that ended with a
loss of many nats too much were detected, and none with the default settings.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from sbi_multilevel.methods.hybrid.summary import HybridSummary
from sbi_multilevel.training.history import TrainingRun, summary_of, training_runs

Verdict = Literal["converged", "stopped at max epochs", "unfinished", "diverged"]
_SEVERITY = get_args(Verdict)  # in ascending order of severity
_MIN_EPOCHS, _LONGEST_WINDOW = 6, 10
_NUM_ERRORS = 3.0
_MAX_FALL, _MIN_OVERFITTING = 20.0, 0.25  # in units of the spread


@dataclass(frozen=True)
class TrainingReport:
    """Result of `check_training`; `print` shows it.

    Args:
        verdict: The most severe verdict of all runs.
        verdicts: Verdict of each run, i.e. of each stage in the order of training.
        reasons: Observations with remedies.
    """

    verdict: Verdict
    verdicts: tuple[Verdict, ...]
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((f"Training: {self.verdict}.", *self.reasons))


def check_training(inference: Any) -> TrainingReport:
    r"""Check whether a training converged, see the module.

    Args:
        inference: A trainer of this package, or of sbi. The summary of the latter does
            not record why training stopped; 20 epochs without improvement (the default
            of `stop_after_epochs`) count as converged. For `HybridNPE` and `HybridNLE`
            the runs of all members with nonzero weight are checked.

    Returns:
        The verdicts and their reasons.

    Raises:
        ValueError: If `inference` is not a trainer, was not trained, or its
            `hybrid_summary` has no runs.

    Example:
    --------

    ::

        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_multilevel import MFNPE
        >>> prior = BoxUniform(-torch.ones(1), torch.ones(1))
        >>> theta = prior.sample((100,))
        >>> inference = MFNPE(prior, density_estimator="mdn", show_progress_bars=False)
        >>> inference = inference.append_simulations(theta, theta)
        >>> _ = inference.train(max_num_epochs=7)
        >>> print(check_training(inference))
        Training: stopped at max epochs.
        Run 1: the loss had not converged after 8 epochs. Increase max_num_epochs.
    """
    network = getattr(inference, "_neural_net", None)
    num_dims = math.prod(getattr(network, "input_shape", (1,)))  # of a density
    spread = max(1.0, math.sqrt(num_dims / 2))
    summary = getattr(inference, "hybrid_summary", None)
    runs = _runs(inference) if summary is None else _runs_of_members(summary)
    assessed = [(name, *assess_run(run, spread)) for name, run in runs]
    reasons = [f"{name}: {each}" for name, _, found in assessed for each in found]
    if summary is not None:
        reasons = _grouped(assessed)
    verdicts = tuple(verdict for _, verdict, _ in assessed)
    worst = max(verdicts, key=_SEVERITY.index)
    return TrainingReport(worst, verdicts, tuple(reasons))


def _runs(inference: Any) -> list[tuple[str, TrainingRun]]:
    """The runs of a trainer, named by number and levels."""
    runs = training_runs(summary_of(inference))
    return [(f"Run {n}{_levels(run)}", run) for n, run in enumerate(runs, start=1)]


def _runs_of_members(summary: HybridSummary) -> list[tuple[str, TrainingRun]]:
    """The runs of members that have a weight, named by component and member."""
    found = [
        (f"{component}, {member}{_levels(run)}", run)
        for component in filter(summary.runs.__contains__, summary.weights)
        for member, runs in summary.runs[component].items()
        for run in runs
    ]
    if not found:
        raise ValueError(
            "inference.hybrid_summary has no runs of members with weight. Call "
            "`inference.train()` again."
        )
    return found


def _levels(run: TrainingRun) -> str:
    if not run.levels:
        return ""
    names = ", ".join(map(str, run.levels))
    return f" (level{'s' * (len(run.levels) > 1)} {names})"


def _grouped(assessed: Sequence[tuple[str, Verdict, list[str]]]) -> list[str]:
    """The reasons of runs that did not converge, each with the names of its runs."""
    bad = [each for each in assessed if each[1] != "converged"]
    if not bad:
        return []
    names = defaultdict[str, list[str]](list)
    for name, _, found in bad:
        for reason in found:
            names[reason].append(name)
    total = f"of {len(assessed)} runs of members"
    return [f"{len(bad)} {total} did not converge."] + [
        f"{each[0] if len(each) == 1 else f'{len(each)} {total}'}: {reason}"
        for reason, each in names.items()
    ]


def assess_run(run: TrainingRun, spread: float = 1.0) -> tuple[Verdict, list[str]]:
    """Verdict and reasons; `spread` is s, the standard deviation of single losses."""
    sign = next(_signs_of_divergence(run, spread), None)
    if sign is not None:
        return "diverged", [f"{sign} {_kept(run)}"]
    rise, count = _overfitting(run, spread), len(run.training_loss)
    if run.converged is None:
        reasons = [
            f"training was interrupted in epoch {count + 1}. If sbi raised an error "
            "because the loss was not finite, lower learning_rate."
        ]
        if rise is not None:
            reasons.append(
                f"the weights of the last step were kept, but the validation loss was "
                f"{rise:.3g} nats lower in epoch {run.best_epoch}. Train again and let "
                "stop_after_epochs or max_num_epochs end it to keep the best weights."
            )
        return "unfinished", reasons
    notes, falls = [], _falls_of_correction(run, spread)
    if falls is not None and not run.converged:
        notes.append(
            f"the correction was still falling, by {falls[1]:.3g} nats in the second "
            "half of the epochs. Use more pairs or fewer epochs."
        )
    if rise is not None:
        notes.append(
            f"the validation loss rose by {rise:.3g} nats (overfitting). {_kept(run)}"
        )
    if run.converged:
        return "converged", notes
    stopped = (
        f"the loss had not converged after {count} epochs. Increase max_num_epochs."
    )
    if not np.isfinite(run.validation_loss).any():
        stopped = (
            f"stopped after {count} epochs as requested. Without held-out simulations "
            "convergence is unknown; use early_stopping=True."
        )
    return "stopped at max epochs", [stopped, *notes]


def _signs_of_divergence(run: TrainingRun, spread: float) -> Iterator[str]:
    """Why a run has diverged, in the order in which reasons are checked."""
    is_known = np.isfinite(run.validation_loss)
    is_finite = is_known.all() or not is_known.any()  # none if none are held out
    if not (is_finite and np.isfinite(run.training_loss).all()):
        yield "a loss is not finite. Lower learning_rate, or clip_max_norm."
    count = len(run.training_loss)
    if count < _MIN_EPOCHS:
        return
    rises = [_rise(run.training_loss)]
    if is_known.all():
        rises.append(_rise(run.validation_loss))
    if all(rise >= max(spread, _NUM_ERRORS * error) for rise, error in rises):
        yield (
            f"the training loss ended {rises[0][0]:.3g} nats above its minimum, and "
            "the validation loss did not improve. Lower learning_rate."
        )
    falls = _falls_of_correction(run, spread)
    if falls is not None:
        rise, error = _rise(run.base)
        is_rising = rise > max(spread, _NUM_ERRORS * error)
        half = run.epochs[count // 2]
        is_past = run.best_epoch is None or run.best_epoch < half
        if (is_rising and is_past) or falls[1] >= _MAX_FALL * spread:
            yield (
                f"the correction fell by {falls[1]:.3g} nats in the second half of the "
                f"epochs, after {falls[0]:.3g} in the first, while the base rose by "
                f"{rise:.3g}: it is not bounded from below. Use more pairs, "
                "early_stopping=True, adjustment='rescale_project', or HybridNPE or "
                "HybridNLE."
            )
    jump = np.median(np.abs(np.diff(run.training_loss[count // 2 :])))
    if jump >= spread:
        yield (
            f"the training loss changed by {jump:.3g} nats per epoch until the end. "
            "Lower learning_rate; for a telescoping loss, use more pairs."
        )


def _falls_of_correction(run: TrainingRun, spread: float) -> tuple[float, float] | None:
    """Falls in both halves of a run, if the second is at least as large."""
    correction, half = run.correction, len(run.correction) // 2
    if len(correction) < _MIN_EPOCHS:
        return None
    earlier = float(correction[0] - correction[half])
    later = float(correction[half] - correction[-1])
    return None if later < max(earlier, spread) else (earlier, later)


def _overfitting(run: TrainingRun, spread: float) -> float | None:
    """Rise of the validation loss above its minimum; `None` if not significant."""
    values, errors = run.validation_loss, run.validation_error
    if len(values) < _MIN_EPOCHS or not np.isfinite(values).all():
        return None
    rise, error = _rise(values)
    at_best = errors[np.argmin(values)]
    if np.isfinite(at_best):  # sampling error of the held-out simulations
        error = math.hypot(error, at_best)
    least = max(_MIN_OVERFITTING * spread, _NUM_ERRORS * error)
    return None if rise < least else rise


def _kept(run: TrainingRun) -> str:
    if run.converged is None:
        return "The weights of the last step were kept."
    if run.best_epoch is None:
        return "The last weights were kept."
    if run.best_epoch < run.start:
        return "The initial weights were kept."
    return f"The weights of epoch {run.best_epoch} were kept."


def _rise(values: np.ndarray) -> tuple[float, float]:
    """Difference of the final value and the minimum of a curve, and its error."""
    window = min(max(len(values) // 5, 1), _LONGEST_WINDOW)
    means = np.convolve(values, np.ones(window) / window, "valid")
    steps = np.diff(values)
    noise = 1.4826 * np.median(np.abs(steps - np.median(steps))) / math.sqrt(2)
    rise = means[-1] - min(means.min(), values[0])
    return float(rise), float(noise * math.sqrt(2 / window))
