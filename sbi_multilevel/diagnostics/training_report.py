r"""Whether a training converged, was cut off, or diverged.

Losses are negative log densities, in nats, so differences between epochs do not depend
on units. Even under the right density of d dimensions the loss of a row scatters, as
:math:`-\log q` of a Gaussian does, with the standard deviation

.. math:: s = \sqrt{d / 2},

and the mean loss of an epoch scatters far less. What moves it by more than s is no
noise. A run (one stage of a recipe) is said to have *diverged* if

1. a loss is not finite; or
2. the training loss ends above its best by more than s and by more than three standard
   errors, and so does the validation loss (or none is known): the steps are too long.
   A validation loss that rises while the training loss falls is overfitting, which
   early stopping undoes; the report mentions it; or
3. the correction of a telescoping loss falls without bound: in the later half of the
   epochs by more than s and no slower than in the earlier one, either while the base
   rises by more than s and three standard errors and the validation loss is past its
   best, or by more than 20 s in any case. A difference of losses has no lower bound: on
   few pairs a network can learn to give the coarse sides no density at all, and the
   validation loss may follow; or
4. in the later half of the epochs the training loss jumps by more than s from one to
   the next, in the median.

With early stopping the best weights are kept, so that overfitting costs epochs and no
more. Where a training ended by an error or by hand the network is as the last step left
it, and the report says so if held-out rows clearly liked it better before. The last
weights are also those of `early_stopping=False`, but then no rows are held out, and
nothing can tell whether there were too many epochs.

The noise of a curve is that of its differences between epochs, by their median absolute
deviation; its last and best values are means over a fifth of the epochs, ten at most.
The thresholds are ours. They were set on 110 trainings of a Gaussian task of two
parameters: all that ended with a loss of many nats too much were told, and none with
the default settings, whatever the number of rows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from sbi_multilevel.training.history import (
    TrainingRun,
    summary_of,
    training_runs,
)

Verdict = Literal["converged", "stopped at max epochs", "unfinished", "diverged"]
MembersRuns = Mapping[str, Mapping[str, tuple[TrainingRun, ...]]]
_SEVERITY = get_args(Verdict)  # the last is the worst
_MIN_EPOCHS, _LONGEST_WINDOW = 6, 10
_NUM_ERRORS = 3.0
_ABSURD, _MIN_NOTED = 20.0, 0.25  # times the spread


@dataclass(frozen=True)
class TrainingReport:
    """What became of a training; `print` shows it.

    Args:
        verdict: The worst of the runs.
        verdicts: Verdict of each run, i.e. of each stage in the order trained.
        reasons: What was seen, and what to do about it.
    """

    verdict: Verdict
    verdicts: tuple[Verdict, ...]
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((f"Training: {self.verdict}.", *self.reasons))


def check_training(inference: Any) -> TrainingReport:
    r"""Judge a training by its curves, see the module.

    Args:
        inference: A trainer of this package, or of sbi. For the latter, whose summary
            does not say why it stopped, 20 epochs without improvement (the default of
            `stop_after_epochs`) count as converged. Of the recipe `"hybrid"` all runs
            of members with weight are judged, and reasons given for those only that did
            not converge; a reason of several runs is given once.

    Raises:
        ValueError: If it is no trainer, was not trained yet, or its `hybrid_summary`
            holds no runs.

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
        Run 1: the loss had not settled after 8 epochs. Raise max_num_epochs.
    """
    spread = max(1.0, math.sqrt(_num_dims(inference) / 2))
    summary = getattr(inference, "hybrid_summary", None)
    if summary is not None:
        return _of_members(summary.runs, summary.weights, spread)
    runs = training_runs(summary_of(inference))
    verdicts, reasons = [], []
    for index, run in enumerate(runs):
        verdict, found = assess_run(run, spread)
        verdicts.append(verdict)
        reasons += [f"Run {index + 1}{_name(run)}: {reason}" for reason in found]
    worst = max(verdicts, key=_SEVERITY.index)
    return TrainingReport(worst, tuple(verdicts), tuple(reasons))


def _of_members(
    components: MembersRuns, weights: Mapping[str, float], spread: float
) -> TrainingReport:
    """The report on a mixture: members with weight, and reasons of what went wrong."""
    verdicts, names = [], defaultdict[str, list[str]](list)
    for component in filter(components.__contains__, weights):
        for member, runs in components[component].items():
            for run in runs:
                verdict, found = assess_run(run, spread)
                verdicts.append(verdict)
                if verdict != "converged":
                    name = f"{component}, {member}{_name(run)}"
                    for reason in found:
                        names[reason].append(name)
    if not verdicts:
        raise ValueError(
            "inference.hybrid_summary has no runs of members with weight: there is "
            "nothing to judge. Train anew."
        )
    worst = max(verdicts, key=_SEVERITY.index)
    bad = len(verdicts) - verdicts.count("converged")
    total = f"of {len(verdicts)} runs of members"
    counted = f"{bad} {total} did not converge."
    reasons = [
        f"{each[0] if len(each) == 1 else f'{len(each)} {total}'}: {reason}"
        for reason, each in names.items()
    ]
    return TrainingReport(worst, tuple(verdicts), (counted, *reasons) if bad else ())


def assess_run(run: TrainingRun, spread: float = 1.0) -> tuple[Verdict, list[str]]:
    """Verdict on one run, and the reasons.

    Args:
        run: The run.
        spread: Standard deviation s of the loss of a row under the right density.
    """
    checks = (_not_finite, _rising, _unbounded, _jumping)
    found = next((r for check in checks if (r := check(run, spread))), None)
    if found is not None:
        return "diverged", [f"{found} {_kept(run)}"]
    if run.converged is None:
        return "unfinished", _unfinished(run, spread)
    notes, count = _notes(run, spread), len(run.training_loss)
    if run.converged:
        return "converged", notes
    stopped = f"the loss had not settled after {count} epochs. Raise max_num_epochs."
    if not np.isfinite(run.validation_loss).any():
        stopped = (
            f"{count} epochs, as many as asked for; without held-out rows nothing says "
            "whether that was right (early_stopping=True holds some out)."
        )
    return "stopped at max epochs", [stopped, *notes]


def _unfinished(run: TrainingRun, spread: float) -> list[str]:
    reasons = [
        f"training ended inside epoch {len(run.training_loss) + 1}, by an error or by "
        "hand. sbi raises where a loss is not finite; then lower learning_rate."
    ]
    loss = _overfitting(run, spread)
    if loss is not None:
        reasons.append(
            f"the network is as it was then: held-out rows liked it {loss:.3g} nats "
            f"better in epoch {run.best_epoch}. Train again, with stop_after_epochs or "
            "max_num_epochs to end it: then the best weights are kept."
        )
    return reasons


def _not_finite(run: TrainingRun, spread: float) -> str | None:
    held_out = np.isfinite(run.validation_loss).any()
    curves = [run.training_loss, *([run.validation_loss] if held_out else [])]
    if all(np.isfinite(values).all() for values in curves):
        return None
    return "a loss is not finite. Lower learning_rate, or clip_max_norm."


def _rising(run: TrainingRun, spread: float) -> str | None:
    if len(run.training_loss) < _MIN_EPOCHS:
        return None
    rises = [_rise(run.training_loss)]
    if np.isfinite(run.validation_loss).all():
        rises.append(_rise(run.validation_loss))
    if any(rise < max(spread, _NUM_ERRORS * error) for rise, error in rises):
        return None
    return (
        f"the training loss ended {rises[0][0]:.3g} nats above its best, and rows held "
        "out do not like it better. Lower learning_rate."
    )


def _jumping(run: TrainingRun, spread: float) -> str | None:
    count = len(run.training_loss)
    if count < _MIN_EPOCHS:
        return None
    jump = np.median(np.abs(np.diff(run.training_loss[count // 2 :])))
    if jump < spread:
        return None
    return (
        f"the training loss moved by {jump:.3g} nats an epoch to the end. Lower "
        "learning_rate; for a telescoping loss, see that pairs are many enough."
    )


def _unbounded(run: TrainingRun, spread: float) -> str | None:
    falls = _falls_of_correction(run, spread)
    if falls is None:
        return None
    rise, error = _rise(run.base)
    is_rising = rise > max(spread, _NUM_ERRORS * error)
    half = run.epochs[len(run.epochs) // 2]
    is_past = run.best_epoch is None or run.best_epoch < half
    if not (is_rising and is_past) and falls[1] < _ABSURD * spread:
        return None
    return (
        f"the correction fell by {falls[1]:.3g} nats in the later half of the epochs, "
        f"after {falls[0]:.3g} in the earlier, while the base rose by {rise:.3g}: "
        "nothing bounds it from below. Use more pairs, early_stopping=True, "
        "adjustment='rescale_project', or the recipe 'hybrid'."
    )


def _falls_of_correction(run: TrainingRun, spread: float) -> tuple[float, float] | None:
    """Its falls in the halves of a run, if the later is none the smaller."""
    correction, half = run.correction, len(run.correction) // 2
    if len(correction) < _MIN_EPOCHS:
        return None
    earlier = float(correction[0] - correction[half])
    later = float(correction[half] - correction[-1])
    return None if later < max(earlier, spread) else (earlier, later)


def _notes(run: TrainingRun, spread: float) -> list[str]:
    """What is worth a word, though it is no divergence."""
    notes = []
    falls = _falls_of_correction(run, spread)
    if falls is not None and not run.converged:
        notes.append(
            f"the correction was still falling, by {falls[1]:.3g} nats in the later "
            "half of the epochs. Pairs may be too few for so many epochs."
        )
    loss = _overfitting(run, spread)
    if loss is not None:
        notes.append(f"held-out rows lost {loss:.3g} nats by overfitting. {_kept(run)}")
    return notes


def _overfitting(run: TrainingRun, spread: float) -> float | None:
    """Rise of the validation loss; the training loss did not rise."""
    values, errors = run.validation_loss, run.validation_error
    if len(values) < _MIN_EPOCHS or not np.isfinite(values).all():
        return None
    rise, error = _rise(values)
    at_best = errors[np.argmin(values)]
    if np.isfinite(at_best):  # of the held-out rows, not only from epoch to epoch
        error = math.hypot(error, at_best)
    least = max(_MIN_NOTED * spread, _NUM_ERRORS * error)
    return None if rise < least else rise


def _kept(run: TrainingRun) -> str:
    if run.converged is None:
        return "The network is as it was when training was ended."
    if run.best_epoch is None:
        return "The last weights were kept."
    if run.best_epoch < run.start:
        return "The weights that it started from were kept."
    return f"The weights of epoch {run.best_epoch} were kept."


def _rise(values: np.ndarray) -> tuple[float, float]:
    """How far a curve ends above its best, and the standard error of that."""
    window = min(max(len(values) // 5, 1), _LONGEST_WINDOW)
    means = np.convolve(values, np.ones(window) / window, "valid")
    steps = np.diff(values)
    noise = 1.4826 * np.median(np.abs(steps - np.median(steps))) / math.sqrt(2)
    rise = means[-1] - min(means.min(), values[0])
    return float(rise), float(noise * math.sqrt(2 / window))


def _name(run: TrainingRun) -> str:
    if not run.levels:
        return ""
    names = ", ".join(map(str, run.levels))
    return f" (level {names})" if len(run.levels) == 1 else f" (levels {names})"


def _num_dims(inference: Any) -> int:
    """Dimensions that the density is of; 1 for other estimators."""
    network = getattr(inference, "_neural_net", None)
    return math.prod(getattr(network, "input_shape", (1,)))
