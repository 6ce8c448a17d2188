"""The interface of methods: simulations of a task in, a `Fit` out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sbi.inference import DirectPosterior, EnsemblePosterior
from torch import Tensor

from sbi_multilevel import MultilevelSimulations
from sbi_multilevel_benchmarks.posterior_task import PosteriorTask
from sbi_multilevel_benchmarks.task import BenchmarkTask


@dataclass(frozen=True)
class Fit:
    """Result of a method.

    Args:
        evaluated: Argument of the task's `evaluate`: a posterior for a `PosteriorTask`,
            a density estimator for other tasks; see `evaluated`.
        trained_on: The x of the highest level used in training, shape `(n, *x_shape)`.
        num_epochs: Epochs of all stages; the mean over the members of an ensemble.
        seconds_before: Seconds of training that an earlier run has spent.
        runs: Runs of the simulator of each level; where each observation has
            simulations of its own, the runs for one observation. `None` for all
            simulations of the task, both sides of pairs.
    """

    evaluated: Any
    trained_on: Tensor
    num_epochs: int
    seconds_before: float = 0.0
    runs: tuple[int, ...] | None = None


Method = Callable[[BenchmarkTask, MultilevelSimulations, int], Fit]


def runs_of(simulations: MultilevelSimulations) -> tuple[int, ...]:
    """Runs of the simulator of each level: a pair is a run of each of two levels."""
    counts = [len(level) for level in simulations]
    pairs = [len(level) * level.is_paired for level in simulations]
    return tuple(n + above for n, above in zip(counts, (*pairs[1:], 0)))


def runs_at(level: int, num_runs: int, task: BenchmarkTask) -> tuple[int, ...]:
    """Runs of the simulator of each level, where one level is simulated only."""
    runs = [0] * len(task.num_simulations)
    runs[level] = num_runs
    return tuple(runs)


def evaluated(task: BenchmarkTask, estimators: Sequence[Any]) -> Any:
    """The argument of the task's `evaluate`, from an estimator or several.

    Args:
        task: The task.
        estimators: Trained density estimators; several are mixed with equal weights.
    """
    estimators = [estimator.eval() for estimator in estimators]
    if not isinstance(task, PosteriorTask):
        return estimators[0] if len(estimators) == 1 else Mixture(tuple(estimators))
    posteriors = [DirectPosterior(each, task.prior) for each in estimators]
    return posteriors[0] if len(posteriors) == 1 else EnsemblePosterior(posteriors)


@dataclass(frozen=True)
class Mixture:
    """Mixture of density estimators with equal weights."""

    members: tuple[Any, ...]

    def log_prob(self, input: Tensor, condition: Tensor) -> Tensor:
        """Log density; shapes are those of the members."""
        values = torch.stack([m.log_prob(input, condition) for m in self.members])
        return torch.logsumexp(values, dim=0) - math.log(len(self.members))

    def sample(self, sample_shape: tuple[int, ...], condition: Tensor) -> Tensor:
        """Samples; shapes are those of the members."""
        (n,) = sample_shape
        drawn = torch.stack([m.sample((n,), condition) for m in self.members])
        return drawn[torch.randint(len(self.members), (n,)), torch.arange(n)]
